"""Where the codec's utterances come from: files of a corpus folder, or ArrayRecord shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from spark_jax.config import SparkConfig
from spark_jax.data import manifest, sources
from spark_jax.data.config import CodecDataConfig, Sources
from spark_jax.data.corpus_audio import UnusableAudioError, audio_lengths, read_audio
from spark_jax.data.pitch_tracks import PitchTracks
from spark_jax.data.records import RecordReader
from spark_jax.data.token_check import CodeSizes, check_ids
from spark_jax.errors import SparkError, one_line

TOKEN_FIELDS = ("semantic_ids", "global_ids")


@runtime_checkable
class AudioSource(Protocol):
    """Numbered utterances of one sample rate, of which lengths are known without reading them.

    Attributes:
      seconds: of each utterance, as its file or the index of the records says.
      num_tokens: semantic ids of each utterance, 0: it comes without.
      dropped: what is left out.
    """

    seconds: Float[np.ndarray, " utterances"]
    num_tokens: Int[np.ndarray, " utterances"]
    dropped: sources.DropCounter

    def __len__(self) -> int: ...

    def weights(self, start: int, stop: int) -> Float[np.ndarray, " some"]:
        """Returns the weights of some utterances."""
        """Returns how often each utterance of a range comes in an epoch; see `pipeline.weighted_order`."""

    def read(self, number: int) -> tuple[Float[np.ndarray, " samples"], dict[str, Any]]:
        """Returns samples and record of an utterance; a SparkError names the one that cannot be read."""


def read_sources(
    source: Sources,
    config: SparkConfig,
    data: CodecDataConfig,
    split: str,
    tokens: str | None = None,
    pitch: bool = False,
) -> list[AudioSource]:
    """Opens the mixture of a run.

    Args:
      source: a folder with metadata.jsonl, a folder of records, a pattern, or several with weights.
      split: of the utterances.
      tokens: JSON Lines of `spark-jax prepare encode` with the ids of a corpus folder's utterances.
      pitch: whether records come with their pitch track.

    Raises:
      SparkError: a source cannot be read or is empty; pitch of records, which have none.
    """
    found: list[AudioSource] = []
    for path, weight in ((part.path, part.weight) for part in sources.expand(source)):
        dropped = sources.DropCounter(data.on_error)
        if (Path(path) / "metadata.jsonl").exists() or not Path(path).is_dir():
            records = manifest.read_corpus(path, split, dropped=dropped)
            if tokens is not None:
                records = with_tokens(records, tokens, CodeSizes.of_codec(config), dropped)
            tracks = PitchTracks(path) if pitch else None
            found.append(FolderAudio(records, config.sample_rate, weight, dropped, tracks))
        elif pitch:
            raise SparkError(f"{path}: records have no pitch, expected a folder with metadata.jsonl and pitch tracks")
        else:
            reader = RecordReader(path, split, "audio")
            found.append(RecordAudio(reader, config.sample_rate, weight, dropped, CodeSizes.of_codec(config)))
    return found


class FolderAudio:
    """The audio files of a corpus folder.

    Args:
      records: from `manifest.read_corpus`; perhaps `with_tokens`.
      sample_rate: of the model, to which other files are resampled.
      weight: how often each utterance comes in an epoch.
      dropped: counts what is left out, and says what becomes of a file that cannot be read.
      tracks: pitch of the utterances, which `read` gives as `f0` of the record; None: it has none.

    Raises:
      SparkError: files that are missing or no audio, where they are not skipped; no file is left.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        sample_rate: int,
        weight: float = 1.0,
        dropped: sources.DropCounter | None = None,
        tracks: PitchTracks | None = None,
    ):
        self.dropped = sources.DropCounter() if dropped is None else dropped
        self._sample_rate, self._weight, self._tracks = sample_rate, weight, tracks
        self._records, seconds = [], []
        lengths = audio_lengths([record["wav_path"] for record in records], sample_rate)
        for record, length in zip(records, lengths, strict=True):
            if isinstance(length, UnusableAudioError):
                self.dropped.fault(length.reason, length)
                continue
            self._records.append(record)
            seconds.append(length / sample_rate)
        if not self._records:
            raise SparkError(
                f"no file of {len(records)} utterances can be read, {sources.describe(self.dropped.counts)}"
            )
        self.seconds = np.array(seconds, np.float32)
        self.num_tokens = np.array([len(record.get("semantic_ids", ())) for record in self._records], np.int32)

    def __len__(self) -> int:
        return len(self._records)

    def weights(self, start: int, stop: int) -> Float[np.ndarray, " some"]:
        """Returns the weights of some utterances."""
        return np.full(stop - start, self._weight)

    def read(self, number: int) -> tuple[Float[np.ndarray, " samples"], dict[str, Any]]:
        """Returns the samples of an utterance and its line of the metadata."""
        record = self._records[number]
        pitch = {} if self._tracks is None else {"f0": self._tracks.read(record)}
        return read_audio(record["wav_path"], self._sample_rate), record | pitch


