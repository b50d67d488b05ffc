"""Puts the parts that the trainings wrote into one model directory, with a default voice.

    spark-jax assemble OUT --model configs/tiny_en_model.yaml --wav2vec2 runs/wav2vec2/wav2vec2 \\
        --codec runs/bicodec/codec --llm runs/llm --tokens runs/tokens.jsonl [--model-card CARD.md]

The default voice is the training utterance whose global tokens agree best with those of the others.
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import typer

from spark_jax.config import SparkConfig
from spark_jax.data import manifest
from spark_jax.data.tokens import typical_utterance
from spark_jax.errors import SparkError
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.voice import Voice
from spark_jax.shared.config_files import load_config
from spark_jax.training.checkpoint import load_params


def main(
    output: Annotated[Path, typer.Argument(help="Model directory to write; must not exist.")],
    model: Annotated[Path, typer.Option(help="YAML of a SparkConfig.")],
    wav2vec2: Annotated[Path, typer.Option(help="Part written by train/wav2vec2.py.")],
    codec: Annotated[Path, typer.Option(help="Part written by train/bicodec.py.")],
    llm: Annotated[Path, typer.Option(help="Output folder of train/llm.py: tokenizer and part.")],
    tokens: Annotated[Path, typer.Option(help="Token records of `spark-jax prepare encode`.")],
    model_card: Annotated[Path | None, typer.Option(help="Markdown file to put in.")] = None,
    dtype: Annotated[str, typer.Option(help="Storage type of the weights: float16, bfloat16 or float32.")] = "float16",
) -> None:
    """Assembles a model directory from trained parts."""
    try:
        if dtype not in ("float16", "bfloat16", "float32"):
            raise SparkError(f"--dtype {dtype}: expected float16, bfloat16 or float32")
        config = load_config(SparkConfig, model)
        wanted = model_directory.abstract_variables(config)
        variables = {
            "wav2vec2": {"params": load_params(wav2vec2, wanted["wav2vec2"]["params"])},
            "bicodec": load_params(codec, wanted["bicodec"]),
            "llm": {"params": load_params(llm / "llm", wanted["llm"]["params"])},
        }
        with tempfile.TemporaryDirectory() as folder:
            voice = Path(folder) / "default.json"
            default_voice(tokens).save(voice, config.sample_rate)
            model_directory.save(
                output,
                config,
                variables,
                llm / "tokenizer",
                weight_dtype=jnp.dtype(dtype),
                voices={"default": voice},
                model_card=model_card,
            )
    except SparkError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(f"{output}: {sum(f.stat().st_size for f in output.rglob('*') if f.is_file()) / 1e6:.1f} MB")


def default_voice(tokens: Path) -> Voice:
    """The training utterance whose global ids are the commonest ones, position by position."""
    records = manifest.read_jsonl(tokens, ["global_ids", "semantic_ids"], "train")
    typical = records[typical_utterance(records)]
    return Voice(np.asarray(typical["global_ids"]), np.asarray(typical["semantic_ids"]))


if __name__ == "__main__":
    typer.run(main)
