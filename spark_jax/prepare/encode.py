"""Encodes a corpus into the tokens that the language model learns from: JSON Lines, one utterance a line.

    spark-jax prepare encode corpus runs/tokens.jsonl --model configs/tiny_en_model.yaml \\
        --wav2vec2 runs/wav2vec2/wav2vec2 --codec runs/bicodec/codec

Each line is the metadata's record with `global_ids` and `semantic_ids` and without `wav_path`. The output
appears when it is complete; until then finished batches are kept in OUT.partial, so that a killed run goes on
where it stopped, if it is the same corpus and the same parameters.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from tqdm import tqdm

from spark_jax.audio.normalize import reference_clip, volume_normalize
from spark_jax.config import SparkConfig
from spark_jax.data import manifest, pipeline
from spark_jax.errors import SparkError
from spark_jax.inference import codec
from spark_jax.model_directory import directory as model_directory
from spark_jax.shared import compilation_cache
from spark_jax.shared.config_files import load_config
from spark_jax.training.checkpoint import load_params
from spark_jax.wav2vec2.model import num_frames, num_samples

tokenize = jax.jit(codec.tokenize, static_argnames="config")

BUCKET_FRAMES = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072)  # longer ones are left out


def main(
    corpus: Annotated[Path, typer.Argument(help="folder with metadata.jsonl")],
    output: Annotated[Path, typer.Argument(help="JSON Lines file to write")],
    model: Annotated[str, typer.Option(help="YAML of a SparkConfig")],
    wav2vec2: Annotated[Path, typer.Option(help="parameter folder of the feature extractor")],
    codec: Annotated[Path, typer.Option(help="variables folder of the codec")],
    batch_frames: Annotated[int, typer.Option(help="padded frames in a batch")] = 2048,
    threads: Annotated[int, typer.Option(help="threads that read audio")] = 2,
) -> None:
    """Encodes every utterance of a corpus; see the head of this file."""
    try:
        compilation_cache.enable()
        config = load_config(SparkConfig, model)
        wanted = model_directory.abstract_variables(config)
        variables = {
            "wav2vec2": {"params": load_params(wav2vec2, wanted["wav2vec2"]["params"])},
            "bicodec": load_params(codec, wanted["bicodec"]),
        }
        encode_corpus(manifest.read_corpus(corpus, None), output, config, variables, batch_frames, threads)
    except SparkError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def encode_corpus(
    records: Sequence[dict[str, Any]],
    output: Path,
    config: SparkConfig,
    variables: dict[str, Any],
    batch_frames: int = 2048,
    threads: int = 2,
) -> None:
    """Writes `output`, in the order of the records.

    Args:
      records: from `manifest.read_corpus`.
      variables: `{"wav2vec2", "bicodec"}`, as in `model_directory.LoadedModel`.

    Raises:
      SparkError: audio that cannot be read, or an output folder that cannot be written.
    """
    partial = output.with_name(output.name + ".partial")
    fingerprint = _fingerprint(config, variables)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        done = _read_partial(partial, fingerprint)
        with partial.open("ab") as file:
            if not done and file.tell() == 0:
                file.write(_line({"fingerprint": fingerprint}))
            left = [record for record in records if record["index"] not in done]
            for record in tqdm(
                _encode(left, config, variables, batch_frames, threads),
                total=len(left),
                disable=not sys.stderr.isatty(),
            ):
                done[record["index"]] = file.tell()
                file.write(_line(record))
                file.flush()
        complete = [done[record["index"]] for record in records if record["index"] in done]
        temporary = output.with_name(f".{output.name}.{os.getpid()}")
        with partial.open("rb") as source, temporary.open("wb") as file:
            for position in complete:
                source.seek(position)
                file.write(source.readline())
        os.replace(temporary, output)
        partial.unlink()
    except OSError as error:
        raise SparkError(f"{output}: cannot be written ({error})") from error
    print(f"{len(complete)} utterances, {len(records) - len(complete)} too long or too short", file=sys.stderr)


def _encode(
    records: Sequence[dict[str, Any]],
    config: SparkConfig,
    variables: dict[str, Any],
    batch_frames: int,
    threads: int,
) -> Iterator[dict[str, Any]]:
    """The records with their tokens, in the order of the buckets."""
    if not records:
        return
    frames = np.array(
        [num_frames(round(record["duration"] * config.sample_rate), config.wav2vec2) for record in records]
    )
    # One frame more: `duration` is rounded.
    buckets = np.searchsorted(BUCKET_FRAMES, frames + 1)
    buckets[(buckets == len(BUCKET_FRAMES)) | (frames < 1)] = -1
    samples_of = [num_samples(count, config.wav2vec2) for count in BUCKET_FRAMES]

    def load(indices: np.ndarray, rngs: Sequence[np.random.Generator]) -> pipeline.Batch:
        bucket = buckets[indices.max()]
        samples = np.zeros((len(indices), samples_of[bucket]), np.float32)
        clips = np.zeros((len(indices), config.ref_segment_samples), np.float32)
        lengths = np.zeros(len(indices), np.int32)
        for row, index in enumerate(indices):
            if index < 0:
                continue
            audio = manifest.read_audio(records[index]["wav_path"], config.sample_rate).astype(np.float64)
            if config.volume_normalize:
                audio = volume_normalize(audio)
            clips[row] = reference_clip(audio, config.ref_segment_samples)
            lengths[row] = min(len(audio), samples.shape[1])
            samples[row, : lengths[row]] = audio[: lengths[row]]
        return {"samples": samples, "lengths": lengths, "clips": clips, "indices": indices.astype(np.int32)}

    rows = [max(1, batch_frames // count) for count in BUCKET_FRAMES]
    plan = pipeline.bucketed_plan(buckets, rows, seed=None)
    for batch in pipeline.batches(plan, load, len(plan(0)), 0, threads=threads, prefetch=2):
        indices = batch.pop("indices")
        semantic, global_ids = jax.device_get(
            tokenize(
                variables["wav2vec2"],
                variables["bicodec"],
                batch["samples"],
                batch["lengths"],
                batch["clips"],
                config=config,
            )
        )
        counts = codec.num_tokens(batch["lengths"], config)
        for row, index in enumerate(indices):
            if index >= 0:
                record = {name: value for name, value in records[index].items() if name != "wav_path"}
                record["global_ids"] = global_ids[row].tolist()
                record["semantic_ids"] = semantic[row, : counts[row]].tolist()
                yield record


def _fingerprint(config: SparkConfig, variables: dict[str, Any]) -> str:
    digest = hashlib.blake2b(repr(config).encode(), digest_size=16)
    for leaf in jax.tree.leaves(variables):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def _read_partial(path: Path, fingerprint: str) -> dict[str, int]:
    """Where the records of an earlier run with the same parameters begin, by index; a half line at the end is cut off.

    The records themselves, some 17 KB each, stay in the file.
    """
    if not path.exists():
        return {}
    done, position = {}, 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
            if position > 0:
                done[record["index"]] = position
            elif record.get("fingerprint") != fingerprint:
                break
            position += len(line)
    if position == 0:
        path.unlink()
    elif position != path.stat().st_size:
        os.truncate(path, position)
    return done


if __name__ == "__main__":
    typer.run(main)
