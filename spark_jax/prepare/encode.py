"""Encodes a corpus into the tokens that the language model learns from: JSON Lines, one utterance a line.

    spark-jax prepare encode corpus runs/tokens.jsonl --model model
    spark-jax prepare encode corpus runs/tokens.jsonl --model runs/bicodec --wav2vec2 runs/wav2vec2

Each line is the metadata's record with `global_ids` and `semantic_ids` and without `wav_path`. The output appears when
it is complete; until then finished batches are kept in OUT.partial, so that a killed run goes on where it stopped, if
it is the same corpus and the same parameters.
"""

import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from spark_jax import sharding
from spark_jax.data import manifest, pipeline
from spark_jax.inference import buckets
from spark_jax.inference.codec import BATCH_LENGTH, CODEC_PARTS, Codec
from spark_jax.inference.speech_tokens import prepare
from spark_jax.model_directory import directory as model_directory
from spark_jax.shared import files
from spark_jax.wav2vec2.model import num_frames


def load_codec(
    model: Path, wav2vec2: Path | None = None, bicodec: Path | None = None, batch_length: int = BATCH_LENGTH
) -> Codec:
    """Loads a codec onto all devices of this process, which divide the rows of its batches.

    Args:
      model: any model directory or run; what it lacks the others must have.
      wav2vec2, bicodec: runs whose part goes in place of the model's.
      batch_length: see `Codec`.

    Raises:
      SparkError: see `model_directory.load`.
    """
    mesh = sharding.make_mesh(devices=jax.local_devices())
    loaded = {
        part: model_directory.load(source or model, parts=[part], mesh=mesh)
        for part, source in (("wav2vec2", wav2vec2), ("bicodec", bicodec))
    }
    config = dataclasses.replace(loaded["bicodec"].config, wav2vec2=loaded["wav2vec2"].config.wav2vec2)
    variables = {part: loaded[part].variables[part] for part in CODEC_PARTS}
    return Codec(config, variables, mesh=mesh, batch_length=batch_length)


def encode_corpus(records: Sequence[dict[str, Any]], output: Path, codec: Codec, threads: int = 2) -> None:
    """Writes `output`, in the order of the records; utterances that are longer than the model allows are left out.

    Args:
      records: from `manifest.read_corpus`.
      output: JSON Lines, in a folder that is made where it is missing.
      codec: encodes them, in its batches.
      threads: that read and prepare audio.

    Raises:
      SparkError: audio that cannot be read, or an output folder that cannot be written.
    """
    partial = output.with_name(output.name + ".partial")
    fingerprint = _fingerprint(codec)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        done = _read_partial(partial, fingerprint)
        with partial.open("ab") as file:
            if not done and file.tell() == 0:
                file.write(_line({"fingerprint": fingerprint}))
            left = [record for record in records if record["index"] not in done]
            for record in tqdm(_encode(left, codec, threads), total=len(left), disable=not sys.stderr.isatty()):
                done[record["index"]] = file.tell()
                file.write(_line(record))
                file.flush()
        complete = [done[record["index"]] for record in records if record["index"] in done]
        with partial.open("rb") as source, files.open_atomic(output) as file:
            for position in complete:
                source.seek(position)
                file.write(source.readline())
        partial.unlink()
    except OSError as error:
        raise files.cannot_write(output, error) from error
    print(f"{len(complete)} utterances, {len(records) - len(complete)} too long or too short", file=sys.stderr)


def _encode(records: Sequence[dict[str, Any]], codec: Codec, threads: int) -> Iterator[dict[str, Any]]:
    """Yields the records with their tokens, batch after batch of one length."""
    config = codec.config
    frames = [num_frames(round(record["duration"] * config.sample_rate), config.wav2vec2) for record in records]
    longest = buckets.bucket(config.max_semantic_tokens * math.prod(config.bicodec.encoder.sample_ratios))
    kept = [i for i, count in enumerate(frames) if 1 <= count < longest]
    # One frame more, for `duration` is rounded. The batches of a length are all of one size, so that an utterance's ids
    # come from the same program whatever a killed run has left of its batch.
    plan = codec.plan([frames[i] + 1 for i in kept], full=True)
    if not plan:
        return

    def load(numbers: np.ndarray, rngs: Sequence[np.random.Generator]) -> pipeline.Batch:
        batch = plan[numbers[0]]
        recordings = [manifest.read_audio(records[kept[item]]["wav_path"], config.sample_rate) for item in batch.items]
        return codec.pad([prepare(samples, config) for samples in recordings], batch)

    one_by_one = [np.array([number]) for number in range(len(plan))]
    padded = pipeline.batches(lambda epoch: one_by_one, load, len(plan), 0, threads=threads, prefetch=2)
    for batch, ids in zip(plan, codec.encode_padded(padded), strict=True):
        for item, (global_ids, semantic_ids) in zip(batch.items, ids, strict=False):
            record = {name: value for name, value in records[kept[item]].items() if name != "wav_path"}
            yield record | {"global_ids": global_ids.tolist(), "semantic_ids": semantic_ids.tolist()}


def _fingerprint(codec: Codec) -> str:
    """Returns a hash of all that tokens depend on but the audio."""
    config = codec.config
    settings = (
        config.sample_rate,
        config.ref_segment_samples,
        config.volume_normalize,
        config.bicodec,
        config.wav2vec2,
    )
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for leaf in jax.tree.leaves([codec.variables[part] for part in CODEC_PARTS]):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def _read_partial(path: Path, fingerprint: str) -> dict[str, int]:
    """Returns where an earlier run's records begin, by index, if its parameters are the same; cuts off a half line.

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
