"""Makes a language model of the weighted mean of others' weights, which went on from one another.

    python tools/tiny_en/average_weights.py runs/mean runs/llm8=1 runs/llm10=2

Such a mean knows the sentences of its corpus less by heart: its validation loss is below that of each.
"""

from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import typer

from spark_jax.errors import SparkError, ends_with_a_line
from spark_jax.model_directory.directory import read_part, write_parts
from spark_jax.model_directory.layout import read_config


def weighted(run: str) -> tuple[Path, float]:
    """Returns the path and the weight of RUN=WEIGHT.

    Raises:
      SparkError: it is no such thing.
    """
    path, _, weight = run.rpartition("=")
    try:
        found = float(weight)
    except ValueError:
        found = -1.0
    if not path or not 0.0 < found < np.inf:
        raise SparkError(f"{run}: expected RUN=WEIGHT with a weight above 0")
    return Path(path), found


@ends_with_a_line()
def main(
    output: Annotated[Path, typer.Argument(help="folder to write")],
    runs: Annotated[list[str], typer.Argument(metavar="RUN=WEIGHT...", help="runs of language models of one size")],
) -> None:
    """Average the weights of language models."""
    parts = [weighted(run) for run in runs]
    config, total = read_config(parts[0][0]), sum(weight for _, weight in parts)
    mean = None
    for path, weight in parts:
        if read_config(path).llm != config.llm:
            raise SparkError(f"{path}: a language model of other sizes than {parts[0][0]}")
        shares = jax.tree.map(lambda x, share=weight / total: np.asarray(x, np.float64) * share, read_part(path, "llm"))
        mean = shares if mean is None else jax.tree.map(np.add, mean, shares)
    mean = jax.tree.map(lambda x: x.astype(np.float32), mean)
    write_parts(output, config, {"llm": mean}, parts[0][0] / "tokenizer")
    print(f"{output}: the mean of {len(parts)} language models")


if __name__ == "__main__":
    typer.run(main)
