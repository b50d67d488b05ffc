"""Make the embedded voice, from packages to a model directory, with the recipes beside this file.

    python tools/tiny_en/make_voice.py WORK [--until STEP] [--dry-run]
    python tools/tiny_en/make_voice.py WORK --smoke     # every step in little, in minutes: the voice says nothing

The steps are commands of this project that go on where a kill left them; --dry-run prints them. Everything lies in
WORK: two corpora, a folder for each training in `runs/`, and the model directory `model/`. WORK/STEP.done marks a
finished step, which is not run again. On two free cores all takes some 20 hours.

The corpus needs the packages of the extra `corpus` and WordNet (apt install wordnet-base).
"""

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from spark_jax.shared.files import write_text

TOOLS = Path(__file__).parent
RECIPES = TOOLS / "recipes"
MODEL = RECIPES / "model.yaml"


@dataclasses.dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
      name: of the step.
      command: run in the work folder, from which its paths are.
      result: a file or folder that it makes.
    """

    name: str
    command: tuple[str, ...]
    result: str


def plan(jobs: int, smoke: bool = False) -> list[Step]:
    """Returns the steps in their order.

    Args:
      jobs: processes that speak the corpus.
      smoke: all of it in little.
    """
    little = lambda *arguments: arguments if smoke else ()  # noqa: E731
    tool = lambda name, *arguments: (sys.executable, str(TOOLS / name), *arguments)  # noqa: E731
    spark = lambda *arguments: (sys.executable, "-m", "spark_jax.cli.main", *arguments)  # noqa: E731

    def train(kind: str, recipe: str, name: str) -> Step:
        path, run = str(RECIPES / f"{recipe}.yaml"), f"runs/{name}"
        optimizer = "generator_optimizer" if kind == "codec" else "optimizer"
        fewest = ("loop.steps=4", "loop.evaluate_every=4", f"{optimizer}.warmup_steps=1")
        # So few utterances leave nothing for a validation.
        settings = (f"model={MODEL}", *little(*fewest, "data.evaluation_split=train"))
        options = (word for setting in settings for word in ("--set", setting))
        return Step(name, spark("train", kind, path, "--output", run, *options), run)

    def encode(name: str, codec: str, corpus: str = "corpus") -> Step:
        output = f"runs/{name}.jsonl"
        options = ("--model", f"runs/{codec}", "--wav2vec2", "runs/wav2vec2", "--threads", "1")
        return Step(name, spark("prepare", "encode", corpus, output, *options), output)

    def copies(name: str, script: str, of: str, *options: str) -> Step:
        output = f"runs/{name}.jsonl"
        return Step(name, tool(script, f"runs/{of}.jsonl", output, *options), output)

    def check(of: str, corpus: str) -> Step:
        options = ("--corpus", corpus, "--codec", "runs/wave", "--jobs", str(jobs))
        return copies(f"{of}_checked", "check_labels.py", of, *options)

    def speak(name: str, *options: str) -> Step:
        options += ("--jobs", str(jobs), *little("--limit", "200"))
        return Step(name, tool("make_virtual_corpus.py", name, *options), f"{name}/metadata.jsonl")

    codes = ("runs/codes", "--corpus", "corpus", "--wav2vec2", "runs/wav2vec2", "--model", str(MODEL))
    codes += little("--batches", "4", "--steps", "20")
    # The codec of `wave` has the speaker branch of `voices`, and so its tokens.
    parts = "--wav2vec2 runs/wav2vec2 --bicodec runs/wave --llm runs/llm/best --voices runs/named".split()
    card = ("--model-card", str(TOOLS / "model_card.md"))
    words = "--recognizer runs/wav2vec2 --lexicon runs/lexicon.json".split()
    return [
        speak("corpus"),
        train("ctc", "wav2vec2", "wav2vec2"),
        Step("codes", tool("fit_codes.py", *codes), "runs/codes"),
        encode("ids", "codes"),
        copies("ids_swapped", "swap_takes.py", "ids"),
        train("codec", "voices", "voices"),
        encode("tokens", "voices"),
        copies("tokens_joined", "join_utterances.py", "tokens"),
        Step("named", tool("named_voices.py", "runs/tokens.jsonl", "runs/named", "--model", str(MODEL)), "runs/named"),
        train("codec", "wave", "wave"),
        check("tokens", "corpus"),
        copies("tokens_paced", "vary_pace.py", "tokens_checked"),
        # More text, for the language model alone: of few sentences it learns the sentences by heart.
        Step("more_text", tool("more_sentences.py", "more.txt"), "more.txt"),
        speak("more", *"--text more.txt --min-word-counts 1 --others".split(), ""),
        encode("more_tokens", "voices", "more"),
        check("more_tokens", "more"),
        copies("more_tokens_paced", "vary_pace.py", "more_tokens_checked"),
        copies("more_tokens_joined", "join_utterances.py", "more_tokens"),
        train("llm", "llm", "llm"),
        Step("lexicon", tool("make_lexicon.py", "corpus", "runs/lexicon.json"), "runs/lexicon.json"),
        Step("model", spark("assemble", "model", *parts, *words, *card, "--model", str(MODEL)), "model"),
    ]


def chosen(steps: Sequence[Step], only: str | None, until: str | None) -> list[Step]:
    """Returns the steps that are asked for.

    Raises:
      typer.BadParameter: there is no such step.
    """
    names = [step.name for step in steps]
    for name in (only, until):
        if name is not None and name not in names:
            raise typer.BadParameter(f"{name}: expected one of {', '.join(names)}")
    if only is not None:
        return [step for step in steps if step.name == only]
    return list(steps[: names.index(until) + 1] if until is not None else steps)


def run(work: Path, step: Step) -> None:
    """Runs a step unless it is done.

    Raises:
      typer.Exit: its command failed, or was stopped.
    """
    done = work / f"{step.name}.done"
    if done.exists():
        typer.echo(f"{step.name}: done before")
        return
    typer.echo(f"{step.name}: {shlex.join(step.command)}")
    code = subprocess.run(step.command, cwd=work, check=False).returncode
    if code or not is_complete(work / step.result):
        typer.echo(f"error: {step.name}: not finished, exit code {code}; the same command goes on from here", err=True)
        raise typer.Exit(code or 1)
    write_text(done, shlex.join(step.command) + "\n")


def is_complete(result: Path) -> bool:
    """Returns whether a step's result is there; of a training, whether it made all of its steps."""
    settings, metrics = result / "training.json", result / "metrics.jsonl"
    if not settings.exists():
        return result.exists()
    wanted = json.loads(settings.read_text(encoding="utf-8"))["loop"]["steps"]
    made = [json.loads(line)["step"] for line in metrics.read_text(encoding="utf-8").splitlines()]
    return bool(made) and made[-1] == wanted


def main(
    work: Annotated[Path, typer.Argument(help="folder of everything that is made; an unfinished one is continued")],
    only: Annotated[str | None, typer.Option(metavar="STEP", help="this step alone")] = None,
    until: Annotated[str | None, typer.Option(metavar="STEP", help="the last step to run")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="processes that speak the corpus")] = 2,
    smoke: Annotated[bool, typer.Option("--smoke", help="every step in little, in a folder of its own")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only print the commands")] = False,
) -> None:
    """Make the embedded voice."""
    steps = chosen(plan(jobs, smoke), only, until)
    if dry_run:
        for step in steps:
            typer.echo(f"{step.name}: {shlex.join(step.command)}")
        return
    (work / "runs").mkdir(parents=True, exist_ok=True)
    for step in steps:
        run(work, step)


if __name__ == "__main__":
    typer.run(main)
