"""Configurations from YAML files that hold only what differs from the defaults, and `--set`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from spark_jax.config import from_mapping, to_mapping
from spark_jax.errors import SparkError, one_line

T = TypeVar("T")


def load_config(cls: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """A configuration from a YAML file (None: the defaults) and overrides `a.b=value` (values read as YAML).

    Raises:
      SparkError: a file that cannot be read, an unknown key, or a value of a wrong type; the message names
        the file and the key.
    """
    source, data = "defaults", {}
    if path is not None:
        source = str(path)
        try:
            data = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError) as error:
            raise SparkError(f"{source}: cannot be read ({error})") from error
        except yaml.YAMLError as error:
            raise SparkError(f"{source}: not YAML ({one_line(error)})") from error
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise SparkError(f"--set {override}: expected key=value")
        _assign(data, key.split("."), yaml.safe_load(value), override)
        source = f"{source} with --set {override}" if override == overrides[-1] else source
    # Merged over the defaults, so that a section that sets one key keeps this run's other defaults.
    return (
        from_mapping(cls, _merge(to_mapping(cls()), data), source)
        if isinstance(data, dict)
        else (from_mapping(cls, data, source))
    )


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if nested else value
    return merged


def _assign(data: Any, path: list[str], value: Any, override: str) -> None:
    for key in path[:-1]:
        if not isinstance(data, dict) or not isinstance(data.setdefault(key, {}), dict):
            raise SparkError(f"--set {override}: {key} is not a mapping")
        data = data[key]
    data[path[-1]] = value
