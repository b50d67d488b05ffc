"""The settings that a run was started with, as they were resolved: `training.json` in its folder.

Older runs kept them as `config.json`, which now has the model's sizes, and the sizes as `model.yaml`. Such a run stays
as it is until it writes its parts for the first time; then both files go.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spark_jax.config import to_mapping
from spark_jax.shared import distributed
from spark_jax.shared.files import write_json
from spark_jax.shared.pytree import flatten

FILE = "training.json"
_OLD_FILES = ("config.json", "model.yaml")


def write_settings(output: Path, config: Any) -> None:
    """Writes the settings of a run and logs what has changed in them since it began or last went on.

    Raises:
      SparkError: the file cannot be written.
    """
    path, values = output / FILE, json.loads(json.dumps(to_mapping(config)))
    before = read_settings(output)
    if before is not None:
        old, new = flatten(before), flatten(values)
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                name = key.replace("/", ".")  # as --set takes it
                distributed.log(f"{path}: {name} was {old.get(key)!r}, is {new.get(key)!r} from here on")
    write_json(path, values)


def read_settings(output: Path) -> Mapping[str, Any] | None:
    """Returns the settings that a run has had before; None: there are none that can be read."""
    for name in (FILE, "config.json"):
        try:
            found = json.loads((output / name).read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and "format_version" not in found:
            return found
    return None


def remove_old(output: Path) -> None:
    """Removes the files in which an older run kept its settings and sizes; `training.json` has the settings by now."""
    try:
        if "format_version" in json.loads((output / "config.json").read_bytes()):
            return
    except (OSError, ValueError):
        return
    for name in _OLD_FILES:
        (output / name).unlink(missing_ok=True)
