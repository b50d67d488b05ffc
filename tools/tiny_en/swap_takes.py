"""Gives utterances the semantic tokens of another take of their sentence, warped to their own phonemes' times.

    python tools/tiny_en/swap_takes.py runs/ids.jsonl runs/ids_swapped.jsonl [--share 0.6]

The codes of a small extractor tell who speaks. A codec that is trained on them alone takes the timbre from there, and
its global tokens keep the pitch only: voices of other formants sound alike. With the codes of somebody else it has to
take the timbre from the global tokens. The takes of one sentence have one source, so that their phonemes and the course
of their pitch are the same, and all they differ in is the speaker and the pace.

IDS is of `spark-jax prepare encode` on the corpus of make_virtual_corpus.py. The records of the training split that
another take by the same engine exists for are given its tokens, a share of them; all else stays as it is.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from corpus_plan import SOURCE
from jaxtyping import Float, Int

from spark_jax.data import manifest
from spark_jax.errors import ends_with_a_line
from spark_jax.shared import files

TOKEN_SECONDS = 0.02


def warp(
    ids: Int[np.ndarray, " tokens"],
    theirs: Float[np.ndarray, " bounds"],
    ours: Float[np.ndarray, " bounds"],
    count: int,
) -> Int[np.ndarray, " count"]:
    """Returns tokens at other times.

    Args:
      ids: of the other take.
      theirs, ours: when the phonemes of the other take and of this one begin and end, in seconds.
      count: tokens of this take.
    """
    middles = (np.arange(count) + 0.5) * TOKEN_SECONDS
    knots = np.concatenate([[0.0], ours, [max(count * TOKEN_SECONDS, ours[-1] + 1e-3)]])
    places = np.concatenate([[0.0], theirs, [max(len(ids) * TOKEN_SECONDS, theirs[-1] + 1e-3)]])
    return ids[np.clip(np.interp(middles, knots, places) / TOKEN_SECONDS, 0, len(ids) - 1).astype(int)]


def swapped(records: Sequence[Mapping[str, Any]], share: float, seed: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Returns the records in their order, and how many have got other tokens."""
    rng, takes, made = np.random.default_rng(seed), defaultdict(list), 0
    for record in records:
        if record["split"] == "train" and record["engine"] == SOURCE:
            takes[record["text"], len(record["phoneme_bounds"])].append(record)
    found = []
    for record in records:
        others = takes.get((record["text"], len(record.get("phoneme_bounds", ()))), [])
        others = [other for other in others if other["index"] != record["index"]]
        if record["split"] != "train" or record["engine"] != SOURCE or not others or rng.random() >= share:
            found.append(dict(record))
            continue
        other, made = others[rng.integers(len(others))], made + 1
        bounds = [np.array(take["phoneme_bounds"], float) for take in (other, record)]
        ids = warp(np.array(other["semantic_ids"]), *bounds, len(record["semantic_ids"]))
        found.append({**record, "semantic_ids": ids.tolist()})
    return found, made


@ends_with_a_line()
def main(
    ids: Annotated[Path, typer.Argument(help="JSON Lines of `spark-jax prepare encode`")],
    output: Annotated[Path, typer.Argument(help="JSON Lines to write")],
    share: Annotated[float, typer.Option(min=0, max=1, help="of the utterances that have another take")] = 0.6,
) -> None:
    """Swap the semantic tokens of takes of one sentence."""
    records, made = swapped(list(manifest.read_jsonl(ids, ["index", "text", "phoneme_bounds"])), share)
    files.write_text(output, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    print(f"{output}: {len(records)} utterances, {made} with the tokens of another take")


if __name__ == "__main__":
    typer.run(main)
