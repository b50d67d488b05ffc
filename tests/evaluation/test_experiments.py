"""Experiments with a tiny model of random weights, or with speech whose truth is known."""

import json
import re
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers import tiny_model
from helpers.tiny_config import tiny

from spark_jax.errors import SparkError
from spark_jax.evaluation import findings, html, statistics
from spark_jax.evaluation.cases import Case, Result, Speech
from spark_jax.evaluation.experiments import clone, codec, control, robustness, run, tts
from spark_jax.evaluation.experiments.base import Plan
from spark_jax.evaluation.judges import registry
from spark_jax.evaluation.judges.registry import JudgeOptions, choose_judges
from spark_jax.evaluation.judges.signal import SignalJudge
from spark_jax.evaluation.recordings import BUNDLED, Recording, draw, read_recordings
from spark_jax.evaluation.speaking import LoadedModels
from spark_jax.model_directory.voice import Voice
from spark_jax.text.attributes import LEVELS

TEXTS = ["A clear sky.", "The storm grounded the ship.", "They had three children."]


class LevelJudge:
    """Hears the loudness, which it calls a voice's embedding, and the length."""

    name, version = "resemblyzer", "loudness"
    heard = 0

    def judge(self, utterance):
        LevelJudge.heard += 1
        return {"embedding": [float(np.abs(utterance.samples).mean()), len(utterance.samples) / 1e5]}


@pytest.fixture
def judges(monkeypatch):
    def missing(options):
        raise SparkError("not installed")

    own = {"resemblyzer": lambda options: LevelJudge(), "signal": lambda options: SignalJudge()}
    monkeypatch.setattr(registry, "JUDGES", dict.fromkeys(registry.JUDGES, missing) | own)
    monkeypatch.setattr(LevelJudge, "heard", 0)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    found = []
    for number in range(4):
        path = folder / f"{number}.wav"
        soundfile.write(path, tiny_model.speech(0.6 + 0.1 * number, number), 16_000)
        gender = "female" if number < 2 else "male"
        found.append(Recording(path, TEXTS[number % 3], f"speaker{number // 2}", gender, "virtual"))
    return found


class StandIn:
    """A model that says noise, as long as its text, and a codec that loses nothing."""

    config = tiny()

    def plan(self, request):
        return [request.text], []

    def voice(self, reference, transcript=None):
        return Voice(np.zeros(32, np.int32), np.zeros(0, np.int32))

    def speak(self, request):
        samples = np.random.default_rng(request.seed).uniform(-0.1, 0.1, 400 * len(request.text))
        return types.SimpleNamespace(samples=samples, sample_rate=16_000, reached_limit=False, checks=())

    def synthesize_batch(self, requests):
        for number in reversed(range(len(requests))):
            long = len(requests[number].text) > 100
            yield number, SparkError("the text is too long") if long else self.speak(requests[number])

    def encode(self, samples, names):
        return [(None, wave) for wave in samples]

    def decode(self, ids):
        return [wave for _, wave in ids]


class StandIns:
    def tts(self, label):
        return StandIn()

    codec = tts


@pytest.fixture
def models():
    return StandIns()


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 20)


PLAN = Plan(("tiny",), count=3, seed=5, max_seconds=0.4)


def experiments(recordings):
    speakers = {str(recording.path): recording for recording in recordings}
    return {
        "codec": codec.CodecExperiment(PLAN, recordings, {"tiny": "tiny: 32 tokens"}),
        "tts": tts.TtsExperiment(PLAN, TEXTS, {"female": {"gender": "female"}}),
        "control": control.ControlExperiment(PLAN, TEXTS),
        "clone": clone.CloneExperiment(PLAN, clone.of_recordings(recordings, TEXTS, 3), speakers),
        "robustness": robustness.RobustnessExperiment(
            PLAN,
            {"hard": ["No no no.", "Why?"], "signs": ["a, b; c"]},
            {"gender": "male"},
            recordings,
            TEXTS,
            retries=1,
        ),
    }


def run_it(name, recordings, models, folder):
    return run.run_experiment(
        experiments(recordings)[name], PLAN, models, {"tiny": "0"}, run.Judging("auto", JudgeOptions()), folder
    )


NAMES = ("codec", "tts", "control", "clone", "robustness")


