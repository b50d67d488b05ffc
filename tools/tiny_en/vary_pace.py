"""Gives utterances' semantic tokens another pace, so that the speed that is asked for is all that tells it.

    python tools/tiny_en/vary_pace.py runs/tokens_checked.jsonl runs/tokens_paced.jsonl

In speech, who speaks and what is said tell most of the pace, and slow speech is rare: a small language model that is
asked for a speed then speaks at its usual one. Copies whose tokens are repeated or left out evenly have a pace that
nothing but the label tells, and none of them is between two levels. They are trained on beside TOKENS, which is of
`spark-jax prepare encode` or of check_labels.py.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from corpus_measures import is_between_levels
from jaxtyping import Int

from spark_jax.data import manifest
from spark_jax.errors import ends_with_a_line
from spark_jax.shared import files

TOKEN_SECONDS = 0.02
SPEEDS = (1.8, 7.5)  # syllables/s that copies are drawn from
FACTORS = (0.62, 2.1)  # of durations: fewer tokens lose phonemes, more of them drone
LONGEST = 6.0  # s
DRAWS = 16  # of a speed; the first of a clear level is taken
KEPT = ("split", "text", "gender", "language", "pitch", "phonemes", "global_ids")  # what has no times


def stretched(ids: Int[np.ndarray, " tokens"], factor: float) -> Int[np.ndarray, " longer"]:
    """Returns tokens that last `factor` times as long, by the nearest of the tokens."""
    count = max(round(len(ids) * factor), 1)
    return ids[np.minimum((np.arange(count) + 0.5) / factor, len(ids) - 1).astype(int)]


def paced(records: Sequence[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Returns a copy of each record at a speed drawn evenly, of a clear level and as far as `FACTORS` allow."""
    rng, copies = np.random.default_rng(seed), []
    for record in records:
        ids = np.asarray(record["semantic_ids"])
        own = record["syllable_num"] / record["speech_duration"]  # its label may be gone
        longest = min(FACTORS[1], LONGEST / (len(ids) * TOKEN_SECONDS))
        factors = np.maximum(np.minimum(own / rng.uniform(*SPEEDS, size=DRAWS), longest), FACTORS[0])
        factors = np.array([len(stretched(ids, factor)) / len(ids) for factor in factors])
        factor = next((x for x in factors if not is_between_levels(own / x, record["language"])), factors[0])
        copies.append(
            {name: record[name] for name in KEPT}
            | {"index": f"{record['index']}-paced", "speed": round(own / factor, 3)}
            | {"phoneme_bounds": [round(bound * factor, 4) for bound in record["phoneme_bounds"]]}
            | {"semantic_ids": stretched(ids, factor).tolist()}
        )
    return copies


@ends_with_a_line()
def main(
    tokens: Annotated[Path, typer.Argument(help="JSON Lines of `spark-jax prepare encode`")],
    output: Annotated[Path, typer.Argument(help="JSON Lines to write")],
) -> None:
    """Make copies of utterances at other paces."""
    fields = ["index", *KEPT, "syllable_num", "speech_duration", "phoneme_bounds", "semantic_ids"]
    copies = paced(list(manifest.read_jsonl(tokens, fields)))
    files.write_text(output, "".join(json.dumps(copy, ensure_ascii=False) + "\n" for copy in copies))
    slower = math.fsum(copy["speed"] < 3.306 for copy in copies) / max(len(copies), 1)
    print(f"{output}: {len(copies)} utterances, {slower:.0%} of them of the levels very_low and low")


if __name__ == "__main__":
    typer.run(main)
