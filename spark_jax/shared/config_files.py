"""Configurations from YAML files, found by path or by name, which hold only what differs from the defaults; `--set`.

The recipes of configs/ are part of the package, so that `llm_0_5b` names the same file in every directory and install.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from spark_jax.config import from_mapping, to_mapping
from spark_jax.errors import SparkError, one_line
from spark_jax.shared import files

T = TypeVar("T")

SUFFIX = ".yaml"


def recipes_folder() -> Path:
    """Returns the folder of the recipes: inside the installed package, or configs/ beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "recipes"
    return installed if any(installed.glob(f"*{SUFFIX}")) else package.parent / "configs"


def recipes() -> list[str]:
    """Returns the names of all recipes."""
    return sorted(path.stem for path in recipes_folder().glob(f"*{SUFFIX}"))


def find_config(name_or_path: str | Path, beside: Path | None = None) -> Path:
    """Returns the YAML file that a command line or another configuration names.

    A file of that path comes first, then one in the folder `beside`, then a recipe of that name; `.yaml` may be left
    out of each.

    Args:
      name_or_path: such as `llm_0_5b`, `configs/llm_0_5b.yaml` or `mine/run`.
      beside: the folder of the configuration that names this one; None: it is named on the command line.

    Raises:
      SparkError: there is no such file and no such recipe; the message lists the recipes.
    """
    given = Path(name_or_path)
    if given.exists() and not given.is_dir():  # what cannot be a configuration is told when it is read
        return given
    named = given if given.suffix == SUFFIX else given.with_name(given.name + SUFFIX) if given.name else given
    of_name = [] if os.path.dirname(name_or_path) else [recipes_folder() / named]  # "./x" is a path
    for path in [*([beside / given, beside / named] if beside else []), *of_name, named]:
        if path.is_file():
            return path
    known = f"a YAML file or one of the recipes {', '.join(recipes())}"
    raise files.cannot_read(name_or_path, SparkError("is a folder" if given.is_dir() else "no such file"), known)


def load_config(cls: type[T], name_or_path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Returns a configuration from a YAML file and overrides `a.b=value`, whose values are read as YAML.

    Where the file names the sizes of a model by a path that only exists beside the file itself, the returned
    configuration has the path from the working directory.

    Args:
      name_or_path: as in `find_config`; None: the defaults.

    Raises:
      SparkError: the file cannot be read, a key is unknown, or a value has a wrong type; the message names the file and
        the key.
    """
    source, data = "defaults", {}
    if name_or_path is not None:
        path = find_config(name_or_path)
        source, data = str(path), read_yaml(path)
        _find_model(data, path.parent)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise SparkError(f"--set {override}: expected key=value")
        _assign(data, key.split("."), _value(value, override), override)
        source = f"{source} with --set {override}" if override == overrides[-1] else source
    # Merged over the defaults, so that a section that sets one key keeps the other defaults of this class.
    return from_mapping(cls, _merge(to_mapping(cls()), data) if isinstance(data, dict) else data, source)


def read_yaml(path: str | Path) -> Any:
    """Returns the content of a YAML file; {} of an empty one.

    Raises:
      SparkError: the file cannot be read or is not YAML.
    """
    try:
        return yaml.safe_load(files.read_text(path)) or {}
    except yaml.YAMLError as error:
        raise SparkError(f"{path}: not YAML ({one_line(error)})") from error


def _find_model(data: Any, folder: Path) -> None:
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, str) or folder == recipes_folder():
        return  # recipes name each other by name, which is the same everywhere
    try:
        found = find_config(model, beside=folder)
    except SparkError:
        return  # told when it is read, unless an override names another
    if found.is_relative_to(folder) and not Path(model).exists():
        data["model"] = str(found)


def _value(text: str, override: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SparkError(f"--set {override}: not YAML ({one_line(error)})") from error


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
