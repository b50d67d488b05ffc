"""How many global tokens a voice needs: small codecs with 8, 16 and 32 of them, and with hardly any quantizer.

    python tools/tiny_en/ablate_global_tokens.py WORK [--steps 600] [--count 100]

The paper's ablation on the embedded voice's codec, in the work folder of make_voice.py once its step `voices` is done.
Each codec goes on from there with a fresh resampler, quantizer and projection of the speaker branch, by
recipes/voices.yaml and for the same number of steps. The one without FSQ has 64 levels a dimension: 24 bits a token
where the others have 8. Everything lies in WORK/ablation; the table is that of `spark-jax evaluate codec` in
WORK/ablation/report. The same command goes on where a kill left it.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import make_voice
import numpy as np
import typer
from fit_codes import start_of_codec
from make_voice import MODEL, RECIPES, Step

from spark_jax.bicodec.model import BiCodec
from spark_jax.config import SparkConfig
from spark_jax.data import manifest
from spark_jax.errors import ends_with_a_line
from spark_jax.model_directory.directory import read_part, write_parts
from spark_jax.shared.config_files import load_config
from spark_jax.shared.files import write_text

NEARLY_CONTINUOUS = (64, 64, 64, 64)
FRESH = ("perceiver", "quantizer", "project")  # of the speaker encoder: what depends on the number of tokens


def variants(config: SparkConfig) -> dict[str, SparkConfig]:
    """Returns the sizes of each codec by its name."""

    def changed(**sizes: Any) -> SparkConfig:
        speaker = dataclasses.replace(config.bicodec.speaker_encoder, **sizes)
        return dataclasses.replace(config, bicodec=dataclasses.replace(config.bicodec, speaker_encoder=speaker))

    return {"no_fsq": changed(token_num=32, fsq_levels=NEARLY_CONTINUOUS)} | {
        f"fsq_{tokens}": changed(token_num=tokens) for tokens in (8, 16, 32)
    }


def with_fresh_tokens(variables: Any, config: SparkConfig) -> Any:
    """Returns a codec's variables with those of `FRESH` as before training, in the sizes of `config`."""
    fresh = jax.device_get(start_of_codec(BiCodec(config.bicodec), config))["params"]["speaker_encoder"]
    speaker = variables["params"]["speaker_encoder"] | {name: fresh[name] for name in FRESH}
    return {**variables, "params": {**variables["params"], "speaker_encoder": speaker}}


def start(work: Path, name: str, config: SparkConfig) -> None:
    """Writes what the training of a codec starts from, unless it is there.

    Of the ids the training takes the semantic ones; as many global ones are kept as its codec has.
    """
    folder, tokens = work / "ablation" / name, config.bicodec.speaker_encoder.token_num
    if (folder / "sizes.yaml").exists():
        return
    variables = jax.tree.map(np.asarray, read_part(work / "runs/voices", "bicodec"))
    write_parts(folder / "start", config, {"bicodec": with_fresh_tokens(variables, config)})
    records = manifest.read_jsonl(work / "runs/ids_swapped.jsonl", ["index", "global_ids"])
    lines = (json.dumps({**record, "global_ids": record["global_ids"][:tokens]}) + "\n" for record in records)
    write_text(folder / "ids.jsonl", "".join(lines))
    write_text(folder / "sizes.yaml", json.dumps(dataclasses.asdict(config), indent=1))  # JSON is YAML


def training(name: str, steps: int) -> Step:
    """Returns the command that trains a codec."""
    folder = f"ablation/{name}"
    settings = {"model": f"{folder}/sizes.yaml", "init_from": f"{folder}/start", "loop.steps": steps}
    settings |= {"tokens": f"{folder}/ids.jsonl", "loop.evaluate_every": steps}
    command = [sys.executable, "-m", "spark_jax.cli.main", "train", "codec", str(RECIPES / "voices.yaml")]
    command += ["--output", f"{folder}/run"]
    for setting, value in settings.items():
        command += ["--set", f"{setting}={value}"]
    return Step(folder.replace("/", "_"), tuple(command), f"{folder}/run")


@ends_with_a_line()
def main(
    work: Annotated[Path, typer.Argument(help="of make_voice.py")],
    steps: Annotated[int, typer.Option(min=1, help="of each training")] = 600,
    count: Annotated[int, typer.Option(min=1, help="recordings that are measured")] = 100,
) -> None:
    """Trains codecs with other numbers of global tokens, and measures them beside each other."""
    wav2vec2 = jax.tree.map(np.asarray, read_part(work / "runs/wav2vec2", "wav2vec2"))
    codecs = []
    for name, config in variants(load_config(SparkConfig, str(MODEL))).items():
        start(work, name, config)
        make_voice.run(work, training(name, steps))
        codecs.append(f"ablation/{name}/{name}")
        bicodec = jax.tree.map(np.asarray, read_part(work / f"ablation/{name}/run", "bicodec"))
        write_parts(work / codecs[-1], config, {"wav2vec2": wav2vec2, "bicodec": bicodec})
    report = [sys.executable, "-m", "spark_jax.cli.main", "evaluate", "codec", *codecs, "-o", "ablation/report"]
    report += ["--metadata", "corpus/metadata.jsonl", "--count", str(count)]
    make_voice.run(work, Step("ablation_report", tuple(report), "ablation/report/report.json"))


if __name__ == "__main__":
    typer.run(main)
