"""A text's jobs: when each piece may be spoken, what is spoken again, and which try is kept."""

import dataclasses

import numpy as np
import pytest
from helpers import tiny_config

from spark_jax.inference import spoken_text
from spark_jax.inference.audio import Speech
from spark_jax.inference.checks import Finding
from spark_jax.inference.codec import Codec
from spark_jax.inference.long_text import piece_seed, try_seed
from spark_jax.inference.prompts import Prompter
from spark_jax.inference.request import Request
from spark_jax.inference.speech_engine import SpeechEngine
from spark_jax.inference.spoken_text import SpokenText
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.voice import Voice
from spark_jax.text.tokenizer import SparkTokenizer
from spark_jax.text_config import TextConfig

CONFIG = dataclasses.replace(tiny_config.tiny(), text=TextConfig(max_length=20, join_sentences=False))
VOICE = Voice(np.zeros(32, np.int32), np.zeros(0, np.int32))
TEXT = "One two three. Four five six. Seven eight nine. Ten."


class Room(SpeechEngine):
    """What is asked of an engine for its jobs."""

    def __init__(self):
        pass

    def room(self, prompt):
        return 100

    def new_tokens(self, prompt, semantic_tokens):
        return semantic_tokens + 1


@pytest.fixture(scope="module")
def prompter(tiny_model_directory):
    folder = model_directory.load(tiny_model_directory, parts=()).tokenizer_directory
    return Prompter(Codec(CONFIG, {}), SparkTokenizer.load(folder), None)


@pytest.fixture
def text_of(prompter, monkeypatch):
    """Makes texts; the number of a speech's faults is its first sample."""
    fault = Finding("loop", 2.0, 1.0, "it goes in circles")
    monkeypatch.setattr(spoken_text, "check_speech", lambda text, samples, *_, **__: (fault,) * int(samples[0]))

    def make(**options):
        return SpokenText(Request(text=TEXT, **({"voice": VOICE, "retries": 2, "seed": 5} | options)), prompter, Room())

    return make


def speech(faults=0, tokens=10, reached_limit=False):
    return Speech(np.full(4, faults, np.float32), np.zeros(tokens, np.int32), np.zeros(32, np.int32), reached_limit)


def jobs(text):
    found = []
    while (job := text.next_job()) is not None:
        found.append(job)
    return found


def test_all_pieces_may_be_spoken_together_in_any_order(text_of):
    text = text_of()
    found = jobs(text)
    assert [number for number, _ in found] == [0, 1, 2, 3]
    assert [job.job.seed for _, job in found] == [piece_seed(5, number) for number in range(4)]
    pieces = [text.take(number, speech(tokens=number + 1)) for number in (2, 0, 3)]
    assert not text.over and jobs(text) == []
    pieces.append(text.take(1, speech(tokens=2)))
    assert text.over
    audio = text.audio(pieces)
    assert [span.text for span in audio.spans] == [piece.text for piece in text.plan.pieces]
    assert len(audio.semantic_ids) == 10
    assert not audio.checks and not audio.reached_limit and {span.tries for span in audio.spans} == {1}


def test_a_made_up_voice_is_that_of_the_first_piece(text_of):
    text = text_of(voice=None, gender="male")
    [(number, job)] = jobs(text)
    assert number == 0 and job.job.prompt.global_ids is None
    assert text.take(0, speech(faults=1)) is None
    [(number, job)] = jobs(text)  # again, and still nothing else
    assert number == 0 and job.job.prompt.global_ids is None
    text.take(0, speech())
    assert [number for number, _ in jobs(text)] == [1, 2, 3]
    assert text.voice is not None


@pytest.mark.parametrize(
    ("faults", "kept", "tries"),
    [([0], 0, 1), ([1, 0], 1, 2), ([3, 1, 2], 1, 3), ([1, 1, 1], 0, 3), ([2, 1, 1], 1, 3)],
)
def test_the_best_try_is_kept_and_told(text_of, faults, kept, tries):
    text = text_of()
    first, *_ = jobs(text)
    seeds = [first[1].job.seed]
    for number, count in enumerate(faults):
        piece = text.take(0, speech(count, tokens=number + 1))
        if piece is None:
            [(again, job)] = jobs(text)
            assert again == 0
            seeds.append(job.job.seed)
    assert len(piece.speech.semantic_ids) == kept + 1 and len(piece.checks) == faults[kept] and piece.tries == tries
    assert seeds == [try_seed(piece_seed(5, 0), number) for number in range(tries)] and len(set(seeds)) == tries


def test_what_was_heard_is_kept(text_of):
    text = text_of()
    jobs(text)
    assert text.take(0, speech(2, tokens=7)) is None
    jobs(text)
    piece = text.take(0, speech(3, tokens=8), heard=True)
    assert len(piece.speech.semantic_ids) == 8 and len(piece.checks) == 3 and piece.tries == 2


@pytest.mark.parametrize("options", [{"retries": 0}, {"greedy": True}])
def test_nothing_is_spoken_again_where_it_is_not_wanted_or_would_be_the_same(text_of, options):
    text = text_of(**options)
    jobs(text)
    assert text.take(0, speech(1)).tries == 1


def test_max_seconds_holds_for_all_pieces(text_of):
    text = text_of(max_seconds=0.5)  # 25 tokens
    pieces = []
    for expected, said in ((25, 10), (15, 10), (5, 5)):
        [(number, job)] = jobs(text)
        assert job.most == expected and not text.over
        pieces.append(text.take(number, speech(tokens=said, reached_limit=said == 5)))
    assert jobs(text) == [] and text.over and text.cut_off
    assert text.audio(pieces).reached_limit and len(text.audio(pieces).spans) == 3
