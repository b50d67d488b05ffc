"""Writes sentences that the language model alone learns from: WordNet's definitions, and numbers in words.

    python tools/tiny_en/more_sentences.py more.txt

Of the examples alone it learns the sentences by heart, and hardly meets a number. The definitions are those whose words
all occur five times among them.
"""

from pathlib import Path
from typing import Annotated

import number_sentences
import typer
from corpus_sentences import frequent_first, wordnet_definitions
from make_virtual_corpus import LENGTHS, MIN_WORDS, WORDNET

from spark_jax.errors import ends_with_a_line
from spark_jax.shared import files

MIN_WORD_COUNT = 5


@ends_with_a_line()
def main(
    output: Annotated[Path, typer.Argument(help="text file to write, a sentence a line")],
    definitions: Annotated[int, typer.Option(min=0, help="how many of them")] = 18_000,
    numbers: Annotated[int, typer.Option(min=0, help="sentences with numbers")] = 3_000,
    wordnet: Annotated[Path, typer.Option(help="folder of WordNet's data files")] = WORDNET,
) -> None:
    """Write sentences for the language model."""
    found = frequent_first(wordnet_definitions(wordnet), *LENGTHS, MIN_WORDS, [MIN_WORD_COUNT])[:definitions]
    found += number_sentences.sentences(numbers)
    files.write_text(output, "".join(f"{sentence}\n" for sentence in found))


if __name__ == "__main__":
    typer.run(main)
