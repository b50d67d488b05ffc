"""Text to speech: words, quality and voice of sentences, for each voice of a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spark_jax.evaluation import measures
from spark_jax.evaluation.cases import Case, Result
from spark_jax.evaluation.experiments.base import OneRound, Plan, heard, labeled
from spark_jax.evaluation.findings import Clips, Summary
from spark_jax.text.language import language_of

CLIPS = 20
MEASURES = (
    measures.WER,
    measures.MEAN_WER,
    measures.DNSMOS,
    measures.HNR,
    measures.SELF_CORRELATION,
    measures.VOICED,
    measures.F0,
    measures.SPEED,
)


class TtsExperiment(OneRound):
    """Sentences in a model's voices.

    Args:
      plan: an item is a sentence of each voice and each seed.
      texts: to speak, from the first on.
      voices: fields of a request that choose a voice, by its name.
    """

    name = "tts"
    judges = ("words", "signal", "pitch", "gender", "dnsmos")

    def __init__(self, plan: Plan, texts: Sequence[str], voices: Mapping[str, Mapping[str, Any]]):
        self._plan, self._voices = plan, voices
        self.texts = list(texts[: plan.count])
        self.language = language_of(self.texts[0])

    def settings(self) -> dict[str, Any]:
        """Returns texts and voices."""
        return {"texts": self.texts, "voices": list(self._voices)}

    def cases(self, folder: Path) -> list[Case]:
        """Returns every text in every voice with every seed."""
        return [
            Case(
                f"{voice}-{number:04d}-s{options['seed']}",
                "speak",
                self._plan.models[0],
                text,
                self.language,
                "characters" if self.language == "zh" else "whisper",
                {**request, **options},
                labels={"voice": voice},
            )
            for voice, request in self._voices.items()
            for number, text in enumerate(self.texts)
            for options in self._plan.requests()
        ]

    def summarize(self, results: Sequence[Result], judges: Sequence[str]) -> Summary:
        """Returns a table by voice, and players with what was heard."""
        groups = {voice: labeled(results, voice=voice) for voice in self._voices}
        if len(groups) > 1:
            groups["all voices"] = list(results)
        failed = {
            "failed checks": (measures.share(lambda result: result.speech.failed), "percent"),
        }
        if "gender" in judges:
            failed["male voice"] = (measures.share(_is_male), "percent")
        table, figures = measures.tabulate(
            "Text to speech",
            "voice",
            groups,
            measures.measured(MEASURES, judges),
            failed,
            "Failed checks: without an end, silent, too short or long, a pause, in circles. Self-correlation at one "
            "token's lag is near 0 for recordings; near 1 the speech whispers.",
        )
        first = self._plan.seed
        shown = [result for result in results if result.case.request.get("seed") == first]
        rows = [(heard(result), {result.case.labels["voice"]: result.case.key}) for result in shown[:CLIPS]]
        rows = [row for row, result in zip(rows, shown, strict=False) if not result.speech.error]
        return Summary(figures, [table, Clips("To hear, with what was heard", tuple(rows))])


def _is_male(result: Result) -> bool | None:
    gender = result.value("gender", "gender")
    return None if gender is None else gender == "male"