@pytest.mark.extended  # compiles the engine
def test_every_experiment_runs_on_random_weights(judges, recordings, tiny_model_directory, tmp_path):
    loaded = LoadedModels({"tiny": tiny_model_directory}, slots=2)
    for name in NAMES:
        report = run_it(name, recordings, loaded, tmp_path / name)
        assert all(item["error"] is None and item["seconds"] > 0 for item in report["items"]) and report["figures"]


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_writes_its_report(name, judges, recordings, models, tmp_path):
    report = run_it(name, recordings, models, tmp_path)
    assert report["judges"]["signal"].startswith("spark-jax")
    assert all(item["error"] is None and item["seconds"] > 0 for item in report["items"])
    assert report["figures"] and all(len(row) == len(s["columns"]) for s in tables(report) for row in s["rows"])
    page = (tmp_path / "report.html").read_text()
    assert page.count("<audio") >= 3 and "<table" in page
    for source in set(re.findall(r'src="([^"]+)"', page)):
        assert (tmp_path / source).is_file()


def test_several_seeds_have_a_spread(judges, models, tmp_path):
    plan = Plan(("tiny",), 3, seed=7, seeds=2)
    experiment = tts.TtsExperiment(plan, TEXTS, {"female": {"gender": "female"}})
    report = run.run_experiment(experiment, plan, models, {"tiny": "0"}, run.Judging(), tmp_path)
    figure = report["figures"]["female.self_correlation"]
    assert figure["items"] == 6 and figure["seeds"] == 2 and figure["spread"] > 0.0
    assert {item["request"]["seed"] for item in report["items"]} == {7, 8}


def tables(report):
    return [section for section in report["sections"] if section["kind"] == "table"]


def test_a_killed_evaluation_goes_on_and_reports_the_same(judges, recordings, models, tmp_path, monkeypatch):
    whole = run_it("clone", recordings, models, tmp_path / "whole")
    everything = LevelJudge.heard

    class KilledError(Exception):
        pass

    def stop_after(count):
        def judge(self, utterance, plain=LevelJudge.judge):
            if LevelJudge.heard - start == count:
                raise KilledError
            return plain(self, utterance)

        start = LevelJudge.heard
        monkeypatch.setattr(LevelJudge, "judge", judge)

    plain = LevelJudge.judge
    stop_after(4)
    with pytest.raises(KilledError):
        run_it("clone", recordings, models, tmp_path / "killed")
    monkeypatch.setattr(LevelJudge, "judge", plain)
    spoken = (tmp_path / "killed" / "spoken.jsonl").read_bytes().splitlines()
    (tmp_path / "killed" / "spoken.jsonl").write_bytes(b"\n".join(spoken[:-2]) + b"\n" + spoken[-2][:20])
    before = LevelJudge.heard
    run_it("clone", recordings, models, tmp_path / "killed")
    assert LevelJudge.heard - before == everything - 4
    first, second = ((tmp_path / name / "report.json").read_bytes() for name in ("whole", "killed"))
    assert first == second and json.loads(first) == whole


def result(key, request=None, found=None, labels=None, speech=None, text="They had three children."):
    case = Case(key, "speak", "m", text, request={"seed": 0, **(request or {})}, labels=labels or {})
    return Result(case, speech or Speech(1.0), found or {})


def test_control_that_acts_is_on_the_diagonal():
    """Speech of what was asked for: all right, ordered, no error; with pitches in reverse, the order in reverse."""
    plan = Plan(("m",), count=10)
    experiment = control.ControlExperiment(plan, TEXTS)
    hz = {"female": (140, 170, 210, 240, 300), "male": (85, 100, 120, 150, 200)}
    speeds = (2.0, 3.0, 4.0, 5.0, 6.0)

    def answer(case, backwards):
        request = dict(case.request)
        level = LEVELS.index(request.get("pitch", "moderate"))
        f0 = request.get("pitch_hz", hz[request["gender"]][4 - level if backwards else level])
        rate = request.get("syllables_per_second", speeds[LEVELS.index(request.get("speed", "moderate"))])
        found = {
            "pitch": {"f0": float(f0), "voiced": 0.6},
            "signal": {"syllables_per_second": float(rate)},
            "gender": {"gender": request["gender"], "male": 0.5},
        }
        return Result(case, Speech(1.0), found)

    judges = ("pitch", "signal", "gender")
    cases = experiment.cases(Path("unused"))
    good = experiment.summarize([answer(case, False) for case in cases], judges).figures
    for part in ("gender and pitch level", "gender and speed level", "all at once", "pitch and speed as numbers"):
        assert good[f"{part}.all that was asked"].value == 1.0
    for name in ("pitch levels, female", "speed levels, male", "pitch values", "speed values"):
        assert good[f"{name}.spearman"].value == pytest.approx(1.0)
    assert good["pitch values.relative_error"].value == 0.0
    assert good["joint cost.pitch level"].value == 0.0 == good["joint cost.gender"].value
    bad = experiment.summarize([answer(case, True) for case in cases], judges)
    assert bad.figures["pitch levels, male.spearman"].value == pytest.approx(-1.0)
    confusion = next(section for section in bad.sections if section.title == "Pitch levels")
    assert [row[4 - number] for number, row in enumerate(confusion.counts)] == [2] * 5
    assert bad.figures["gender and pitch level.pitch level"].value == 0.2  # the moderate ones
    joint = bad.figures["all at once.pitch level"].value
    assert bad.figures["joint cost.pitch level"].value == pytest.approx(0.2 - joint)


