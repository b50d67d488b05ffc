"""Codec: what is left of recordings after encoding and decoding, for one model or several beside each other."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spark_jax.evaluation import measures, statistics
from spark_jax.evaluation.cases import Case, Result
from spark_jax.evaluation.experiments.base import OneRound, Plan, labeled
from spark_jax.evaluation.findings import Clips, Scatter, Summary
from spark_jax.evaluation.judges.registry import SPEAKER_JUDGES
from spark_jax.evaluation.judges.speaker import similarity
from spark_jax.evaluation.recordings import Recording, draw
from spark_jax.evaluation.statistics import Estimate

RECORDING = "recording"
CLIPS = 12
ALONE = (
    measures.WER,
    measures.DNSMOS,
    measures.HNR,
    measures.SELF_CORRELATION,
    measures.VOICED,
    measures.F0,
)
BESIDE = (
    measures.STOI,
    measures.PESQ_NARROW,
    measures.PESQ_WIDE,
    measures.MCD,
    measures.VOICING,
    measures.F0_CORRELATION,
    measures.F0_ERROR,
    measures.F0_GROSS,
)


class CodecExperiment(OneRound):
    """Resynthesis of recordings.

    Args:
      plan: an item is a recording; each model resynthesizes all of them.
      recordings: to draw from.
      descriptions: of each model's codec, for the table.
    """

    name = "codec"
    judges = ("words", "signal", "pitch", "resemblyzer", "wavlm", "dnsmos", "stoi", "pesq", "mcd")

    def __init__(self, plan: Plan, recordings: Sequence[Recording], descriptions: dict[str, str]):
        self._plan, self._descriptions = plan, descriptions
        self._recordings = draw(list(recordings), plan.count, plan.seed)
        self.language = self._recordings[0].language

    def settings(self) -> dict[str, Any]:
        """Returns the recordings."""
        return {"recordings": [recording.path.name for recording in self._recordings], "codecs": self._descriptions}

    def cases(self, folder: Path) -> list[Case]:
        """Returns the recordings, and their resynthesis by each model."""
        found = []
        for number, recording in enumerate(self._recordings):
            common: dict[str, Any] = {
                "text": recording.text,
                "language": recording.language,
                "scoring": "characters" if recording.language == "zh" else "whisper",
                "source": str(recording.path),
            }
            target, speaker = f"{RECORDING}-{number:04d}", {"number": number, "speaker": recording.speaker}
            found.append(Case(target, "recording", labels={"group": RECORDING, **speaker}, **common))
            for model in self._plan.models:
                labels = {"group": model, "kind": recording.kind, **speaker}
                key = f"{model}-{number:04d}"
                found.append(Case(key, "resynthesize", model, target=target, labels=labels, **common))
        return found

    def summarize(self, results: Sequence[Result], judges: Sequence[str]) -> Summary:
        """Returns tables of what can be measured alone and beside the recording, F0 against F0, and players."""
        groups = {group: labeled(results, group=group) for group in (RECORDING, *self._plan.models)}
        originals = {result.case.labels["number"]: result for result in groups[RECORDING]}
        models = {model: groups[model] for model in self._plan.models}
        alone, figures = measures.tabulate(
            "Recordings and their resynthesis",
            "speech",
            groups,
            measures.measured(ALONE, judges),
            note="Self-correlation at one token's lag is near 0 for recordings; near 1 the speech whispers.",
        )
        similar = {
            f"similarity, {judge}": (lambda own, judge=judge: _similarity(own, originals, judge), 3)
            for judge in SPEAKER_JUDGES
            if judge in judges
        }
        beside, more = measures.tabulate(
            "Beside the recordings",
            "codec",
            models,
            measures.measured(BESIDE, judges),
            similar,
        )
        described = ((self._descriptions.get(str(name), name), *cells) for name, *cells in beside.rows)
        beside = dataclasses.replace(beside, rows=tuple(described))
        kinds = {
            f"{model}, {kind}": labeled(own, kind=kind)
            for model, own in models.items()
            for kind in sorted({result.case.labels["kind"] for result in own})
            if kind
        }
        sections: list[Any] = [alone, beside]
        if len(kinds) > len(models):
            of_kind, extra = measures.tabulate(
                "By kind of speaker", "speech", kinds, measures.measured((*ALONE[:4], *BESIDE), judges), similar
            )
            sections.append(of_kind)
            more |= extra
        points = [
            (original, own, model, result.case.key)
            for model, results_of in models.items()
            for result in results_of
            if (own := result.value("pitch", "f0"))
            and (original := originals[result.case.labels["number"]].value("pitch", "f0"))
        ]
        if "pitch" in judges:
            sections.append(Scatter("Mean F0", "recording, Hz", "resynthesis, Hz", tuple(points)))
        rows = [
            (
                f"{original.case.text} ({original.case.labels['speaker']})",
                {RECORDING: original.case.key}
                | {model: results_of[index].case.key for model, results_of in models.items()},
            )
            for index, original in enumerate(groups[RECORDING][:CLIPS])
        ]
        sections.append(Clips("To hear", tuple(rows)))
        return Summary(figures | more, sections)


def describe(global_tokens: int, fsq_levels: Sequence[int], codes: int, tokens_a_second: float) -> str:
    """Returns a codec's sizes for a table: global tokens, their codebook, and the semantic bit rate."""
    bits = tokens_a_second * math.log2(codes)
    return f"{global_tokens} global tokens of {math.prod(fsq_levels)}, {codes} codes, {bits:.0f} bit/s"


def _similarity(results: Sequence[Result], originals: dict[int, Result], judge: str) -> Estimate:
    pairs = [
        (result, result.value(judge, "embedding"), originals[result.case.labels["number"]].value(judge, "embedding"))
        for result in results
    ]
    pairs = [pair for pair in pairs if pair[1] is not None and pair[2] is not None]
    values = [similarity(own, other) for _, own, other in pairs]
    return statistics.estimate(statistics.mean, values, units=measures.units([result for result, _, _ in pairs]))
