"""Encodes a corpus into the tokens that the language model learns from: JSON Lines, one utterance a line.

    spark-jax prepare encode corpus runs/tokens.jsonl --model model
    spark-jax prepare encode corpus runs/tokens.jsonl --model runs/bicodec --wav2vec2 runs/wav2vec2

Each line is the metadata's record with `global_ids` and `semantic_ids` and without `wav_path`; `duration` is that of
the audio file, whatever the metadata says. The output appears when it is complete; until then finished batches are kept
in OUT.partial, so that a killed run goes on where it stopped, if it is the same corpus and the same parameters.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from spark_jax import sharding
from spark_jax.data import pipeline, sources
from spark_jax.data.corpus_audio import UnusableAudioError, audio_lengths, read_audio
from spark_jax.errors import SparkError
from spark_jax.inference.codec import BATCH_LENGTH, CODEC_PARTS, Codec
from spark_jax.inference.speech_tokens import Utterance, num_tokens, prepare
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


def encode_corpus(
    records: Sequence[dict[str, Any]],
    output: Path,
    codec: Codec,
    threads: int = 2,
    dropped: sources.DropCounter | None = None,
) -> None:
    """Writes `output`, in the order of the records, and tells what was left out in a line on standard error.

    Files of another sample rate are resampled. Utterances that are longer than the model allows, or too short for a
    token, are left out and counted.

    Args:
      records: from `manifest.read_corpus`.
      output: JSON Lines, in a folder that is made where it is missing.
      codec: encodes them, in its batches.
      threads: that read and prepare audio.
      dropped: counts what is left out, and says what becomes of a file that is missing, no audio, silent or not finite;
        None: it is an error.

    Raises:
      SparkError: audio that cannot be used, where it is not skipped; nothing is left; or an output folder that cannot
        be written.
    """
    dropped = sources.DropCounter() if dropped is None else dropped
    partial = output.with_name(output.name + ".partial")
    fingerprint = _fingerprint(codec)
    records = _distinct(records, dropped)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        done = _read_partial(partial, fingerprint)
        with partial.open("ab") as file:
            if not done and file.tell() == 0:
                file.write(_line({"fingerprint": fingerprint}))
            left = [record for record in records if record["index"] not in done]
            encoded = _encode(left, codec, threads, dropped)
            for record in tqdm(encoded, total=len(left), disable=not sys.stderr.isatty()):
                done[record["index"]] = file.tell()
                file.write(_line(record))
                file.flush()
        complete = [done[record["index"]] for record in records if record["index"] in done]
        if not complete:
            partial.unlink()
            raise SparkError(f"{output}: not written, as no utterance can be used; {sources.describe(dropped.counts)}")
        with partial.open("rb") as source, files.open_atomic(output) as file:
            for position in complete:
                source.seek(position)
                file.write(source.readline())
        partial.unlink()
    except OSError as error:
        raise files.cannot_write(output, error) from error
    print(f"{output}: {len(complete)} utterances, {sources.describe(dropped.counts)}", file=sys.stderr)


def _distinct(records: Sequence[dict[str, Any]], dropped: sources.DropCounter) -> list[dict[str, Any]]:
    """The records that can be told apart and written."""
    seen, kept = set(), []
    for record in records:
        index = record["index"]
        try:
            _line(record)
        except UnicodeEncodeError as error:
            reason = f"half of a surrogate pair, U+{ord(error.object[error.start]):04X}, expected text"
            dropped.fault("unusable", SparkError(f"utterance {index!r}: {reason}"))
            continue
        if index in seen:
            dropped.fault("index given twice", SparkError(f"utterance {index!r}: the index is given twice"))
            continue
        seen.add(index)
        kept.append(record)
    return kept


def _encode(
    records: Sequence[dict[str, Any]], codec: Codec, threads: int, dropped: sources.DropCounter
) -> Iterator[dict[str, Any]]:
    """Yields the records with their tokens, batch after batch of one length."""
    lengths: dict[int, int] = {}  # samples by number of the record
    found = audio_lengths([record["wav_path"] for record in records], codec.config.sample_rate)
    for number, length in enumerate(found):
        if isinstance(length, UnusableAudioError):
            dropped.fault(length.reason, length)
        elif _fits(length, codec, dropped):
            lengths[number] = length
    while lengths:
        longer: dict[int, int] = {}
        yield from _encode_planned(records, lengths, codec, threads, dropped, longer)
        # What is longer than its header says found no room in its batch.
        lengths = {number: length for number, length in longer.items() if _fits(length, codec, dropped)}


def _fits(length: int, codec: Codec, dropped: sources.DropCounter) -> bool:
    """Whether an utterance of so many samples has tokens, and not more than the model allows; counted if not."""
    config = codec.config
    tokens = num_tokens(length, config) if length >= config.wav2vec2.frame_length else 0
    if 1 <= tokens <= config.max_semantic_tokens:
        return True
    dropped.add("too short" if tokens < 1 else "too long")
    return False


def _encode_planned(
    records: Sequence[dict[str, Any]],
    lengths: Mapping[int, int],
    codec: Codec,
    threads: int,
    dropped: sources.DropCounter,
    longer: dict[int, int],
) -> Iterator[dict[str, Any]]:
    """Yields the records of these lengths with their tokens; puts those that are longer into `longer`."""
    config = codec.config
    numbers = sorted(lengths)
    # The batches of a length are all of one size, so that an utterance's ids come from the same program whatever a
    # killed run has left of its batch.
    plan = codec.plan([num_frames(lengths[number], config.wav2vec2) for number in numbers], full=True)
    samples_of: dict[int, int] = {}  # of those that are in their batch; the loading threads fill it

    def utterance(number: int, room: int) -> Utterance:
        try:
            samples = read_audio(records[number]["wav_path"], config.sample_rate)
        except UnusableAudioError as fault:
            dropped.fault(fault.reason, fault)
            return empty
        frames = num_frames(len(samples), config.wav2vec2) if len(samples) >= config.wav2vec2.frame_length else 0
        if frames > room:
            longer[number] = len(samples)
            return empty
        if frames < 1:
            dropped.add("too short")
            return empty
        samples_of[number] = len(samples)
        return prepare(samples, config)

    def load(planned: np.ndarray, rngs: Sequence[np.random.Generator]) -> pipeline.Batch:
        batch = plan[planned[0]]
        return codec.pad([utterance(numbers[item], batch.length) for item in batch.items], batch)

    empty = Utterance(np.zeros(0, np.float32), np.zeros(config.ref_segment_samples, np.float32))
    one_by_one = [np.array([number]) for number in range(len(plan))]
    padded = pipeline.batches(lambda epoch: one_by_one, load, len(plan), 0, threads=threads, prefetch=2)
    for batch, ids in zip(plan, codec.encode_padded(padded), strict=True):
        for item, (global_ids, semantic_ids) in zip(batch.items, ids, strict=False):
            number = numbers[item]
            if number not in samples_of:
                continue
            record = {name: value for name, value in records[number].items() if name != "wav_path"}
            seconds = round(samples_of.pop(number) / config.sample_rate, 3)
            tokens = {"global_ids": global_ids.tolist(), "semantic_ids": semantic_ids.tolist()}
            yield record | {"duration": seconds} | tokens


def _fingerprint(codec: Codec) -> str:
    """Returns a hash of all that tokens depend on but the audio."""
    config = codec.config
    settings = (
        "length of the file",  # before, lines held tokens for as long as the metadata said
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
