#!/usr/bin/env python
"""Measures sentences of the embedded voice one at a time and in a batch: seconds of audio a second.

    python tools/measure_batch.py --count 200 --rounds 3

Both take turns in one process, so that a busy machine is unfair to neither; compiling is not counted. Processor seconds
are of the whole process: what other programs take is not in them.
"""

import argparse
import itertools
import statistics
import time
import warnings
from collections.abc import Callable
from importlib import resources

from spark_jax import SparkTTS
from spark_jax.inference.engine import EngineSettings
from spark_jax.inference.request import Request


def main() -> None:
    """Prints each round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="sentences")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=EngineSettings().slots)
    parser.add_argument("--block", type=int, default=EngineSettings().block)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    text = resources.files("spark_jax.evaluation").joinpath("held_out_sentences.txt").read_text()
    sentences = [line.strip() for line in text.splitlines() if line.strip()]
    chosen = itertools.islice(((seed, line) for seed in itertools.count() for line in sentences), arguments.count)
    requests = [Request(text=line, seed=seed, retries=0) for seed, line in chosen]
    # Room for a sentence; the default holds a minute of speech.
    tts = SparkTTS.load(engine=EngineSettings(slots=arguments.slots, block=arguments.block, capacity=1024))
    ways: dict[str, Callable[[], list]] = {
        "one at a time": lambda: [tts.speak(request) for request in requests],
        "in a batch": lambda: [audio for _, audio in tts.synthesize_batch(requests)],
    }
    for speak in ways.values():
        speak()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(arguments.rounds):
        for name, speak in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            seconds = sum(len(audio.samples) / audio.sample_rate for audio in speak())
            rates = seconds / (time.perf_counter() - wall), seconds / (time.process_time() - processor)
            found[name].append(rates)
            print(f"round {number + 1}, {name}: {rates[0]:.1f} s of audio a second, {rates[1]:.1f} a processor second")
    one, many = ([statistics.median(rates) for rates in zip(*found[name], strict=True)] for name in ways)
    for kind, alone, together in zip(("second", "processor second"), one, many, strict=True):
        print(f"a {kind}: {alone:.1f} one at a time, {together:.1f} in a batch: {together / alone:.2f} times")


if __name__ == "__main__":
    main()