def test_whispered_speech_has_no_gender_and_no_pitch():
    experiment = control.ControlExperiment(Plan(("m",), count=4), TEXTS)
    silent = {
        "pitch": {"f0": None, "voiced": 0.0},
        "gender": {"gender": None},
        "signal": {"syllables_per_second": None},
    }
    found = experiment.summarize([Result(c, Speech(1.0), silent) for c in experiment.cases(Path("x"))], tuple(silent))
    assert found.figures["all at once.gender"].value == 0.0 == found.figures["all at once.pitch level"].value
    assert sum(row[-1] for row in next(s for s in found.sections if s.title == "Pitch levels").counts) == 4


def test_no_utterance_comes_twice():
    """With as many texts as there are levels of everything, too: the figures' intervals count on it."""
    texts = [f"Sentence {number}." for number in range(50)]
    cases = control.ControlExperiment(Plan(("m",), count=150), texts).cases(Path("x"))
    assert len({(case.labels["part"], case.text, *sorted(case.request.items())) for case in cases}) == len(cases) == 600


def test_every_level_and_gender_comes_equally_often():
    experiment = control.ControlExperiment(Plan(("m",), count=50), TEXTS)
    joint = [case.request for case in experiment.cases(Path("x")) if case.labels["part"] == "joint"]
    assert len({(r["gender"], r["pitch"], r["speed"]) for r in joint}) == 50


def test_cloning_is_measured_between_floor_and_ceiling(tmp_path):
    """Embeddings in a plane: speakers at right angles, a ceiling at cosine 0.8, clones halfway to it from the floor."""
    angle = {"self": 0.0, "ceiling": np.arccos(0.8), "clone": np.arccos(0.4)}
    lines = []
    for number in range(2):
        for name in ("ref", "other"):
            (tmp_path / f"{name}{number}.wav").touch()
        paths = [tmp_path / f"{name}{number}.wav" for name in ("ref", "other")]
        lines.append(clone.Line(f"{number}", "Hello.", paths[0], TEXTS[number], paths[1]))
    genders = ("female", "male")
    known = {str(line.prompt): Recording(line.prompt, "Hello.", line.name, genders[i]) for i, line in enumerate(lines)}
    experiment = clone.CloneExperiment(Plan(("m",), count=2), lines, known)

    def embed(case):
        base = np.zeros(4)
        turn = angle.get({"reference": "self", "other": "self", "ceiling": "ceiling"}.get(case.labels["role"], "clone"))
        place = 2 * int(case.labels["speaker"])
        base[place], base[place + 1] = np.cos(turn), np.sin(turn)
        return {"resemblyzer": {"embedding": base.tolist()}}

    results = [Result(case, Speech(1.0), embed(case)) for case in experiment.cases(tmp_path)]
    figures = experiment.summarize(results, ("resemblyzer",)).figures
    values = {
        name: figures[f"without transcript.resemblyzer: {name}"].value for name in ("similarity", "floor", "ceiling")
    }
    assert values == {"similarity": pytest.approx(0.4), "floor": pytest.approx(0.0), "ceiling": pytest.approx(0.8)}
    assert figures["with transcript.resemblyzer: of the way"].value == pytest.approx(0.5)
    assert figures["with transcript.resemblyzer: above other gender"].value == pytest.approx(0.4)


