"""Starts a training: its configuration, several processes, one run a folder, errors as one line with an exit code."""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from spark_jax.config import to_mapping
from spark_jax.errors import SparkError, one_line
from spark_jax.shared import compilation_cache, distributed
from spark_jax.shared.config_files import load_config
from spark_jax.shared.folder_lock import lock_folder
from spark_jax.shared.pytree import flatten
from spark_jax.training.catalog import TRAININGS
from spark_jax.training.checkpoint import check_not_past
from spark_jax.training.settings import write_settings

_OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")  # no sign of a process that is gone
_ADDRESS = re.compile(r"^([a-z][a-z0-9+.-]+):/+")  # two letters and more: one is a drive


def launch(
    kind: str,
    config: str,
    output: str | Path,
    overrides: Sequence[str] = (),
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat: int = distributed.HEARTBEAT_SECONDS,
) -> None:
    """Trains by a configuration, from scratch or on from the newest checkpoint in the output folder.

    The settings as they were resolved are kept as `output/training.json`; a run that goes on says what differs from
    those there. With several processes (`distributed.initialize`) each calls `train`. An output folder has one run at a
    time.

    Args:
      kind: "llm", "codec" or "ctc".
      config: a recipe's name, or the path of a YAML file.
      output: folder of the run.
      overrides: `a.b=value`, over the file.
      coordinator, num_processes, process_id: of several processes, see `distributed.initialize`.
      heartbeat: seconds of silence after which a process counts as dead and the others end.

    Raises:
      SystemExit: 2 after an error of the input, which stands in one line on standard error; in one of several
        processes also 1 after any other error and 130 after a second signal. A run of one process raises these.
    """
    training, output = TRAININGS[kind], Path(output)
    try:
        settings = load_config(training.config, config, overrides)
        _refuse_addresses(settings, config, output)
        distributed.initialize(coordinator, num_processes, process_id, heartbeat)
        # Two runs at once would undo each other's checkpoints and lines.
        with lock_folder(output, exclusive=distributed.is_primary()):
            check_not_past(output, settings.loop.steps)
            if distributed.is_primary():
                write_settings(output, settings)
            if jax.process_count() > 1 and jax.config.jax_compilation_cache_dir is None:
                # Only process 0 writes into the cache, and GPUs that compile a program wait for all others to do so.
                jax.config.update("jax_compilation_cache_dir", str(output / "compilation_cache"))
            compilation_cache.enable()  # a resumed run starts fast
            training.train(settings, output)
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


def _refuse_addresses(settings: Any, config: str, output: Path) -> None:
    """What looks like gs://bucket/folder would become the local folder gs:/bucket/folder."""
    given = {"--output": _ADDRESS.sub(r"\1://", os.fspath(output))}  # of two slashes pathlib leaves one
    given |= {f"{config}: {key.replace('/', '.')}": value for key, value in flatten(to_mapping(settings)).items()}
    for name, value in given.items():
        if isinstance(value, str) and "://" in value:
            raise SparkError(f"{name} is {value}, expected a path of a disk that is mounted here")
