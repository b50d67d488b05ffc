"""All judges by name: how each is made, and which of them are installed."""

import dataclasses
from collections.abc import Callable, Sequence

from spark_jax.errors import SparkError
from spark_jax.evaluation.judges.base import Judge
from spark_jax.evaluation.judges.gender import GenderJudge
from spark_jax.evaluation.judges.pitch import PitchJudge
from spark_jax.evaluation.judges.quality import CepstralJudge, DnsmosJudge, PesqJudge, StoiJudge
from spark_jax.evaluation.judges.recognizer import ParaformerRecognizer, WhisperRecognizer, WordsJudge
from spark_jax.evaluation.judges.signal import SignalJudge
from spark_jax.evaluation.judges.speaker import ResemblyzerJudge, WavLMJudge


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """How judges are made.

    Attributes:
      language: of the speech, "en" or "zh".
      whisper: a size, or the folder of a converted model; None: tiny.en of its package, for Chinese "large-v3".
      paraformer: a name or a folder; it hears Chinese. None: Whisper does.
      wavlm: a Hub id or a folder; None: there is no such judge.
      token_seconds: of one semantic token.
      threads: of the recognizer.
    """

    language: str = "en"
    whisper: str | None = None
    paraformer: str | None = None
    wavlm: str | None = None
    token_seconds: float = 0.02
    threads: int = 2


def _words(options: JudgeOptions) -> Judge:
    if options.language == "zh" and options.paraformer is not None:
        recognizer = ParaformerRecognizer(options.paraformer)
    else:
        model = options.whisper or (None if options.language == "en" else "large-v3")
        recognizer = WhisperRecognizer(options.threads, model, options.language)
    return WordsJudge(recognizer, recognizer.version)


JUDGES: dict[str, Callable[[JudgeOptions], Judge]] = {
    "words": _words,
    "signal": lambda options: SignalJudge(options.token_seconds),
    "pitch": lambda options: PitchJudge(),
    "gender": lambda options: GenderJudge(),
    "resemblyzer": lambda options: ResemblyzerJudge(),
    "wavlm": lambda options: WavLMJudge() if options.wavlm is None else WavLMJudge(options.wavlm),
    "dnsmos": lambda options: DnsmosJudge(),
    "stoi": lambda options: StoiJudge(),
    "pesq": lambda options: PesqJudge(),
    "mcd": lambda options: CepstralJudge(),
}
SPEAKER_JUDGES = ("resemblyzer", "wavlm")


def choose_judges(wanted: Sequence[str], asked: str, options: JudgeOptions) -> tuple[list[Judge], dict[str, str]]:
    """Makes judges.

    Args:
      wanted: names of those that an experiment can use.
      asked: "auto" for those that are installed, or some of the names with commas.
      options: how they are made.

    Returns:
      The judges, and what is missing of the others: the message, which names the extra, by the judge's name.

    Raises:
      SparkError: a name is unknown, or a judge that was asked for by name is not installed or cannot be loaded.
    """
    if asked == "auto":
        names = [name for name in wanted if name != "wavlm" or options.wavlm is not None]
    else:
        names = [name.strip() for name in asked.split(",") if name.strip()]
        if unknown := [name for name in names if name not in JUDGES]:
            raise SparkError(f"judge {unknown[0]!r} is unknown; expected auto or some of {', '.join(JUDGES)}")
        names = [name for name in wanted if name in names]  # those that the experiment has no use for are left out
    judges, missing = [], {}
    for name in names:
        try:
            judges.append(JUDGES[name](options))
        except SparkError as error:
            if asked != "auto" or _was_chosen(name, options):
                raise
            missing[name] = str(error)
    return judges, missing


def _was_chosen(name: str, options: JudgeOptions) -> bool:
    """Returns whether the options name the model of a judge: then its absence is an error."""
    chosen = {"words": options.whisper or options.paraformer, "wavlm": options.wavlm}
    return chosen.get(name) is not None