class RecordAudio:
    """Sharded audio records (`records`); memory holds 10 bytes an utterance.

    Args:
      reader: of audio records.
      sample_rate: that they must have.
      weight: how often each utterance comes in an epoch.
      dropped: counts what is left out, and says what becomes of a record that cannot be read.
      sizes: what ids of the records must follow; None: they are not looked at.

    Raises:
      SparkError: records of another sample rate.
    """

    def __init__(
        self,
        reader: RecordReader,
        sample_rate: int,
        weight: float = 1.0,
        dropped: sources.DropCounter | None = None,
        sizes: CodeSizes | None = None,
    ):
        self._sizes = sizes
        self.dropped = sources.DropCounter() if dropped is None else dropped
        if (found := reader.fields.get("sample_rate")) != sample_rate:
            raise SparkError(f"{reader.folder}: records of sample rate {found}, expected {sample_rate}")
        self._reader, self._sample_rate, self._weight = reader, sample_rate, weight
        self.seconds = reader.columns["samples"].astype(np.float32) / np.float32(sample_rate)
        self.num_tokens = reader.columns["tokens"]
        for reason, count in reader.fields["dropped"].items():
            self.dropped.add(reason, count)

    def __len__(self) -> int:
        return len(self._reader)

    def weights(self, start: int, stop: int) -> Float[np.ndarray, " some"]:
        """Returns the weights of some utterances."""
        return np.full(stop - start, self._weight)

    def read(self, number: int) -> tuple[Float[np.ndarray, " samples"], dict[str, Any]]:
        """Returns the samples of an utterance and the fields of its record.

        Raises:
          SparkError: the record is damaged, or holds no audio that can be read.
        """
        [record] = self._reader.read([number])
        if isinstance(record, SparkError):
            raise record
        where = self._reader.where(number)
        if "audio" not in record.arrays:
            raise SparkError(f"{where}: holds no audio")
        samples = read_audio(record.arrays["audio"].tobytes(), self._sample_rate, where)
        ids = {name: record.arrays[name] for name in TOKEN_FIELDS if name in record.arrays}
        found = {"samples": len(samples), "tokens": len(ids.get("semantic_ids", ()))}
        for name, count in found.items():
            if count != (expected := int(self._reader.columns[name][number])):
                raise SparkError(f"{where}: {count} {name}, its index says {expected}")
        if ids and self._sizes is not None:
            try:
                check_ids(ids, self._sizes)
            except SparkError as error:
                raise SparkError(f"{where}: {error}") from error
        return samples, record.fields | ids


def with_tokens(
    records: Sequence[dict[str, Any]],
    path: str,
    sizes: CodeSizes | None = None,
    dropped: sources.DropCounter | None = None,
) -> list[dict[str, Any]]:
    """Adds the ids that `spark-jax prepare encode` wrote to their records; records without any are left out.

    Args:
      path: of the ids.
      sizes: what they must follow; None: they are not looked at.
      dropped: says what becomes of a line that cannot be used; None: it is an error.

    Raises:
      SparkError: the file cannot be read, ids that no utterance of the codec has, or no record has ids in it.
    """
    dropped = sources.DropCounter() if dropped is None else dropped
    encoded = {}
    for line in manifest.read_jsonl(path, ["index", *TOKEN_FIELDS], dropped=dropped):
        try:
            if sizes is not None:
                check_ids(line, sizes)
            encoded[line["index"]] = {name: line[name] for name in TOKEN_FIELDS}
        except (SparkError, TypeError) as error:
            dropped.fault("unusable ids", SparkError(f"{path}: utterance {line['index']!r}: {one_line(error)}"))
    joined = [record | encoded[record["index"]] for record in records if record["index"] in encoded]
    if not joined:
        raise SparkError(f"{path}: no utterance of the corpus has ids in it")
    return joined
