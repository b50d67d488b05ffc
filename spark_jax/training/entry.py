"""What the entry points in train/ share: arguments, and errors as one line with exit code 2."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from spark_jax import compilation_cache
from spark_jax.config import to_mapping
from spark_jax.errors import SparkError
from spark_jax.training.config import load_config

T = TypeVar("T")


def run(config_class: type[T], train: Callable[[T, Path], Any], description: str) -> None:
    """Parses `CONFIG --output DIR [--set a.b=value …]` and calls `train(config, output)`.

    The configuration as it was resolved is kept as `output/config.json`. A run that finds checkpoints in its
    output folder goes on from the newest.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="YAML file; it holds only what differs from the defaults")
    parser.add_argument("--output", required=True, type=Path, help="folder of checkpoints, metrics and parts")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="overrides the file")
    arguments = parser.parse_args()
    try:
        config = load_config(config_class, arguments.config, arguments.set)
        try:
            arguments.output.mkdir(parents=True, exist_ok=True)
            temporary = arguments.output / "config.json.tmp"
            temporary.write_text(json.dumps(to_mapping(config), indent=2) + "\n")
            os.replace(temporary, arguments.output / "config.json")
        except OSError as error:
            raise SparkError(f"{arguments.output}: cannot be written ({error})") from error
        compilation_cache.enable()  # a resumed run starts fast
        train(config, arguments.output)
    except SparkError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
