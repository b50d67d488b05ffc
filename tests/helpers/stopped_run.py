"""A run that is stopped and gone on with, beside one that is not, in this process."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from spark_jax.training import loop


def whole_and_stopped(train: Callable[[Any, Path], Any], config: Any, folder: Path, after: int) -> None:
    """Trains in `folder/whole`, and in `folder/halves`, where a signal stops the run after some steps and it goes on.

    What the first run compiles, the others find.
    """
    cache = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    try:
        train(config, folder / "whole")
        fit, steps = loop.fit, []

        def stopping(run, state, step_at, data, evaluate):
            def stop_at(number):
                steps.append(number)
                if len(steps) == after:
                    os.kill(os.getpid(), signal.SIGTERM)
                return step_at(number)

            return fit(run, state, stop_at, data, evaluate)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(loop, "fit", stopping)
            train(config, folder / "halves")
        assert steps == list(range(after))
        train(config, folder / "halves")
    finally:
        jax.config.update("jax_compilation_cache_dir", cache)


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without the wall clock's figures."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if "seconds" not in name or name == "audio_seconds"}
        for line in lines
        if line["group"] != "run"
    ]
