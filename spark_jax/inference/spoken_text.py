"""A request's text on its way to speech: the jobs of its pieces, and what became of them.

Whoever speaks asks for jobs and hands in their speech, one after the other or many at a time; what comes of a text does
not depend on it. Every piece is looked at (`checks`), and one that fails is spoken again with another seed; the best
try is kept.
"""

import collections
import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np

from spark_jax.config import SparkConfig
from spark_jax.inference import long_text
from spark_jax.inference.audio import Audio, Speech
from spark_jax.inference.checks import Finding, check_speech
from spark_jax.inference.controls import ignored_options
from spark_jax.inference.engine import Job
from spark_jax.inference.long_text import Piece, Plan, join_pieces, piece_seed, plan_pieces
from spark_jax.inference.prompts import Prompter
from spark_jax.inference.request import Request
from spark_jax.inference.speech_engine import SpeechEngine, SpeechJob
from spark_jax.model_directory.voice import Voice
from spark_jax.text.reading import read_text


@dataclasses.dataclass(frozen=True, eq=False)
class SpokenPiece:
    """A piece of a text that has been spoken.

    Attributes:
      number: in the text, from 0.
      piece: what was to be said.
      speech: the best try.
      checks: what is wrong with it.
      tries: how often it was spoken.
    """

    number: int
    piece: Piece
    speech: Speech
    checks: tuple[Finding, ...]
    tries: int


def plan_request(request: Request, config: SparkConfig) -> tuple[Plan, list[str]]:
    """Returns the pieces in which a request's text is spoken, and what the model cannot do of what it asks for.

    Raises:
      SparkError: there is nothing to say.
    """
    reading = read_text(request.text, config.text, request.normalize)
    return plan_pieces(reading, config), [*ignored_options(request, config.text), *reading.warnings]


class SpokenText:
    """The pieces of one request; nothing is done before the first `next_job`."""

    def __init__(self, request: Request, prompter: Prompter, speaker: SpeechEngine):
        """Args:
        request: what is said.
        prompter: makes the prompts.
        speaker: says how long answers may be.
        """
        self.request, self._prompter, self._speaker = request, prompter, speaker
        self.plan = Plan(())
        self.voice: Voice | None = None
        self.cut_off = False  # `max_seconds` ended before the text
        self._begun = False
        self._next = 0  # the first piece that has no job yet
        self._again: collections.deque[int] = collections.deque()  # pieces that are spoken again
        self._counts: dict[int, int] = {}  # allowed semantic tokens of the pieces that are being spoken
        self._best: dict[int, SpokenPiece] = {}  # of those that are spoken again, so far
        self._taken = self._said = 0  # pieces, and their semantic tokens

    @property
    def over(self) -> bool:
        """Returns whether all pieces are taken that there will be."""
        return (
            self._begun
            and not self._counts
            and not self._again
            and (self.cut_off or self._next == len(self.plan.pieces))
        )

    def next_job(self) -> tuple[int, SpeechJob] | None:
        """Returns the number of a piece and its job; None: there is none now, as others must be taken first, or at all.

        A piece waits for those before it where it needs what they bring: the voice that the first one makes up, or
        what is left of `max_seconds`.

        Warns:
          UserWarning: at the first call, for what the model cannot do of what is asked for.

        Raises:
          SparkError: the request cannot be spoken.
        """
        if not self._begun:
            self._begin()
        if self._again:
            number = self._again.popleft()
            return number, self._job(number, self._best[number].tries)
        if self.cut_off or self._next == len(self.plan.pieces):
            return None
        needed = self.request.max_seconds is not None or self.voice is None
        if needed and self._taken < self._next:
            return None
        number, self._next = self._next, self._next + 1
        job = self._job(number, 0)
        if job is None:
            self._next, self.cut_off = number, True
            return None
        return number, job

    def take(self, number: int, speech: Speech, *, heard: bool = False) -> SpokenPiece | None:
        """Takes the speech of a job; returns what is kept of the piece, or None, where it is spoken again.

        Args:
          number: of the piece.
          speech: of it.
          heard: it was given out already, and cannot be taken back.
        """
        count, request = self._counts.pop(number), self.request
        piece, earlier = self.plan.pieces[number], self._best.pop(number, None)
        checks = check_speech(
            piece.text,
            speech.samples,
            self._prompter.config.sample_rate,
            speech.semantic_ids,
            reached_limit=speech.reached_limit,
            syllables_per_second=request.syllables_per_second,
        )
        tries = 1 if earlier is None else earlier.tries + 1
        found = SpokenPiece(number, piece, speech, checks, tries)
        if earlier is not None and not heard and len(earlier.checks) <= len(checks):
            found = dataclasses.replace(earlier, tries=tries)
        # Another try has no more room than this one had.
        limited = speech.reached_limit and request.max_seconds is not None
        wrong = [finding for finding in checks if not (finding.name == "no_end" and limited)]
        if wrong and found.checks and not heard and not request.greedy and tries <= request.retries:
            self._best[number] = found
            self._again.append(number)
            self._counts[number] = count
            return None
        self._taken += 1
        self._said += len(found.speech.semantic_ids)
        if self.voice is None:  # made up for the first piece, it speaks the others
            self.voice = Voice(found.speech.global_ids, np.zeros(0, np.int32))
        return found

    def audio(self, pieces: Sequence[SpokenPiece]) -> Audio:
        """Returns the whole of all pieces that were taken, in any order."""
        pieces = sorted(pieces, key=lambda piece: piece.number)
        rate, speech = self._prompter.config.sample_rate, [piece.speech for piece in pieces]
        samples, spans = join_pieces(self.plan, [own.samples for own in speech], rate)
        return Audio(
            samples,
            rate,
            np.concatenate([own.semantic_ids for own in speech]),
            self.voice.global_ids,
            self.cut_off or any(own.reached_limit for own in speech),
            tuple(dataclasses.replace(span, tries=piece.tries) for span, piece in zip(spans, pieces, strict=True)),
            tuple(finding for piece in pieces for finding in piece.checks),
        )

    def _begin(self) -> None:
        self.plan, messages = plan_request(self.request, self._prompter.config)
        for message in messages:
            warnings.warn(message, stacklevel=5)
        self.voice = self._prompter.voice(self.request)
        self._begun = True

    def _job(self, number: int, tries: int) -> SpeechJob | None:
        """Returns the job of a piece; None: nothing is left of `max_seconds`."""
        request, speaker = self.request, self._speaker
        prompt = self._prompter.prompt(request, self.plan.pieces[number].text, self.voice)
        count = self._counts.get(number)
        if count is None:
            room, pieces = speaker.room(prompt), len(self.plan.pieces)
            count = self._prompter.semantic_count(request, prompt, room, pieces, self._said)
            if count < 1:
                return None
            self._counts[number] = count
        seed = long_text.try_seed(piece_seed(request.seed, number), tries)
        sampling = self._prompter.sampling(request)
        return SpeechJob(Job(prompt, speaker.new_tokens(prompt, count), seed, greedy=request.greedy, **sampling), count)
