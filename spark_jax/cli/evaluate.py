"""Commands that measure a voice."""

from pathlib import Path
from typing import Annotated

import typer

from spark_jax.cli import experiments
from spark_jax.cli.options import ModelOption, check_input_files, check_output_file, group
from spark_jax.errors import SparkError

app = group("Measure a voice.")
for command in (experiments.codec, experiments.tts, experiments.control, experiments.clone, experiments.robustness):
    app.command()(command)


@app.command()
def words(
    model: ModelOption = None,
    metadata: Annotated[
        Path | None, typer.Option(metavar="FILE", help="metadata.jsonl of a corpus, for its recordings.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of the corpus, to draw sentences from.")] = "test",
    text_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="One sentence a line. Default without --metadata: as --held-out."),
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="The fifty sentences that come with spark-jax, in place of --text-file.")
    ] = False,
    count: Annotated[int, typer.Option(min=1, help="At most so many sentences.")] = 50,
    measures: Annotated[str, typer.Option(help="Some of recording, codec, tts.")] = "recording,codec,tts",
    seed: Annotated[int, typer.Option(help="Of the draw and of the synthesis.")] = 0,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="Where a report with all sentences goes.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the audio that was judged.")] = None,
) -> None:
    """Measure word error rates of a voice: of recordings, of their codec resynthesis, and of text-to-speech.

    The judge is Whisper tiny.en (pip install "spark-jax[evaluation]"). The sentences are a seeded draw from the
    split, or the lines of the text file; with --metadata too, the utterances whose text is a line of the file. Without
    recordings text-to-speech alone is measured.
    """
    if held_out and text_file is not None:
        raise SparkError("--held-out and --text-file exclude each other: give one of them")
    check_input_files(metadata, text_file)
    if report is not None:
        report = check_output_file(report)
    from spark_jax.evaluation.report import check_measures, table, to_json

    names = measures.split(",")
    check_measures(names)
    from spark_jax.evaluation import protocols  # imports JAX
    from spark_jax.evaluation.judges.recognizer import WhisperRecognizer
    from spark_jax.shared import files

    text_file = protocols.HELD_OUT_SENTENCES if held_out else text_file
    sentences = protocols.choose_sentences(metadata, split, count, text_file, seed)
    judge = WhisperRecognizer()
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    from spark_jax.inference.synthesize import SparkTTS

    results = protocols.evaluate_words(SparkTTS.load(model), judge, sentences, names, seed, keep)
    typer.echo(table(results))
    if report is not None:
        files.write_json(report, to_json(results))
