"""Writes a voice file for each named speaker of a corpus, and default.json for the source voice.

    python tools/tiny_en/named_voices.py runs/tokens.jsonl runs/named --model tools/tiny_en/recipes/model.yaml

A voice is the utterance of the training split whose global tokens agree best with those of the speaker's others
(TOKENS is of `spark-jax prepare encode`), without a transcript.
"""

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from corpus_plan import SOURCE
from virtual_speakers import NAMED

from spark_jax.config import SparkConfig
from spark_jax.data import manifest
from spark_jax.data.tokens import typical_utterance
from spark_jax.errors import ends_with_a_line
from spark_jax.model_directory.voice import Voice, check_ids
from spark_jax.shared.config_files import load_config


@ends_with_a_line()
def main(
    tokens: Annotated[Path, typer.Argument(help="JSON Lines of `spark-jax prepare encode`")],
    output: Annotated[Path, typer.Argument(help="folder to write the voices into")],
    model: Annotated[str, typer.Option(help="YAML of a SparkConfig")],
) -> None:
    """Write the voices of a corpus."""
    config = load_config(SparkConfig, model)
    speakers = defaultdict(list)
    for record in manifest.read_jsonl(tokens, ["index", "voice", "global_ids"], "train"):
        if record["voice"] in NAMED or record["voice"] == SOURCE:
            speakers[record["voice"]].append(record)
    output.mkdir(parents=True, exist_ok=True)
    for name, records in sorted(speakers.items()):
        typical = records[typical_utterance(records)]
        ids, none = check_ids(typical["global_ids"], [], config, f"{tokens}: {typical['index']}", speech=False)
        Voice(ids, none).save(output / f"{'default' if name == SOURCE else name}.json", config.sample_rate)
        agreement = np.mean([np.asarray(record["global_ids"]) == ids for record in records])
        print(f"{name}: {len(records)} utterances, whose global tokens agree with its own in {agreement:.0%}")


if __name__ == "__main__":
    typer.run(main)
