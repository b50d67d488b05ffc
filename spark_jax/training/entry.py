"""What the entry points in train/ share: arguments, several processes, and errors as one line with exit code 2."""

import argparse
import fcntl
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar

import jax

from spark_jax.config import SparkConfig, to_mapping
from spark_jax.errors import SparkError, one_line
from spark_jax.shared import compilation_cache, distributed
from spark_jax.shared.config_files import load_config
from spark_jax.shared.pytree import flatten

T = TypeVar("T")
_OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")  # no sign of a process that is gone


def run(config_class: type[T], train: Callable[[T, Path], Any], description: str) -> None:
    """Parses `CONFIG --output DIR [--set a.b=value …]` and calls `train(config, output)`.

    The configuration as it was resolved is kept as `output/config.json`, the model's sizes as `output/model.yaml`, so
    that the folder tells its parts' shapes wherever it is read. A run that finds checkpoints in its output folder goes
    on from the newest, and says what differs from the configuration there. With several processes
    (`distributed.initialize`) each calls `train`. An output folder has one run at a time.
    """
    arguments = _parse(description)
    output = Path(arguments.output)
    try:
        config = load_config(config_class, arguments.config, arguments.set)
        _refuse_addresses(config, arguments)
        distributed.initialize(
            arguments.coordinator, arguments.num_processes, arguments.process_id, arguments.heartbeat
        )
        with _one_run_in(output):
            _write_config(config, output)
            if jax.process_count() > 1 and jax.config.jax_compilation_cache_dir is None:
                # Only process 0 writes into the cache, and GPUs that compile a program wait for all others to do so.
                jax.config.update("jax_compilation_cache_dir", str(output / "compilation_cache"))
            compilation_cache.enable()  # a resumed run starts fast
            train(config, output)
    except SparkError as error:
        print(f"error: {error}", file=sys.stderr)
        _exit(2)
    except KeyboardInterrupt:  # the second signal: the others are not waited for
        if jax.process_count() == 1:
            raise
        _exit(130)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        if str(error).startswith(_OWN_FAULTS):
            traceback.print_exc()
            _exit(1)
        reason = one_line(error, 300)
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
    parser.add_argument("--output", required=True, help="folder of checkpoints, metrics and parts, on a mounted disk")
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
        "--heartbeat",
        type=int,
        default=distributed.HEARTBEAT_SECONDS,
        metavar="SECONDS",
        help="silence after which a process counts as dead and the others end (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if arguments.profile is not None:
        start, colon, stop = arguments.profile.partition(":")
        if not (colon and start.isdigit() and stop.isdigit() and int(start) < int(stop)):
            parser.error(f"argument --profile: expected START:STOP, two numbers of steps, not {arguments.profile!r}")
        arguments.set.append(f"loop.profile=[{start}, {stop}]")
    return arguments


def _refuse_addresses(config: Any, arguments: argparse.Namespace) -> None:
    """What looks like gs://bucket/folder would become the local folder gs:/bucket/folder."""
    values = flatten(to_mapping(config))
    named = {f"{arguments.config}: {key.replace('/', '.')}": value for key, value in values.items()}
    for name, value in {"--output": arguments.output, **named}.items():
        if isinstance(value, str) and "://" in value:
            raise SparkError(f"{name} is {value}, expected a path of a disk that is mounted here")


def _one_run_in(output: Path) -> TextIO:
    """Process 0 locks the folder until the file is closed, or the process ends in any way: two runs at once would undo
    each other's checkpoints and lines."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / ".lock").open("a")
    except OSError as error:
        raise SparkError(f"{output}: cannot be written ({error})") from error
    if distributed.is_primary():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SparkError(f"{output}: another run is going on in this folder") from None
        except OSError:
            pass  # a file system without locks
    return lock


def _write_config(config: Any, output: Path) -> None:
    """Keeps the configuration as `config.json` and the sizes as `model.yaml`; says what has changed in the former since
    the run began or last went on."""
    if not distributed.is_primary():
        return
    path, values = output / "config.json", to_mapping(config)
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = None
    text = json.dumps(values, indent=2) + "\n"
    if isinstance(before, dict):
        old, new = flatten(before), flatten(json.loads(text))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                name = key.replace("/", ".")  # as --set takes it
                distributed.log(f"{path}: {name} was {old.get(key)!r}, is {new.get(key)!r} from here on")
    sizes = json.dumps(to_mapping(load_config(SparkConfig, config.model)), indent=2) + "\n"  # JSON is YAML
    try:
        for name, content in {"config.json": text, "model.yaml": sizes}.items():
            temporary = output / f"{name}.tmp"
            temporary.write_text(content)
            os.replace(temporary, output / name)
    except OSError as error:
        raise SparkError(f"{output}: cannot be written ({error})") from error
