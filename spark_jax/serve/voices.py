"""The voices of a server: the model's own, those of a folder, and those that clients bring.

A file is named by a number drawn here, never by what a client says; names are looked up in memory.
"""

import dataclasses
import re
import secrets
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spark_jax.config import SparkConfig
from spark_jax.errors import SparkError
from spark_jax.model_directory.voice import Voice
from spark_jax.serve.errors import ApiError, bad_request
from spark_jax.serve.mixing import mix_voices
from spark_jax.serve.style import MADE_UP
from spark_jax.shared.files import cannot_write, read_json, write_json

DEFAULT = "default"
_NAME = re.compile(r"\w[\w .-]{0,63}")
_ID = re.compile(r"voice_[0-9a-f]{12}")
_ABOUT = ".about"  # of a voice file FILE.json there is a FILE.about.json
_ABOUT_KEYS = {"name": str, "created_at": int, "source": str, "consent": str | None, "mixed_from": list | None}


@dataclasses.dataclass(frozen=True, eq=False)
class StoredVoice:
    """A voice that requests may name.

    Attributes:
      id, name: either names it.
      voice: its tokens.
      created_at: seconds since 1970.
      source: "model", "file" (an operator's), "upload" or "mix".
      consent: the statement that came with an upload.
      mixed_from: names and weights of what a mix was made of.
    """

    id: str
    name: str
    voice: Voice
    created_at: int
    source: str
    consent: str | None = None
    mixed_from: list | None = None

    @property
    def description(self) -> dict[str, Any]:
        """Returns what clients are told of it."""
        own = {name: getattr(self, name) for name in ("id", "name", "created_at", "source", "mixed_from")}
        return {"object": "audio.voice", **own, "transcript": self.voice.transcript}


