"""Makes the gallery of a model: a page of the documentation with speech to hear, and what judges say of each.

    python tools/make_gallery.py MODEL -o docs --work gallery_run

Without MODEL the embedded voice speaks. Writes gallery.md, and audio and spectrograms in assets/gallery, into the
folder of the documentation; mkdocs.yml needs a line for the page. Speech is made and judged in the folder --work, from
which a stopped run goes on. Judges that are not installed (extras `evaluation`, `evaluation-voices`) are left out.
"""

import html
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from spectrogram import write_spectrogram

from spark_jax.audio.write import write_audio
from spark_jax.errors import ends_with_a_line
from spark_jax.evaluation.cases import Case, Result
from spark_jax.evaluation.experiments.robustness import HARD_TEXTS
from spark_jax.evaluation.experiments.run import digest
from spark_jax.evaluation.judges.base import SAMPLE_RATE
from spark_jax.evaluation.judges.registry import JudgeOptions, choose_judges
from spark_jax.evaluation.judges.speaker import similarity
from spark_jax.evaluation.listening import hear_cases
from spark_jax.evaluation.recordings import Recording, read_recordings
from spark_jax.evaluation.run_folder import RunFolder
from spark_jax.evaluation.speaking import LoadedModels, speak_cases
from spark_jax.inference.codec import EMBEDDED_VOICE
from spark_jax.model_directory import directory as model_directory
from spark_jax.shared import files
from spark_jax.text.attributes import GENDERS, LEVELS

JUDGES = ("words", "signal", "pitch", "gender", "dnsmos", "resemblyzer")
SENTENCE = "The children played in the water all day."  # the demo's
OTHER = "She told the story to everybody in the village."
CLONED = ("held-f1", "held-m2", "librivox", "slt")
LABEL = "model"
SECTIONS = {
    "speakers": "Speakers",
    "pitch": "Pitch",
    "speed": "Speed",
    "clones": "Cloning",
    "long": "A long text",
}


def gallery_cases(voices: Sequence[str], model: Path, recordings: Sequence[Recording], seed: int) -> list[Case]:
    """Returns what is in the gallery."""

    def spoken(key: str, section: str, title: str, text: str, **request: Any) -> Case:
        options = {"seed": seed, **request}
        return Case(key, "speak", LABEL, text, request=options, labels={"section": section, "title": title})

    found = [
        spoken(f"speaker-{name}", "speakers", name, SENTENCE, voice=str(model / "voices" / f"{name}.json"))
        for name in voices
    ]
    found += [
        spoken(f"made-up-{gender}", "speakers", f"made up, {gender}", SENTENCE, gender=gender) for gender in GENDERS
    ]
    for control in ("pitch", "speed"):
        found += [
            spoken(
                f"{control}-{gender}-{level}",
                control,
                f"{gender}, {level.replace('_', ' ')}",
                SENTENCE,
                gender=gender,
                **{control: level},
            )
            for gender in GENDERS
            for level in LEVELS
        ]
    for speaker in CLONED:
        recording = next(item for item in recordings if item.speaker == speaker)
        labels = {"section": "clones", "title": f"{speaker} ({recording.kind}), the reference"}
        found.append(
            Case(f"reference-{speaker}", "recording", text=recording.text, source=str(recording.path), labels=labels)
        )
        for key, title, more in (
            ("plain", "clone without transcript", {}),
            ("continued", "clone with transcript", {"transcript": recording.text}),
        ):
            case = spoken(f"clone-{speaker}-{key}", "clones", title, OTHER, reference=str(recording.path), **more)
            case.labels["reference"] = f"reference-{speaker}"
            found.append(case)
    [text] = files.read_json(HARD_TEXTS)["long"]
    voice = {} if "default" in voices else {"gender": GENDERS[0]}
    found.append(spoken("long", "long", "300 words", text, **voice))
    return found


