"""Where the weights of a model directory come from: `provenance.json`, and the model card made of it."""

import dataclasses
import datetime
import importlib.metadata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath

from spark_jax.config import from_mapping
from spark_jax.errors import SparkError
from spark_jax.model_directory.manifest import hash_files
from spark_jax.shared.files import read_json, write_json

PROVENANCE = "provenance.json"
_PACKAGES = ("spark-jax", "jax", "flax", "orbax-checkpoint")


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclasses.dataclass(frozen=True)
class Source:
    """A directory or repository that weights were taken from; `of` makes one.

    Attributes:
      name: the directory's own name, or the Hub id; never a path of the machine.
      role: what it gave: "model", or "llm" or "lora" where those came from elsewhere.
      files: SHA-256 by name relative to the source.
    """

    name: str
    role: str = "model"
    files: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in (self.name, *self.files):
            if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
                raise SparkError(f"provenance: {name!r} is a path of one machine, expected a name within the source")

    @classmethod
    def of(cls, folder: str | Path, files: Iterable[str | Path], *, name: str | None = None, role: str = "model"):
        """Returns a source with the hashes of its files (about 0.5 GB/s a core).

        Args:
          folder: the source's directory.
          files: those that were read, as paths below `folder` or relative to it.
          name: a Hub id; None: the directory's name.
          role: see the class.

        Raises:
          SparkError: a file cannot be read.
        """
        folder = Path(folder)
        relative = [(Path(file).relative_to(folder) if folder in Path(file).parents else Path(file)) for file in files]
        hashes = hash_files(folder, sorted(file.as_posix() for file in relative))
        return cls(folder.resolve().name if name is None else name, role, hashes)


@dataclasses.dataclass(frozen=True)
class Provenance:
    """How a model directory was made. `Provenance((Source.of(…), …))` adds versions and time.

    Without sources the arrays were given in memory, by a training for example.
    """

    sources: tuple[Source, ...] = ()
    versions: dict[str, str] = dataclasses.field(default_factory=_versions)
    date: str = dataclasses.field(default_factory=_now)  # UTC, ISO 8601

    def write(self, folder: Path) -> None:
        """Writes `provenance.json` into a folder.

        Raises:
          SparkError: the file cannot be written.
        """
        write_json(folder / PROVENANCE, dataclasses.asdict(self))

    def lines(self) -> list[str]:
        """Returns what a person wants to read: a line for each fact and for each source file."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        lines = [f"made {self.date} with {versions}"]
        for source in self.sources:
            lines.append(f"{source.role} from {source.name}")
            lines += [f"  {sha256}  {name}" for name, sha256 in source.files.items()]
        return lines


def read_provenance(directory: str | Path) -> Provenance | None:
    """Reads `provenance.json`; None where a directory has none.

    Raises:
      SparkError: the file is malformed.
    """
    path = Path(directory) / PROVENANCE
    return from_mapping(Provenance, read_json(path), str(path)) if path.exists() else None


def model_card(provenance: Provenance, parts: Mapping[str, tuple[int, str]]) -> str:
    """Returns the text of a model card: Markdown that says what a model directory is.

    Args:
      provenance: goes in whole.
      parts: parameter count and storage type of each part.
    """
    names = ", ".join(source.name for source in provenance.sources)
    table = "\n".join(f"| {name} | {count:,} | {dtype} |" for name, (count, dtype) in parts.items())
    facts = "\n".join(f"    {line}" for line in provenance.lines())
    terms = f"The license and the terms of use of {names} hold for these weights too." if names else ""
    return (
        f"# Model card{': ' + names if names else ''}\n\n"
        "A Spark-TTS text-to-speech model (BiCodec, wav2vec2 features, decoder LLM) in the format of spark_jax.\n\n"
        f"| part | parameters | stored as |\n|---|---|---|\n{table}\n\n{facts}\n\n{terms}".rstrip()
        + "\n"
    )
