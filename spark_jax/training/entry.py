"""What the entry points in train/ share: arguments, several processes, and errors as one line with exit code 2."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax

from spark_jax import compilation_cache
from spark_jax.config import to_mapping
from spark_jax.errors import SparkError
from spark_jax.training import distributed
from spark_jax.training.config import load_config

T = TypeVar("T")


def run(config_class: type[T], train: Callable[[T, Path], Any], description: str) -> None:
    """Parses `CONFIG --output DIR [--set a.b=value …]` and calls `train(config, output)`.

    The configuration as it was resolved is kept as `output/config.json`. A run that finds checkpoints in its
    output folder goes on from the newest. With several processes (`distributed.initialize`) each calls `train`.
    """
    arguments = _parse(description)
    try:
        config = load_config(config_class, arguments.config, arguments.set)
        distributed.initialize(
            arguments.coordinator, arguments.num_processes, arguments.process_id, arguments.heartbeat
        )
        _write_config(config, arguments.output)
        compilation_cache.enable()  # a resumed run starts fast
        train(config, arguments.output)
    except SparkError as error:
        print(f"error: {error}", file=sys.stderr)
        _exit(2)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = " ".join(str(error).split())[:300]
        where = f"process {jax.process_index()}"
        print(f"error: {where}: another process has ended or is out of reach ({reason})", file=sys.stderr)
        _exit(1)
    except Exception:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        _exit(1)


def _exit(code: int) -> None:
    """Ends the process; one of several at once, since at a regular exit JAX waits for the others, which wait for it."""
    sys.stderr.flush()
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        os._exit(code)
    sys.exit(code)


def _parse(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file; it holds only what differs from the defaults")
    parser.add_argument("--output", required=True, type=Path, help="folder of checkpoints, metrics and parts")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="overrides the file")
    parser.add_argument(
        "--profile", metavar="START:STOP", help="trace these steps into OUTPUT/profile; short for --set loop.profile=…"
    )
    group = parser.add_argument_group(
        "several processes", "found by themselves on TPU pods and under SLURM; else give all three"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num-processes", type=int, metavar="N")
    group.add_argument("--process-id", type=int, metavar="I", help="from 0")
    group.add_argument(
        "--heartbeat", type=int, default=distributed.HEARTBEAT_SECONDS, metavar="SECONDS",
        help="silence after which a process counts as dead and the others end (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.profile is not None:
        start, colon, stop = arguments.profile.partition(":")
        if not (colon and start.isdigit() and stop.isdigit() and int(start) < int(stop)):
            parser.error(f"argument --profile: expected START:STOP, two numbers of steps, not {arguments.profile!r}")
        arguments.set.append(f"loop.profile=[{start}, {stop}]")
    return arguments


def _write_config(config: Any, output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        if distributed.is_primary():
            temporary = output / "config.json.tmp"
            temporary.write_text(json.dumps(to_mapping(config), indent=2) + "\n")
            os.replace(temporary, output / "config.json")
    except OSError as error:
        raise SparkError(f"{output}: cannot be written ({error})") from error
