"""Inputs that nobody made on purpose, through the commands, in a process of its own: `python anything.py FOLDER`.

Prints a line of JSON: what became of each, and the most memory that the process had.
"""

import contextlib
import io
import json
import os
import random
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
from helpers.random_text import random_text

CASES = Path(__file__).parents[1] / "assets" / "cases"
MAGIC = (b"", b"RIFF\xff\xff\xff\xffWAVEfmt ", b"fLaC\0\0\0\x22", b"OggS\0\2", b"ID3\4\0\0\0\0\0\0", b"\xff\xfb\x90\0")
MAGIC += (b"\0\0\0\x20ftypM4A ", b"\x1a\x45\xdf\xa3", b"\xff\xf1\x50\x80", b"FORM\0\0\0\xffAIFFCOMM", b".snd\0\0\0\x20")
MOST_SECONDS = 3.0  # of speech, of texts that are not short; the rest is asked for whole
SHORT = 60


def bytes_of(seed: int) -> bytes:
    """Anything: noise after the first bytes of a format, or a real file with bytes changed, left out or cut off."""
    rng = np.random.default_rng(seed)
    if seed % 2:
        return MAGIC[seed // 2 % len(MAGIC)] + rng.bytes(int(rng.integers(0, 20_000)))
    files = sorted(path for path in CASES.iterdir() if path.suffix in (".wav", ".flac", ".m4a"))
    content = bytearray(files[seed // 2 % len(files)].read_bytes())
    for _ in range(int(10 ** rng.uniform(0, 1.5))):
        content[int(rng.integers(0, 200 if rng.random() < 0.7 else len(content)))] = int(rng.integers(256))
    if rng.random() < 0.3:
        del content[int(rng.integers(len(content))) :]
    return bytes(content)


def text_of(seed: int) -> str:
    """1 to 2,000 characters of all kinds."""
    rng = random.Random(seed)
    return random_text(rng, int(10 ** rng.uniform(0, np.log10(2001))))


def outcome(*arguments: str) -> tuple[int, list[str]]:
    """Runs a command in this process; gives its exit code and what it wrote to standard error."""
    from spark_jax.cli import main as cli

    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main(arguments)
        except SystemExit as stop:
            return int(stop.code or 0), errors.getvalue().splitlines()
    raise AssertionError("no exit")


def fault(code: int, lines: list[str], output: str, speaks: bool) -> str:
    """Returns what is wrong with an outcome, or ""; removes the input and the output."""
    others = [line for line in lines if not line.startswith("warning: ")]
    left = sorted(os.listdir())
    Path("in.bin").unlink()
    if code == 0:
        if others or left != sorted(["in.bin", output]):
            return f"exit 0, {others[:3]}, files {left}"
        silent = speaks and is_silent(output)
        Path(output).unlink()
        return "silent, and not said" if silent and not any("silent" in line for line in lines) else ""
    if code != 2 or len(others) != 1 or not others[0].startswith("error: ") or len(others[0]) > 1000:
        return f"exit {code}, {others[:3]}"
    return "" if left == ["in.bin"] else f"exit 2, files {left}"


def is_silent(path: str) -> bool:
    samples, _ = soundfile.read(path)
    return len(samples) == 0 or not np.abs(samples).max() > 0.01


def say_texts(seeds: Iterable[int], made_up: bool = False) -> tuple[dict[str, str], int]:
    """Speaks texts in the current, empty folder; gives what is wrong, and how many were spoken.

    Args:
      made_up: the model has no voice, and makes no sense: one is made up, and two tokens are asked for.
    """
    faults, spoken = {}, 0
    for seed in seeds:
        text = text_of(seed)
        Path("in.bin").write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
        options = ["--gender", "male", "--max-seconds", "0.04"] if made_up else []
        if not made_up and len(text) > SHORT:
            options = ["--max-seconds", str(MOST_SECONDS)]
        source = ["--text-file", "in.bin"] if seed % 2 else ["--", text]
        code, lines = outcome("synthesize", "-o", "out.wav", "--seed", str(seed), *options, *source)
        spoken += code == 0
        if wrong := fault(code, lines, "out.wav", not made_up):
            faults[f"text {seed}"] = wrong
    return faults, spoken


def keep_voices(seeds: Iterable[int], spoken: bool = True) -> tuple[dict[str, str], int]:
    """Takes voices of files in the current, empty folder; gives what is wrong, and of how many there is one.

    Args:
      spoken: every fifth comes with a transcript.
    """
    faults, kept = {}, 0
    for seed in seeds:
        Path("in.bin").write_bytes(bytes_of(seed))
        transcript = ["--transcript", "What it says."] if spoken and seed % 5 == 4 else []
        code, lines = outcome("voice", "in.bin", "-o", "v.json", *transcript)
        kept += code == 0
        if wrong := fault(code, lines, "v.json", False):
            faults[f"file {seed}"] = wrong
    return faults, kept


def main() -> None:
    from spark_jax.cli import speech
    from spark_jax.inference.synthesize import SparkTTS

    tts = SparkTTS.load()
    speech._load = lambda *_, **__: tts  # once for all
    (wrong_texts, spoken), (wrong_files, kept) = say_texts(range(300)), keep_voices(range(200))
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    result = {"faults": wrong_texts | wrong_files, "spoken": spoken, "kept": kept, "memory": int(found[1]) * 1024}
    print(json.dumps(result))


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    main()
