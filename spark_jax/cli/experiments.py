"""Commands that put a model to the paper's experiments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from spark_jax.cli.options import check_input_files
from spark_jax.errors import SparkError

MODEL_HELP = "Model directory. Default: the embedded voice."
ModelArgument = Annotated[Path | None, typer.Argument(metavar="[MODEL]", help=MODEL_HELP)]
Folder = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="DIR", help="For report.json, report.html and audio; one that was begun is continued."
    ),
]
Count = Annotated[int, typer.Option(min=1, help="Items; what an item is, see above.")]
Seed = Annotated[int, typer.Option(min=0, help="Of draws, and of the first synthesis.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds speak each text; their spread is reported.")]
MaxSeconds = Annotated[float | None, typer.Option(help="Of each synthesis. Default: as the model allows.")]
Judges = Annotated[
    str, typer.Option(help="Names with commas, or auto: those that are installed; the report names the others.")
]
Whisper = Annotated[
    str | None,
    typer.Option(metavar="SIZE|DIR", help="Whisper that hears words. Default: tiny.en; large-v3 for Chinese."),
]
Paraformer = Annotated[
    str | None, typer.Option(metavar="NAME|DIR", help="Paraformer that hears Chinese in Whisper's place.")
]
WavLM = Annotated[str | None, typer.Option("--wavlm", metavar="NAME|DIR", help="WavLM that compares speakers, too.")]
Slots = Annotated[int | None, typer.Option(min=1, help="Requests that decode together.")]
TextFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="One sentence a line. Default: fifty that come with spark-jax.")
]
Metadata = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="metadata.jsonl of a corpus. Default: the recordings that come with spark-jax."),
]
Split = Annotated[str, typer.Option(help="Of the corpus.")]


def codec(
    models: Annotated[list[Path] | None, typer.Argument(metavar="[MODEL…]", help=MODEL_HELP)] = None,
    output: Folder = Path("evaluation_codec"),
    metadata: Metadata = None,
    split: Split = "test",
    count: Count = 20,
    seed: Seed = 0,
    judges: Judges = "auto",
    whisper: Whisper = None,
    wavlm: WavLM = None,
) -> None:
    """Measure codecs: recordings beside what is left of them after encoding and decoding.

    Several models make one table. An item is a recording. Words, STOI, PESQ, mel-cepstral distance, DNSMOS, similarity
    of the speaker, harmonics-to-noise ratio, voicing and F0 beside the recording, and self-correlation at one token's
    lag, which is near 1 where speech whispers.
    """
    check_input_files(metadata)
    from spark_jax.evaluation.experiments.codec import CodecExperiment, describe
    from spark_jax.evaluation.recordings import read_recordings
    from spark_jax.model_directory import directory as model_directory

    paths = _labels(models or [None])
    plan = _plan(paths, count, seed, 1, None)
    facts = {label: model_directory.info(path) for label, path in paths.items()}
    descriptions = {
        label: f"{label}: {describe(fact.global_tokens, [fact.global_codes], fact.semantic_codes, fact.token_rate)}"
        for label, fact in facts.items()
    }
    experiment = CodecExperiment(plan, read_recordings(metadata, split), descriptions)
    _run(experiment, plan, paths, output, judges, whisper=whisper, wavlm=wavlm)


def tts(
    model: ModelArgument = None,
    output: Folder = Path("evaluation_tts"),
    text_file: TextFile = None,
    voices: Annotated[
        str, typer.Option(help="default, all (a model's voices share the count), or names with commas.")
    ] = "default",
    count: Count = 20,
    seed: Seed = 0,
    seeds: Seeds = 1,
    max_seconds: MaxSeconds = None,
    slots: Slots = None,
    judges: Judges = "auto",
    whisper: Whisper = None,
    paraformer: Paraformer = None,
) -> None:
    """Measure text to speech: words, quality, voice and speed.

    An item is a sentence. A model without a default voice makes up a female and a male one.
    """
    check_input_files(text_file)
    from spark_jax.evaluation.experiments.tts import TtsExperiment

    paths = _labels([model])
    chosen, share = _voices(next(iter(paths.values())), voices)
    plan = _plan(paths, max(1, -(-count // share)), seed, seeds, max_seconds)
    experiment = TtsExperiment(plan, _texts(text_file), chosen)
    _run(experiment, plan, paths, output, judges, slots, whisper=whisper, paraformer=paraformer)


def control(
    model: ModelArgument = None,
    output: Folder = Path("evaluation_control"),
    text_file: TextFile = None,
    count: Count = 20,
    seed: Seed = 0,
    seeds: Seeds = 1,
    max_seconds: MaxSeconds = None,
    slots: Slots = None,
    judges: Judges = "auto",
    whisper: Whisper = None,
    paraformer: Paraformer = None,
) -> None:
    """Measure control: gender, pitch and speed that are asked for, against what is measured.

    An item is an utterance of each of four parts: pitch levels, speed levels, all at once, and numbers.
    """
    check_input_files(text_file)
    from spark_jax.evaluation.experiments.control import ControlExperiment

    paths = _labels([model])
    plan = _plan(paths, count, seed, seeds, max_seconds)
    experiment = ControlExperiment(plan, _texts(text_file))
    _run(experiment, plan, paths, output, judges, slots, whisper=whisper, paraformer=paraformer)


def clone(
    model: ModelArgument = None,
    output: Folder = Path("evaluation_clone"),
    meta: Annotated[
        Path | None, typer.Option(metavar="FILE", help="meta.lst of Seed-TTS-eval, in English or Chinese.")
    ] = None,
    metadata: Metadata = None,
    split: Split = "test",
    text_file: TextFile = None,
    count: Count = 20,
    seed: Seed = 0,
    seeds: Seeds = 1,
    max_seconds: MaxSeconds = None,
    slots: Slots = None,
    judges: Judges = "auto",
    whisper: Whisper = None,
    paraformer: Paraformer = None,
    wavlm: WavLM = None,
) -> None:
    """Measure cloning: similarity between the floor of other speakers and the codec's ceiling, words, and pitch.

    An item is a text in the voice of a recording, without and with its transcript.
    """
    check_input_files(meta, metadata, text_file)
    if meta is not None and (metadata is not None or text_file is not None):
        raise SparkError("--meta excludes --metadata and --text-file: it has recordings and texts")
    from spark_jax.evaluation.experiments.clone import CloneExperiment, of_recordings
    from spark_jax.evaluation.recordings import read_recordings
    from spark_jax.evaluation.seed_tts import read_list

    paths = _labels([model])
    plan = _plan(paths, count, seed, seeds, max_seconds)
    if meta is not None:
        experiment = CloneExperiment(plan, read_list(meta))
    else:
        recordings = read_recordings(metadata, split)
        speakers = {str(recording.path): recording for recording in recordings}
        experiment = CloneExperiment(plan, of_recordings(recordings, _texts(text_file), count), speakers)
    _run(experiment, plan, paths, output, judges, slots, whisper=whisper, paraformer=paraformer, wavlm=wavlm)


def robustness(
    model: ModelArgument = None,
    output: Folder = Path("evaluation_robustness"),
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Hard texts: lists by category. Default: those of spark-jax."),
    ] = None,
    metadata: Metadata = None,
    split: Split = "test",
    retries: Annotated[int, typer.Option(min=0, help="How often a failed one is spoken again, with another seed.")] = 2,
    count: Count = 20,
    seed: Seed = 0,
    seeds: Seeds = 1,
    max_seconds: MaxSeconds = None,
    slots: Slots = None,
    judges: Judges = "auto",
    whisper: Whisper = None,
    paraformer: Paraformer = None,
    wavlm: WavLM = None,
) -> None:
    """Measure robustness: hard texts, and references with noise and reverberation; failures before and after retries.

    An item is a hard text, and a sentence in the voice of a bad reference.
    """
    check_input_files(texts, metadata)
    from spark_jax.evaluation.experiments.robustness import HARD_TEXTS, RobustnessExperiment
    from spark_jax.evaluation.recordings import read_recordings

    paths = _labels([model])
    plan = _plan(paths, count, seed, seeds, max_seconds)
    chosen, _ = _voices(next(iter(paths.values())), "default")
    request = next(iter(chosen.values()))
    recordings = read_recordings(metadata, split)
    lists = _lists(HARD_TEXTS if texts is None else texts)
    experiment = RobustnessExperiment(plan, lists, request, recordings, _texts(None), retries)
    _run(experiment, plan, paths, output, judges, slots, whisper=whisper, paraformer=paraformer, wavlm=wavlm)


def _plan(paths: dict[str, Path], count: int, seed: int, seeds: int, max_seconds: float | None) -> Any:
    from spark_jax.evaluation.experiments.base import Plan

    return Plan(tuple(paths), count, seed, seeds, max_seconds)


def _labels(models: Sequence[Path | None]) -> dict[str, Path]:
    """Returns model directories by the names that they have in reports."""
    from spark_jax.inference.codec import EMBEDDED_VOICE

    found: dict[str, Path] = {}
    for path in (EMBEDDED_VOICE if model is None else model for model in models):
        if not path.is_dir():
            raise SparkError(f"{path}: no such model directory")
        name = path.resolve().name or "model"
        label, number = name, 2
        while label in found:
            label, number = f"{name}-{number}", number + 1
        found[label] = path
    return found


def _voices(model: Path, asked: str) -> tuple[dict[str, dict[str, Any]], int]:
    """Returns what chooses each voice in a request, by its name, and by how many the count is divided."""
    from spark_jax.model_directory import directory as model_directory

    names = model_directory.info(model).voices
    made_up = {gender: {"gender": gender} for gender in ("female", "male")}
    if asked == "default":
        return ({"default": {}}, 1) if "default" in names else (made_up, 1)
    wanted = names if asked == "all" else [name.strip() for name in asked.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in names]:
        raise SparkError(f"{model}: no voice {unknown[0]!r}; it has {', '.join(names) or 'none'}")
    if not wanted:
        return made_up, 1
    share = len(wanted) if asked == "all" else 1
    return {name: {"voice": str(model / "voices" / f"{name}.json")} for name in wanted}, share


def _texts(text_file: Path | None) -> list[str]:
    from spark_jax.evaluation.protocols import HELD_OUT_SENTENCES, read_lines

    return read_lines(HELD_OUT_SENTENCES if text_file is None else text_file)


def _lists(path: Path) -> dict[str, list[str]]:
    from spark_jax.shared import files

    lists = files.read_json(path, "lists of texts by category")
    if not isinstance(lists, dict) or not lists or not all(isinstance(own, list) and own for own in lists.values()):
        raise SparkError(f"{path}: expected lists of texts by category")
    if wrong := [text for own in lists.values() for text in own if not isinstance(text, str) or not text.strip()]:
        raise SparkError(f"{path}: {wrong[0]!r} is no text")
    return lists


def _run(
    experiment: Any,
    plan: Any,
    paths: dict[str, Path],
    output: Path,
    judges: str,
    slots: int | None = None,
    **judge_models: str | None,
) -> None:
    """Runs an experiment and prints its tables."""
    from spark_jax.evaluation.experiments import run
    from spark_jax.evaluation.judges.registry import JudgeOptions
    from spark_jax.evaluation.speaking import LoadedModels
    from spark_jax.evaluation.text_report import as_text
    from spark_jax.model_directory import directory as model_directory

    rate = model_directory.info(next(iter(paths.values()))).token_rate
    options = JudgeOptions(language=experiment.language, token_seconds=1.0 / rate, **judge_models)
    digests = {label: run.digest(path) for label, path in paths.items()}
    models = LoadedModels(paths, slots)
    report = run.run_experiment(experiment, plan, models, digests, run.Judging(judges, options), output)
    typer.echo(as_text(report))
    typer.echo(f"{output / run.PAGE}")
