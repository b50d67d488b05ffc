"""A mean of language models: every weight of it, and errors that name the run."""

import average_weights
import jax
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from spark_jax.inference.codec import EMBEDDED_VOICE
from spark_jax.model_directory.directory import read_part, write_parts
from spark_jax.model_directory.layout import read_config

app = typer.Typer()
app.command()(average_weights.main)


def test_every_weight_is_the_mean(tmp_path):
    config = read_config(EMBEDDED_VOICE)
    weights = jax.tree.map(lambda x: np.asarray(x, np.float32), read_part(EMBEDDED_VOICE, "llm"))
    for name, add in (("a", 0.0), ("b", 0.5)):
        moved = jax.tree.map(lambda x, add=add: x + np.float32(add), weights)
        write_parts(tmp_path / name, config, {"llm": moved}, EMBEDDED_VOICE / "tokenizer")
    done = CliRunner().invoke(app, [str(tmp_path / "mean"), f"{tmp_path / 'a'}=1", f"{tmp_path / 'b'}=3"])
    assert done.exit_code == 0, done.output
    found = read_part(tmp_path / "mean", "llm")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y + np.float32(0.375), atol=1e-6), found, weights)
    assert (tmp_path / "mean" / "tokenizer").is_dir()


@pytest.mark.parametrize("run", ["runs/llm", "runs/llm=", "runs/llm=0", "=1", "runs/llm=x", "runs/llm=nan"])
def test_what_is_no_run_with_a_weight(tmp_path, run):
    done = CliRunner().invoke(app, [str(tmp_path / "mean"), run])
    assert done.exit_code == 2 and f"{run}: expected RUN=WEIGHT" in done.output
    assert not (tmp_path / "mean").exists()
