"""Configurations from YAML files, which hold only what differs from the defaults, and from `--set`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from spark_jax.config import from_mapping, to_mapping
from spark_jax.errors import SparkError, one_line
from spark_jax.shared import files

T = TypeVar("T")


def load_config(cls: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Reads a configuration from a YAML file and overrides.

    Args:
      cls: the dataclass of the configuration.
      path: the file; None: the defaults.
      overrides: texts `a.b=value`, whose values are YAML.

    Raises:
      SparkError: the file cannot be read, a key is unknown, or a value has a wrong type; the message names the file and
        the key.
    """
    source, data = "defaults", {}
    if path is not None:
        source = str(path)
        text = files.read_text(path)
        try:
            data = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise SparkError(f"{source}: not YAML ({one_line(error)})") from error
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise SparkError(f"--set {override}: expected key=value")
        _assign(data, key.split("."), yaml.safe_load(value), override)
        source = f"{source} with --set {override}" if override == overrides[-1] else source
    # Merged over the defaults, so that a section that sets one key keeps the other defaults of this class.
    return from_mapping(cls, _merge(to_mapping(cls()), data) if isinstance(data, dict) else data, source)


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
