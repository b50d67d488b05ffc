import json
import types

import numpy as np
import pytest
import soundfile
from helpers.tiny_config import tiny

from spark_jax.cli import main as cli
from spark_jax.errors import SparkError
from spark_jax.evaluation import protocols
from spark_jax.evaluation.judges import recognizer
from spark_jax.inference import synthesize

SENTENCES = ["The storm grounded the ship.", "They had three children.", "A clear sky."]


@pytest.fixture
def corpus(tmp_path):
    """Three test utterances, each a constant whose value tells the recognizer below which sentence it is."""
    rows = []
    for number, text in enumerate(SENTENCES):
        soundfile.write(tmp_path / f"{number}.wav", np.full(1600, (number + 1) / 8, np.float32), 16000)
        rows.append({"split": "test", "text": text, "wav_path": f"{number}.wav"})
    rows.append({"split": "train", "text": "Not this.", "wav_path": "none.wav"})
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class ReadsTheValue:
    def transcribe(self, samples):
        return SENTENCES[round(float(samples[0]) * 8) - 1]


class RepeatsTheFirst:
    """A codec that loses nothing, and a synthesis that says the first sentence whatever the text."""

    config = tiny()

    def encode(self, samples):
        return np.zeros(32, int), samples

    def decode(self, global_ids, semantic_ids):
        return semantic_ids

    def synthesize(self, text, voice=None, seed=0):
        samples = np.full(3200, 1 / 8, np.float32)
        return types.SimpleNamespace(samples=samples, sample_rate=16000, reached_limit=text == SENTENCES[2])


@pytest.fixture
def fakes(monkeypatch):
    for package in ("jiwer", "whisper_normalizer"):
        pytest.importorskip(package, reason="needs the extra evaluation")
    monkeypatch.setattr(recognizer, "WhisperRecognizer", ReadsTheValue)
    monkeypatch.setattr(synthesize, "SparkTTS", types.SimpleNamespace(load=lambda directory: RepeatsTheFirst()))


@pytest.fixture
def run(capsys):
    """Runs `spark-jax evaluate words` in this process. Gives exit code, output, errors."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["evaluate", "words", *map(str, arguments)])
        return ended.value.code or 0, *capsys.readouterr()

    return run


def test_three_error_rates_are_printed_and_reported(fakes, run, corpus, tmp_path):
    report = tmp_path / "report.json"
    code, out, _ = run("--metadata", corpus, "--json", report, "--keep", tmp_path / "kept")
    assert code == 0
    for name in ("original recordings", "codec resynthesis", "text-to-speech"):
        assert name in out
    measured = json.loads(report.read_text())
    assert measured["recording"]["wer"] == measured["codec"]["wer"] == 0.0
    assert measured["tts"]["words"] == 12 and measured["tts"]["sentences"] == 3
    assert measured["tts"]["wer"] > 0.5 and measured["tts"]["cut_off"] == [SENTENCES[2]]
    assert {pair["text"] for pair in measured["tts"]["pairs"]} == set(SENTENCES)
    assert len(list((tmp_path / "kept").iterdir())) == 9


def test_a_text_file_alone_measures_synthesis_alone(fakes, run, tmp_path):
    (tmp_path / "text.txt").write_text(SENTENCES[0] + "\n\n")
    code, out, _ = run("--text-file", tmp_path / "text.txt")
    assert code == 0
    assert "text-to-speech" in out and "codec" not in out.splitlines()[-1]


@pytest.mark.parametrize("arguments", [(), ("--held-out",)])
def test_the_held_out_sentences_come_with_the_package(fakes, run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, _, _ = run(*arguments, "--count", 2, "--json", "report.json")
    heard = json.loads((tmp_path / "report.json").read_text())["tts"]["pairs"]
    lines = protocols.HELD_OUT_SENTENCES.read_text().splitlines()
    assert code == 0 and [pair["text"] for pair in heard] == lines[:2]


def test_the_draw_is_seeded_and_within_the_split(corpus):
    first = protocols.choose_sentences(corpus, "test", 2, None, seed=3)
    assert first == protocols.choose_sentences(corpus, "test", 2, None, seed=3)
    assert len(first) == 2 and all(sentence.text in SENTENCES for sentence in first)


def test_a_text_file_chooses_utterances_of_the_corpus(corpus, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(f"{SENTENCES[2]}\n{SENTENCES[0]}\n")
    chosen = protocols.choose_sentences(corpus, "test", 50, text, seed=0)
    assert [sentence.audio.name for sentence in chosen] == ["2.wav", "0.wav"]
    text.write_text("Nobody said this.\n")
    with pytest.raises(SparkError, match="Nobody said this"):
        protocols.choose_sentences(corpus, "test", 50, text, seed=0)


def test_bad_requests_are_one_line_and_exit_code_2(run, corpus, tmp_path):
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"split": "test"}\n')
    (tmp_path / "empty.txt").write_text("\n")
    for arguments, named in (
        (["--text-file", tmp_path / "empty.txt"], "has no line of text"),
        (["--text-file", corpus, "--held-out"], "--held-out and --text-file exclude each other"),
        (["--metadata", corpus, "--held-out"], "no utterance says"),
        (["--metadata", tmp_path / "no.jsonl"], "no.jsonl"),
        (["--metadata", torn], "torn.jsonl:1: "),
        (["--metadata", corpus, "--split", "dev"], "'dev'"),
        (["--metadata", corpus, "--measures", "beauty"], "'beauty'"),
        (["--metadata", corpus, "--json", tmp_path / "no" / "report.json"], "report.json: the folder"),
    ):
        code, _, errors = run(*arguments)
        assert code == 2
        assert errors.startswith("error: ") and errors.count("\n") == 1 and named in errors


def test_held_out_sentences_are_fifty_different_ones():
    lines = protocols.HELD_OUT_SENTENCES.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 50 and all(line.strip() for line in lines)