class VoiceStore:
    """Voices by name and id; any thread may use it."""

    def __init__(self, config: SparkConfig, default: Voice | Path | None, directory: Path | None, most: int):
        """Args:
          config: of the model.
          default: the model's own voice, or its file, if it has one.
          directory: where voices are kept; None: in memory only.
          most: how many clients may bring.

        Warns:
          UserWarning: a file of the folder is no voice of this model; it is left alone.

        Raises:
          SparkError: the folder cannot be made, or the model's own voice is damaged.
        """
        self._config, self._directory, self._most = config, directory, most
        self._lock = threading.Lock()
        self._voices: dict[str, StoredVoice] = {}  # by id
        if default is not None:
            own = default if isinstance(default, Voice) else Voice.load(default, config)
            self._voices[DEFAULT] = StoredVoice(DEFAULT, DEFAULT, own, 0, "model")
        if directory is not None:
            try:
                directory.mkdir(parents=True, exist_ok=True)
                paths = sorted(directory.glob("*.json"))
            except OSError as error:
                raise cannot_write(directory, error) from error
            for path in paths:
                if not path.stem.endswith(_ABOUT):
                    self._read(path)

    def all(self) -> list[StoredVoice]:
        """Returns all voices, the model's own first."""
        with self._lock:
            return list(self._voices.values())

    def find(self, name: str, param: str = "voice") -> StoredVoice:
        """Returns the voice of a name or an id.

        Raises:
          ApiError: there is none.
        """
        with self._lock:
            found = self._voices.get(name) or self._by_name(name)
            if found is None:
                known = ", ".join([*(voice.name for voice in self._voices.values())][:10])
                message = (
                    f"voice {name[:64]!r} is unknown, expected one of {known or 'none'}, or {' or '.join(MADE_UP)}"
                )
                raise bad_request(param, message, "voice_not_found")
            return found

    def add(self, name: str, voice: Voice, consent: str) -> StoredVoice:
        """Keeps the voice of a recording.

        Raises:
          ApiError: the name is taken or no name, or there are too many voices.
          SparkError: it cannot be written.
        """
        return self._keep(name, voice, "upload", consent=consent)

    def mix(self, name: str, parts: Sequence[tuple[str, float]]) -> StoredVoice:
        """Keeps the voice in the weighted middle of others; see `mixing`.

        Raises:
          ApiError: a voice is unknown, a weight is not above 0, or as `add`.
          SparkError: it cannot be written.
        """
        found = [self.find(part, "mix") for part, _ in parts]
        weights = [weight for _, weight in parts]
        speaker = self._config.bicodec.speaker_encoder
        try:
            mixed = mix_voices([stored.voice for stored in found], weights, speaker)
        except SparkError as error:
            raise bad_request("mix", error) from error
        statements = [stored.consent for stored in found if stored.consent is not None]
        origin = [{"voice": stored.name, "weight": weight} for stored, weight in zip(found, weights, strict=True)]
        return self._keep(name, mixed, "mix", consent="; ".join(statements) or None, mixed_from=origin)

    def delete(self, name: str) -> StoredVoice:
        """Forgets a voice that a client has brought.

        Raises:
          ApiError: it is unknown, or not a client's.
          SparkError: its file cannot be removed.
        """
        with self._lock:
            stored = self._voices.get(name) or self._by_name(name)
            if stored is None:
                raise ApiError(404, f"voice {name[:64]!r} is unknown", param="voice_id", code="voice_not_found")
            if stored.source not in ("upload", "mix"):
                raise ApiError(403, f"voice {stored.name!r} is the server's own: it stays", param="voice_id")
            if self._directory is not None:
                for path in self._paths(stored.id):
                    try:
                        path.unlink(missing_ok=True)
                    except OSError as error:
                        raise cannot_write(path, error) from error
            del self._voices[stored.id]
            return stored

    def check_name(self, name: str) -> None:
        """Checks that a name is one and free, before the long work starts.

        Raises:
          ApiError: it is not.
        """
        with self._lock:
            self._check_name(name)

    def _keep(self, name: str, voice: Voice, source: str, **about: Any) -> StoredVoice:
        with self._lock:
            self._check_name(name)
            if sum(stored.source in ("upload", "mix") for stored in self._voices.values()) >= self._most:
                raise ApiError(409, f"there are {self._most} voices, no more are kept: delete one", code="too_many")
            number = f"voice_{secrets.token_hex(6)}"
            stored = StoredVoice(number, name, voice, int(time.time()), source, **about)
            if self._directory is not None:
                path, about_path = self._paths(number)
                write_json(about_path, {key: getattr(stored, key) for key in _ABOUT_KEYS})
                voice.save(path, self._config.sample_rate)
            self._voices[number] = stored
            return stored

    def _check_name(self, name: str) -> None:
        if not _NAME.fullmatch(name) or _ID.fullmatch(name) or name in MADE_UP:
            message = f"name is {name[:80]!r}, expected 1 to 64 letters, numbers, spaces, dots, dashes and underscores"
            raise bad_request("name", f"{message}, other than {', '.join(MADE_UP)} and ids")
        if name in self._voices or self._by_name(name) is not None:
            raise ApiError(409, f"there is a voice {name!r} already", param="name", code="name_taken")

    def _by_name(self, name: str) -> StoredVoice | None:
        return next((stored for stored in self._voices.values() if stored.name == name), None)

    def _paths(self, number: str) -> tuple[Path, Path]:
        return self._directory / f"{number}.json", self._directory / f"{number}{_ABOUT}.json"

    def _read(self, path: Path) -> None:
        """Takes a file of the folder; one that is no voice is told and left alone."""
        about_path = path.with_name(f"{path.stem}{_ABOUT}.json")
        try:
            voice = Voice.load(path, self._config)
            about = read_json(about_path) if about_path.exists() else {}
            bad = [key for key, kind in _ABOUT_KEYS.items() if about and not isinstance(about.get(key), kind)]
            if bad or not isinstance(about, dict):
                raise SparkError(f"{about_path}: {bad} is not what a server writes")
        except SparkError as error:
            warnings.warn(f"no voice is taken from it: {error}", stacklevel=4)
            return
        if about:
            stored = StoredVoice(path.stem, voice=voice, **{key: about[key] for key in _ABOUT_KEYS})
        else:
            stored = StoredVoice(path.stem, path.stem, voice, int(path.stat().st_mtime), "file")
        if self._voices.get(stored.id) or self._by_name(stored.name) or stored.name in MADE_UP:
            warnings.warn(f"{path}: there is a voice {stored.name!r} already; it is left out", stacklevel=4)
            return
        self._voices[stored.id] = stored
