"""Writes how the words of a corpus are pronounced: the lexicon of a recognizer of its phonemes.

    python tools/tiny_en/make_lexicon.py corpus runs/lexicon.json

The phonemes of an utterance are divided at spaces, as its words are; of a word's pronunciations the commonest is kept.
`spark-jax assemble --recognizer RUN --lexicon FILE` puts it into a model, which then knows when its words are heard.
"""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated

import typer

from spark_jax.data import manifest
from spark_jax.errors import ends_with_a_line
from spark_jax.shared.files import write_text
from spark_jax.text.vocabulary import bare
from spark_jax.text.words import split_words


@ends_with_a_line()
def main(
    corpus: Annotated[Path, typer.Argument(help="folder with metadata.jsonl")],
    output: Annotated[Path, typer.Argument(help="JSON file to write")],
) -> None:
    """Write the lexicon of a corpus."""
    records = manifest.read_jsonl(corpus / "metadata.jsonl", ["text", "phonemes"])
    heard: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        words = [bare(word.text).lower() for word in split_words(record["text"])]
        spoken = [bare(part) for part in record["phonemes"].split()]
        if len(words) == len(spoken):  # else a word was spoken as several, or not at all
            for word, phonemes in zip(words, spoken, strict=True):
                heard[word][phonemes] += bool(phonemes)
    lexicon = {word: heard[word].most_common(1)[0][0] for word in sorted(heard)}
    lexicon = {word: phonemes for word, phonemes in lexicon.items() if phonemes}
    write_text(output, json.dumps(lexicon, ensure_ascii=False, indent=0) + "\n")
    print(f"{output}: {len(lexicon)} words")


if __name__ == "__main__":
    typer.run(main)
