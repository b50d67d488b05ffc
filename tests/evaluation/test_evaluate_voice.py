import importlib.util
import json
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from spark_jax.errors import SparkError

TOOL = Path(__file__).parents[2] / "spark_jax" / "evaluation" / "evaluate_voice.py"
SENTENCES = ["The storm grounded the ship.", "They had three children.", "A clear sky."]


def load_tool():
    spec = importlib.util.spec_from_file_location("evaluate_voice", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


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
    monkeypatch.setattr(tool, "WhisperRecognizer", ReadsTheValue)
    monkeypatch.setattr(tool.spark_jax, "SparkTTS", types.SimpleNamespace(load=lambda directory: RepeatsTheFirst()))


def invoke(*arguments):
    app = tool.typer.Typer()
    app.command()(tool.main)
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_three_error_rates_are_printed_and_reported(fakes, corpus, tmp_path):
    report = tmp_path / "report.json"
    result = invoke("--metadata", corpus, "--json", report, "--keep", tmp_path / "kept")
    assert result.exit_code == 0
    for name in ("original recordings", "codec resynthesis", "text-to-speech"):
        assert name in result.output
    measured = json.loads(report.read_text())
    assert measured["recording"]["wer"] == measured["codec"]["wer"] == 0.0
    assert measured["tts"]["words"] == 12 and measured["tts"]["sentences"] == 3
    assert measured["tts"]["wer"] > 0.5 and measured["tts"]["cut_off"] == [SENTENCES[2]]
    assert {pair["text"] for pair in measured["tts"]["pairs"]} == set(SENTENCES)
    assert len(list((tmp_path / "kept").iterdir())) == 9


def test_a_text_file_alone_measures_synthesis_alone(fakes, tmp_path):
    (tmp_path / "text.txt").write_text(SENTENCES[0] + "\n\n")
    result = invoke("--text-file", tmp_path / "text.txt")
    assert result.exit_code == 0
    assert "text-to-speech" in result.output and "codec" not in result.output.splitlines()[-1]


def test_the_draw_is_seeded_and_within_the_split(corpus):
    first = tool.choose_sentences(corpus, "test", 2, None, seed=3)
    assert first == tool.choose_sentences(corpus, "test", 2, None, seed=3)
    assert len(first) == 2 and all(sentence.text in SENTENCES for sentence in first)


def test_a_text_file_chooses_utterances_of_the_corpus(corpus, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(f"{SENTENCES[2]}\n{SENTENCES[0]}\n")
    chosen = tool.choose_sentences(corpus, "test", 50, text, seed=0)
    assert [sentence.audio.name for sentence in chosen] == ["2.wav", "0.wav"]
    text.write_text("Nobody said this.\n")
    with pytest.raises(SparkError, match="Nobody said this"):
        tool.choose_sentences(corpus, "test", 50, text, seed=0)


def test_bad_requests_are_one_line_and_exit_code_2(corpus, tmp_path):
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"split": "test"}\n')
    for arguments, named in (
        ([], "--text-file"),
        (["--metadata", tmp_path / "no.jsonl"], "no.jsonl"),
        (["--metadata", torn], "line 1"),
        (["--metadata", corpus, "--split", "dev"], "'dev'"),
        (["--metadata", corpus, "--measures", "beauty"], "'beauty'"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1 and named in result.stderr


def test_held_out_sentences_are_fifty_different_ones():
    lines = tool.read_lines(TOOL.parents[2] / "tests" / "assets" / "held_out_sentences.txt")
    assert len(lines) == len(set(lines)) == 50
