"""Joins two utterances of a voice, so that a language model learns to go on after a reference.

    python tools/tiny_en/join_utterances.py runs/tokens.jsonl runs/tokens_joined.jsonl

A prompt with a transcript holds the text and the speech of the reference, and the model continues both. The voices that
speak several utterances give each of them a partner of the same split; the texts follow each other as in such a prompt.
TOKENS is of `spark-jax prepare encode`. What is joined has no pitch and no speed: it is for cloning alone.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from spark_jax.data import manifest
from spark_jax.errors import ends_with_a_line
from spark_jax.shared import files


def joined(records: Sequence[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Returns each utterance with another one of its voice and split after it, where there is one."""
    groups = defaultdict(list)
    for record in records:
        groups[record["voice"], record["split"]].append(record)
    rng, pairs = np.random.default_rng(seed), []
    for group in groups.values():
        order = [group[number] for number in rng.permutation(len(group))]
        # In a circle: everyone is once the first and once the second. Two takes of a sentence are no pair.
        pairs += [pair for pair in zip(order, order[1:] + order[:1], strict=True) if pair[0]["text"] != pair[1]["text"]]
    return [
        {
            "index": f"{first['index']}+{second['index']}",
            "split": first["split"],
            "text": first["text"] + second["text"],
            "global_ids": first["global_ids"],
            "semantic_ids": [*first["semantic_ids"], *second["semantic_ids"]],
            "phonemes": "",  # no pieces are cut from it
            "phoneme_bounds": [],
        }
        for first, second in pairs
    ]


@ends_with_a_line()
def main(
    tokens: Annotated[Path, typer.Argument(help="JSON Lines of `spark-jax prepare encode`")],
    output: Annotated[Path, typer.Argument(help="JSON Lines to write")],
) -> None:
    """Join utterances of a voice in pairs."""
    fields = ["index", "split", "voice", "text", "global_ids", "semantic_ids"]
    pairs = joined(list(manifest.read_jsonl(tokens, fields)))
    files.write_text(output, "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    print(f"{output}: {len(pairs)} pairs")


if __name__ == "__main__":
    typer.run(main)
