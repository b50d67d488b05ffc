"""When words are heard: planted scores, streams and wholes, what cannot be known."""

import contextlib
import json

import numpy as np
import pytest
from helpers import tiny_model
from helpers.tiny_config import tiny

from spark_jax.cli import main as cli
from spark_jax.cli import speech
from spark_jax.errors import SparkError
from spark_jax.inference import placement
from spark_jax.inference.audio import Audio
from spark_jax.inference.long_text import Span
from spark_jax.inference.stream import AudioChunk
from spark_jax.inference.synthesize import SparkTTS
from spark_jax.inference.word_times import StreamAligner, WordAligner
from spark_jax.model_directory import directory as model_directory
from spark_jax.text.vocabulary import Speller, Vocabulary

LETTERS = list("abcdefghijklmnopqrstuvwxyz ")
HOP, EDGE = 320, 40  # samples; a frame is nearest from half of its field less half a hop on
VARIABLES = tiny_model.draw(model_directory.abstract_part("recognizer", tiny().wav2vec2, len(LETTERS) + 1))


@pytest.fixture
def aligner():
    speller = Speller(Vocabulary(LETTERS))
    return WordAligner(tiny(), VARIABLES, speller, placement.mesh_or_device(None))


def hear(aligner, monkeypatch, path):
    """The recognizer hears one letter a frame, "_" is the blank."""
    labels = [0 if letter == "_" else LETTERS.index(letter) + 1 for letter in path]

    def scores(variables, samples, lengths):
        found = np.full((len(samples), samples.shape[1] // HOP, len(LETTERS) + 1), -5.0, np.float32)
        found[0, range(len(labels)), labels] = -0.1
        return found

    monkeypatch.setattr(aligner, "_scores", scores)


def samples_of(path):
    return np.ones(len(path) * HOP + 2 * EDGE, np.float32)


def frames(words, start=0):
    return [((word.start - start - EDGE) / HOP, (word.end - start - EDGE) / HOP) for word in words]


def test_words_of_a_span(aligner, monkeypatch):
    path = "__hi__yyoou__"
    hear(aligner, monkeypatch, path)
    span = aligner.align_span(Span("Hi - you!", 1000, 1000 + len(samples_of(path))), samples_of(path))
    assert [word.text for word in span.words] == ["Hi -", "you!"]
    assert frames(span.words, 1000) == [(2, 4), (6, 11)]


def test_words_that_cannot_be_written_lie_between_the_others(aligner, monkeypatch):
    path = "__hi_xxxxxxxx_you__"
    hear(aligner, monkeypatch, path)
    samples = samples_of(path)
    [first, one, other, last] = aligner.align_span(Span("Hi 12 345678 you!", 0, len(samples)), samples).words
    assert [word.text for word in (one, other)] == ["12", "345678"]
    assert frames([first, last]) == [(2, 4), (14, 17)]
    assert frames([one, other]) == [(5, 7), (7, 13)]  # by letters
    assert aligner.align_span(Span("1 2 and 3", 0, len(samples)), samples).words == ()  # most of them
    assert aligner.align_span(Span("a" * 40, 0, len(samples)), samples).words == ()  # no room
    assert aligner.align_span(Span("Hi", 0, 100), samples[:100]).words == ()


def test_a_stream_is_aligned_as_its_whole(aligner):
    """By a recognizer of random weights."""
    samples = tiny_model.speech(2.5).astype(np.float32)
    spans = (Span("Hello there.", 1600, 20_000), Span("And so on.", 23_200, len(samples)))
    audio = Audio(samples, 16_000, np.zeros(0, np.int32), np.zeros(0, np.int32), False, spans)
    whole = aligner.align(audio).spans
    for span in whole:
        edges = [span.start, *(edge for word in span.words for edge in (word.start, word.end)), span.end]
        assert edges == sorted(edges) and " ".join(word.text for word in span.words) == span.text
    for own, expected in ((aligner, whole), (None, spans)):
        stream = StreamAligner(own)
        for start in range(0, len(samples), 4000):
            chunk = AudioChunk(samples[start : start + 4000], 16_000, start, 0, "")
            stream.push(chunk, [span for span in spans if span.end <= start])
            assert len(stream._held) <= 30_000
        stream.push(None, spans)
        assert tuple(stream.spans) == expected


def test_labels_must_be_those_of_the_recognizer(tiny_model_directory):
    with pytest.raises(SparkError, match=r"vocabulary\.json has 3 labels with the blank, the recognizer 28"):
        WordAligner(tiny(), VARIABLES, Speller(Vocabulary(["a", "b"])), placement.mesh_or_device(None))
    with pytest.raises(SparkError, match="needs recognizer, loaded are only bicodec"):
        SparkTTS.load(tiny_model_directory, parts=("bicodec",)).aligner  # noqa: B018


class FakeTTS:
    """Speaks two pieces, whole and as a stream; of the model only the recognizer is loaded."""

    def __init__(self, model):
        self.config, self.aligner = tiny(), SparkTTS.load(model, parts=("recognizer",)).aligner
        samples = tiny_model.speech(2.0).astype(np.float32)
        spans = (Span("Hello there.", 0, 15_000), Span("And so on.", 18_200, 32_000))
        self.audio = Audio(samples, 16_000, np.zeros(0, np.int32), np.zeros(0, np.int32), False, spans)

    def speak(self, request):
        return self.audio

    def stream(self, request, latency):
        chunks = [AudioChunk(self.audio.samples[i : i + 3000], 16_000, i, 0, "") for i in range(0, 32_000, 3000)]
        return FakeStream(chunks, self.audio.spans)


class FakeStream(contextlib.nullcontext):
    sample_rate, checks = 16_000, ()

    def __init__(self, chunks, spans):
        super().__init__(self)
        self._chunks, self._spans, self._given = iter(chunks), spans, 0

    def __next__(self):
        self._given += 3000
        return next(self._chunks)

    @property
    def spans(self):
        return [span for span in self._spans if span.end <= self._given - 3000]


def test_subtitles_have_words_where_the_model_has_a_recognizer(tmp_path, monkeypatch):
    model = tmp_path / "model"
    model_directory.write_parts(model, tiny(), {"recognizer": VARIABLES})
    Vocabulary(LETTERS).save(model / "vocabulary.json")
    monkeypatch.chdir(tmp_path)
    asked, tts, found = [], FakeTTS(model), []
    monkeypatch.setattr(speech, "_load", lambda directory, *parts, slots=None: [asked.append(parts), tts][1])
    for more in (["-o", "out.wav"], ["-o", "grown.wav", "--stream"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["synthesize", "Hello there.", "--model", str(model), *more, "--subtitles", "out.json"])
        assert not ended.value.code
        found.append(json.loads((tmp_path / "out.json").read_text()))
    assert found[0] == found[1]
    assert [[word["text"] for word in span["words"]] for span in found[0]] == [
        ["Hello", "there."],
        ["And", "so", "on."],
    ]
    assert asked == [("bicodec", "wav2vec2", "llm", "recognizer")] * 2
    with pytest.raises(SystemExit):
        cli.main(["synthesize", "Hello there.", "--model", str(model), "-o", "out.wav"])
    assert asked[-1] == ("bicodec", "wav2vec2", "llm")
