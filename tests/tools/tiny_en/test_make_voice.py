"""The recipe of the embedded voice: its steps fit together, and a finished one is not run again."""

import json
import math
import subprocess
import sys

import make_voice
import pytest
import typer
import virtual_speakers
from corpus_plan import OTHERS, SOURCE
from corpus_sentences import CorpusError, wordnet_definitions
from corpus_voices import open_voice
from make_virtual_corpus import WORDNET
from make_voice import Step

from spark_jax.config import SparkConfig
from spark_jax.data.sources import expand
from spark_jax.model_directory import manifest
from spark_jax.shared.config_files import load_config
from spark_jax.text.tokenizer import build_tokenizer
from spark_jax.training.catalog import load_training

CORPORA = ("corpus", "more")


@pytest.mark.parametrize("smoke", [False, True])
def test_every_step_reads_what_earlier_ones_make(smoke):
    made = set()
    for step in make_voice.plan(jobs=2, smoke=smoke):
        read = {part for part in step.command if part.startswith("runs/") or part in CORPORA} - {step.result}
        if step.name in CORPORA:
            read = {part for part in step.command if part == "more.txt"}
        for recipe in (part for part in step.command if part.endswith(".yaml") and str(make_voice.MODEL) not in part):
            config = load_training(recipe)
            read |= {found for field in ("corpus", "init_from") if (found := getattr(config, field, None)) is not None}
            if (tokens := getattr(config, "tokens", None)) is not None:
                read |= {source.path for source in expand(tokens)}
        # The best parts of a run are in the run.
        runs = {f"{path}/metadata.jsonl" if path in CORPORA else path.removesuffix("/best") for path in read}
        assert runs <= made, step.name
        made.add(step.result)


def test_recipes_fit_the_sizes():
    system = load_config(SparkConfig, str(make_voice.MODEL))
    codes = system.bicodec.quantizer.codebook_size, math.prod(system.bicodec.speaker_encoder.fsq_levels)
    assert system.llm.vocab_size >= build_tokenizer("bytes", *codes).vocab_size
    for recipe in sorted(make_voice.RECIPES.glob("*.yaml")):
        if recipe != make_voice.MODEL:
            load_training(recipe)
    voices, wave = (load_training(make_voice.RECIPES / f"{name}.yaml") for name in ("voices", "wave"))
    assert voices.needs_pitch(system) and "speaker_encoder" not in voices.frozen_parts
    assert "speaker_encoder" in wave.frozen_parts  # else the language model's tokens would be of another one


def test_finished_steps_are_not_run_again(tmp_path):
    append = (sys.executable, "-c", "open('log', 'a').write('x')")
    step = Step("first", append, "log")
    for _ in range(2):
        make_voice.run(tmp_path, step)
    assert (tmp_path / "log").read_text() == "x"
    with pytest.raises(typer.Exit):
        make_voice.run(tmp_path, Step("second", (sys.executable, "-c", "raise SystemExit(3)"), "log"))
    with pytest.raises(typer.Exit):
        make_voice.run(tmp_path, Step("third", append, "nothing"))
    assert sorted(path.name for path in tmp_path.glob("*.done")) == ["first.done"]


def test_a_training_that_was_stopped_is_not_finished(tmp_path):
    (tmp_path / "training.json").write_text(json.dumps({"loop": {"steps": 20}}))
    for step, complete in ((10, False), (20, True)):
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": step, "group": "run"}) + "\n")
        assert make_voice.is_complete(tmp_path) == complete
    assert not make_voice.is_complete(tmp_path / "corpus")


def test_steps_are_chosen_by_name():
    steps = make_voice.plan(1)
    assert [step.name for step in make_voice.chosen(steps, "wave", None)] == ["wave"]
    assert [step.name for step in make_voice.chosen(steps, None, "codes")] == ["corpus", "wav2vec2", "codes"]
    with pytest.raises(typer.BadParameter, match="expected one of corpus, wav2vec2"):
        make_voice.chosen(steps, None, "waves")


@pytest.mark.slow
def test_the_whole_recipe_runs_in_little(tmp_path):
    pytest.importorskip("pyworld")
    try:
        for engine in (SOURCE, *OTHERS):
            open_voice(engine)
        wordnet_definitions(WORDNET)
    except CorpusError as error:
        pytest.skip(str(error))
    command = [sys.executable, make_voice.__file__, str(tmp_path), "--smoke"]
    assert subprocess.run(command, check=False).returncode == 0
    assert manifest.check(tmp_path / "model") > 10
    assert {path.stem for path in (tmp_path / "model" / "voices").iterdir()} >= {"default", *virtual_speakers.NAMED}
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.splitlines() == [
        f"{step.name}: done before" for step in make_voice.plan(1, smoke=True)
    ]