def test_retries_are_asked_for_what_failed_and_count_after(tmp_path):
    experiment = robustness.RobustnessExperiment(
        Plan(("m",), count=2), {"hard": ["Why?", "Yes."]}, {"gender": "male"}, [], TEXTS, retries=2
    )
    cases = experiment.cases(tmp_path)
    bad, good = Speech(9.0, checks=("loop",)), Speech(1.0)
    spoken = {cases[0].key: good, cases[1].key: bad}
    [again] = experiment.follow_up(spoken)
    assert again.text == "Yes." and again.request["seed"] != cases[1].request["seed"]
    spoken[again.key] = bad
    [last] = experiment.follow_up(spoken)
    spoken[last.key] = good
    assert experiment.follow_up(spoken) == []
    results = [Result(case, spoken[case.key], {}) for case in (*cases, again, last)]
    figures = experiment.summarize(results, ()).figures
    assert figures["texts, all.failed checks"].value == 0.5 and figures["texts, all.after retries"].value == 0.0


def test_text_that_cannot_be_spoken_is_an_error_of_its_own(judges, models, tmp_path):
    experiment = tts.TtsExperiment(
        Plan(("tiny",), 3, max_seconds=0.2), ["Fine.", "...", "Too long. " * 20], {"female": {"gender": "female"}}
    )
    report = run.run_experiment(experiment, PLAN, models, {"tiny": "0"}, run.Judging(), tmp_path)
    errors = {item["text"]: item["error"] for item in report["items"]}
    assert errors["Fine."] is None and "no letter or number" in errors["..."]
    assert sorted(errors.values(), key=str)[1:] == [errors["..."], "the text is too long"]
    assert len(report["notes"]) == 2 and "1 × the text is too long" in report["notes"]


def test_missing_judges_are_named_with_their_extra(monkeypatch):
    def missing(options):
        raise SparkError('package "x" is not installed; expected the extra: pip install "spark-jax[evaluation]"')

    monkeypatch.setitem(registry.JUDGES, "words", missing)
    judges, not_measured = choose_judges(("words", "signal"), "auto", JudgeOptions())
    assert [judge.name for judge in judges] == ["signal"] and "spark-jax[evaluation]" in not_measured["words"]
    with pytest.raises(SparkError, match=r"spark-jax\[evaluation\]"):
        choose_judges(("words", "signal"), "words", JudgeOptions())
    with pytest.raises(SparkError, match=r"spark-jax\[evaluation\]"):  # a model was chosen: it is wanted
        choose_judges(("words",), "auto", JudgeOptions(whisper="large-v3"))
    with pytest.raises(SparkError, match="judge 'ears' is unknown"):
        choose_judges(("words",), "ears", JudgeOptions())


def test_the_recordings_of_the_package_are_whole():
    found = read_recordings()
    assert len({recording.speaker for recording in found}) == 16 and all(r.path.is_file() for r in found)
    assert len(list(BUNDLED.parent.glob("*.flac"))) == len(found)
    drawn = draw(found, 16, 0)
    assert len({recording.speaker for recording in drawn}) == 16 and drawn == draw(found, 16, 0)
    texts = json.loads(robustness.HARD_TEXTS.read_text())
    assert 300 <= len(texts["long"][0].split()) <= 310


def test_a_page_shows_what_was_found_and_escapes_it():
    estimate = findings.Estimate(0.25, 0.2, 0.3, 10, 2, 0.01)
    summary = findings.Summary(
        {"x": estimate},
        [
            findings.Table("Ta<ble>", ("a", "b"), (("row", estimate), ("none", None)), ("percent",), "Note."),
            findings.Confusion("Con", ("l",), ("l", "none"), ((3, 1),)),
            findings.Scatter("Sc", "x", "y", ((1.0, 2.0, "g", "k"), (3.0, 3.5, "h", "k2"))),
            findings.Scatter("Empty", "x", "y", ()),
            findings.Clips("Hear", (("cap", {"clip": "key"}),)),
        ],
    )
    report = {
        "experiment": "tts",
        "models": ["m"],
        "settings": {"seed": 0},
        "judges": {"words": "1"},
        "not_measured": {"dnsmos": "missing"},
        "notes": ["1 × <oops>"],
        **json.loads(json.dumps(findings.as_json(summary))),
    }
    page = html.page(report, [("batch", "0.5")])
    assert "25.0 % <small>± 1.0 %</small> <small>20.0 % … 30.0 %</small>" in page
    assert "Ta&lt;ble&gt;" in page and "&lt;oops&gt;" in page and "<oops>" not in page
    assert page.count("<circle") == 2 and 'src="audio/key.flac"' in page and "52%" in page
    assert "Nothing was measured." in page