def scores(result: Result, of: dict[str, Result]) -> list[str]:
    """Returns what the judges found in a case, in short."""
    if result.speech.error:
        return [result.speech.error]
    found = []
    errors, words = result.value("words", "errors"), result.value("words", "words")
    if words:
        found.append("no word wrong" if not errors else f"{errors} of {words} words wrong")
    for judge, name, form in (
        ("pitch", "f0", "{:.0f} Hz"),
        ("pitch", "hnr", "HNR {:.1f} dB"),
        ("signal", "syllables_per_second", "{:.1f} syllables/s"),
        ("signal", "self_correlation", "self-correlation {:.2f}"),
        ("gender", "gender", "{}"),
        ("dnsmos", "overall", "DNSMOS {:.1f}"),
    ):
        if (value := result.value(judge, name)) is not None:
            found.append(form.format(value))
    if "reference" in result.case.labels:
        pair = [item.value("resemblyzer", "embedding") for item in (result, of[result.case.labels["reference"]])]
        if None not in pair:
            found.append(f"similarity {similarity(*pair):.2f}")
    if result.speech.checks:
        found.append(f"checks: {', '.join(result.speech.checks)}")
    return found


def page(results: Sequence[Result], model: str, seed: int) -> str:
    """Returns the page in Markdown."""
    of = {result.case.key: result for result in results}
    lines = [
        "# Gallery",
        "",
        f"What `{model}` says, nothing chosen by ear (seed {seed}), with what [the judges](evaluation.md#judges) find."
        " Self-correlation near 1 is whispering. `tools/make_gallery.py` made this page.",
    ]
    for section, title in SECTIONS.items():
        own = [result for result in results if result.case.labels["section"] == section]
        texts = list(dict.fromkeys(result.case.text for result in own if result.case.how == "speak"))
        lines += ["", f"## {title}", "", f"“{texts[0]}”", "", '<div class="gallery" markdown="0">']
        for result in own:
            key, name = result.case.key, html.escape(result.case.labels["title"])
            shown = html.escape("; ".join(scores(result, of)))
            if result.speech.error:
                lines.append(f"<figure><figcaption><b>{name}</b><br>{shown}</figcaption></figure>")
                continue
            lines.append(
                f'<figure><img src="assets/gallery/{key}.png" alt="Spectrogram" loading="lazy">'
                f'<audio controls preload="none" src="assets/gallery/{key}.mp3"></audio>'
                f"<figcaption><b>{name}</b><br>{shown}</figcaption></figure>"
            )
        lines.append("</div>")
    return "\n".join(lines) + "\n"


@ends_with_a_line()
def main(
    model: Annotated[Path | None, typer.Argument(help="model directory; default: the embedded voice")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder of the documentation")] = Path("docs"),
    work: Annotated[Path, typer.Option(help="folder for speech and judgments")] = Path("gallery_run"),
    seed: Annotated[int, typer.Option(min=0, help="of the synthesis")] = 0,
    max_seconds: Annotated[float | None, typer.Option(help="of each synthesis")] = None,
    judges: Annotated[str, typer.Option(help="names, or auto: those that are installed")] = "auto",
) -> None:
    """Speaks, judges, and writes page, audio and spectrograms."""
    path = EMBEDDED_VOICE if model is None else model
    info = model_directory.info(path)
    cases = gallery_cases(info.voices, path, read_recordings(), seed)
    if max_seconds is not None:
        for case in cases:
            case.request.update({"max_seconds": max_seconds} if case.how == "speak" else {})
    chosen, missing = choose_judges(JUDGES, judges, JudgeOptions(token_seconds=1 / info.token_rate))
    settings = {"model": digest(path), "seed": seed, "max_seconds": max_seconds, "cases": [c.key for c in cases]}
    run = RunFolder(work, settings)
    speak_cases(cases, LoadedModels({LABEL: path}), run)
    results = hear_cases(cases, chosen, run)
    folder = output / "assets" / "gallery"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for case in cases:
        if run.spoken[case.key].error is None:
            samples = run.samples(case.key)
            write_audio(folder / f"{case.key}.mp3", samples.astype("float32"), SAMPLE_RATE)
            write_spectrogram(folder / f"{case.key}.png", samples[: 8 * SAMPLE_RATE], SAMPLE_RATE)
    files.write_text(output / "gallery.md", page(results, path.resolve().name, seed))
    for name, why in missing.items():
        print(f"left out: {name}: {why}", file=sys.stderr)
    print(f"{output / 'gallery.md'}: {len(cases)} clips; mkdocs.yml needs `- Gallery: gallery.md` in its navigation")


if __name__ == "__main__":
    typer.run(main)
