"""Gathers the recordings that come with the package for `spark-jax evaluate`.

    python tools/tiny_en/evaluation_recordings.py CORPUS -o spark_jax/evaluation/recordings

From the corpus of make_virtual_corpus.py it takes test sentences of each virtual speaker that is held out of training;
from the folder of LibriVox clips of apt pocketsphinx-testdata all five (a real speaker); from apt flite four sentences
of its voices rms, awb and slt, which were made of recordings of a speaker each. Writes FLAC at 16 kHz and
metadata.jsonl.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from spark_jax.audio.load import load_audio
from spark_jax.audio.write import write_audio
from spark_jax.data.manifest import read_jsonl
from spark_jax.errors import SparkError
from spark_jax.shared import files

SAMPLE_RATE = 16_000
OF_A_SPEAKER = 3
SECONDS = (1.5, 4.0)  # of a virtual speaker's sentences
LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
FLITE = {"rms": "male", "awb": "male", "slt": "female"}
SENTENCES = (
    "The old house stood at the end of the road.",
    "She sells fresh bread every morning.",
    "Nobody knew why the train was late.",
    "We walked along the river until dark.",
)


def virtual(corpus: Path) -> list[dict[str, Any]]:
    """Returns the records of held-out virtual speakers, with the path of the audio."""
    records = read_jsonl(
        corpus / "metadata.jsonl", ("kind", "speaker", "gender", "text", "wav_path", "duration"), "test"
    )
    of_speaker: dict[str, list[dict[str, Any]]] = {}
    for record in sorted(records, key=lambda record: (record["duration"], record["index"])):
        if record["kind"] == "held_out" and SECONDS[0] <= record["duration"] <= SECONDS[1]:
            of_speaker.setdefault(record["speaker"], []).append(record)
    return [
        {
            "speaker": speaker,
            "gender": record["gender"],
            "kind": "virtual",
            "text": record["text"],
            "path": corpus / record["wav_path"],
        }
        for speaker, own in sorted(of_speaker.items())
        for record in own[-OF_A_SPEAKER:]
    ]


def librivox(folder: Path) -> list[dict[str, Any]]:
    """Returns the clips of the real speaker, with their transcripts."""
    lines = files.read_text(folder / "transcription").splitlines()
    found = [re.fullmatch(r"<s> (.*) </s> \((.*)\)", line.strip()) for line in lines]
    return [
        {"speaker": "librivox", "gender": "male", "kind": "real", "text": match[1], "path": folder / f"{match[2]}.wav"}
        for match in found
        if match
    ]


def flite(folder: Path) -> list[dict[str, Any]]:
    """Speaks the sentences by flite into a folder, and returns their records."""
    found = []
    for voice, gender in FLITE.items():
        for number, text in enumerate(SENTENCES):
            path = folder / f"{voice}-{number}.wav"
            subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(path)], check=True)
            found.append({"speaker": voice, "gender": gender, "kind": "engine", "text": text, "path": path})
    return found


def main(
    corpus: Annotated[Path, typer.Argument(help="folder of make_virtual_corpus.py")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write")],
    clips: Annotated[Path, typer.Option(help="LibriVox clips with a file transcription")] = LIBRIVOX,
) -> None:
    """Writes the recordings and metadata.jsonl."""
    try:
        if shutil.which("flite") is None:
            raise SparkError("flite is not installed; expected apt install flite")
        output.mkdir(parents=True, exist_ok=True)
        lines, counts = [], {}
        with tempfile.TemporaryDirectory() as folder:
            for record in [*virtual(corpus), *librivox(clips), *flite(Path(folder))]:
                number = counts[record["speaker"]] = counts.get(record["speaker"], -1) + 1
                name = f"{record['speaker']}-{number}.flac"
                write_audio(output / name, load_audio(record.pop("path"), SAMPLE_RATE).astype("float32"), SAMPLE_RATE)
                lines.append({"wav_path": name, "split": "test", "language": "en", **record})
        files.write_text(output / "metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        print(f"{output}: {len(lines)} recordings of {len(counts)} speakers")
    except (SparkError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    typer.run(main)
