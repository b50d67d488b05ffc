"""What becomes of a line of a corpus: the bytes of a record, and what the index says of it."""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import soundfile

from spark_jax.config import SparkConfig
from spark_jax.data import audio_sources, manifest, records, token_sources, tokens
from spark_jax.data.corpus_audio import UnusableAudioError, read_audio
from spark_jax.data.sources import DropCounter
from spark_jax.data.token_check import CodeSizes, check_ids, check_text
from spark_jax.errors import SparkError, one_line
from spark_jax.shared.config_files import load_config
from spark_jax.shared.files import cannot_read
from spark_jax.text.tokenizer import open_tokenizer


class Item(NamedTuple):
    """A record to write, and what the index says of it."""

    data: bytes
    columns: dict[str, int]


# A line's record → its item, or why it is dropped. SparkError, TypeError, ValueError: it cannot be used.
Converter = Callable[[dict[str, Any]], Item | str]


@dataclasses.dataclass(frozen=True)
class TokenConversion:
    """Makes token records, for the language model's training.

    Attributes:
      tokenizer: that of the training, as in its configuration.
      model: YAML of a SparkConfig; None: the release's sizes.
    """

    tokenizer: str
    model: str | None

    kind = "tokens"
    fields = token_sources.RECORD_FIELDS

    @property
    def index_fields(self) -> dict[str, Any]:
        """Returns what the index says of all its records."""
        return {"faults": token_sources.FAULTS}

    def converter(self) -> Converter:
        """Returns the function that converts a line.

        Raises:
          SparkError: a file that is named here cannot be read.
        """
        system = load_config(SparkConfig, self.model)
        tokenizer = open_tokenizer(self.tokenizer, system)
        classes = tokens.class_table(tokenizer)
        sizes = CodeSizes.of_tokenizer(tokenizer, system.bicodec.speaker_encoder.token_num)

        def convert(record: dict[str, Any]) -> Item | str:
            if fault := token_sources.utterance_fault(record):
                return fault
            check_text(record)
            check_ids(record, sizes)
            tokens.make_example(tokenizer, classes, tokens.TTS, record)  # refuses what training would refuse
            count = token_sources.content_tokens(tokenizer, record)
            if count >= 1 << 16:
                return "too long"
            fault = token_sources.FAULTS.index(token_sources.controllable_fault(record))
            arrays = {name: records.as_codes(record[name]) for name in audio_sources.TOKEN_FIELDS}
            fields = {name: value for name, value in record.items() if name not in arrays}
            return Item(records.encode(fields, arrays), {"tokens": count, "fault": fault})

        return convert


@dataclasses.dataclass(frozen=True)
class AudioConversion:
    """Makes audio records, for the codec's training: FLAC files as they are, others as 16-bit FLAC.

    Attributes:
      corpus: folder of the audio files.
      tokens: JSON Lines with the ids of the same utterances, which go into the records; None: none do.
      sample_rate: of all records, Hz; files of another are resampled.
      on_error: what becomes of a line of `tokens` that cannot be used: raise, or skip.
    """

    corpus: str
    tokens: str | None
    sample_rate: int
    on_error: Literal["raise", "skip"] = "raise"

    kind = "audio"
    fields = (*manifest.CORPUS_FIELDS, "split")

    @property
    def index_fields(self) -> dict[str, Any]:
        """Returns what the index says of all its records."""
        return {"sample_rate": self.sample_rate}

    def converter(self) -> Converter:
        """Returns the function that converts a line.

        Raises:
          SparkError: a file that is named here cannot be read.
        """
        names = audio_sources.TOKEN_FIELDS
        ids, dropped = {}, DropCounter(self.on_error)
        lines = [] if self.tokens is None else manifest.read_jsonl(self.tokens, ["index", *names], dropped=dropped)
        for line in lines:
            try:
                ids[line["index"]] = {name: records.as_codes(line[name]) for name in names}
            except (TypeError, ValueError) as error:
                reason = f"{self.tokens}: utterance {line['index']!r}: {one_line(error)}"
                dropped.fault("unusable ids", SparkError(reason))

        def convert(record: dict[str, Any]) -> Item | str:
            if fault := manifest.corpus_fault(record):
                raise SparkError(fault)
            path = Path(self.corpus) / record["wav_path"]
            try:
                content = path.read_bytes()
            except FileNotFoundError as error:
                raise UnusableAudioError("no such file", f"{path}: no such file") from error
            except OSError as error:
                raise UnusableAudioError("unreadable audio", str(cannot_read(path, error))) from error
            samples = read_audio(content, self.sample_rate, str(path))  # it decodes to its end
            if not _is_flac(content, self.sample_rate):
                flac = io.BytesIO()
                soundfile.write(flac, samples, self.sample_rate, format="FLAC", subtype="PCM_16")
                content = flac.getvalue()
            arrays = {"audio": np.frombuffer(content, np.uint8)} | ids.get(record["index"], {})
            fields = {name: value for name, value in record.items() if name != "wav_path"}
            fields["duration"] = round(len(samples) / self.sample_rate, 3)  # whatever the metadata says
            columns = {"samples": len(samples), "tokens": len(arrays.get("semantic_ids", ()))}
            return Item(records.encode(fields, arrays), columns)

        return convert


Conversion = TokenConversion | AudioConversion


def _is_flac(content: bytes, sample_rate: int) -> bool:
    """Whether a sound file is FLAC of one channel at this rate."""
    if not content.startswith(b"fLaC"):
        return False
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        return file.channels == 1 and file.samplerate == sample_rate
