"""Parts of several runs become one model directory, with a default voice."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny_model
from helpers.tiny_config import tiny

from spark_jax import config as config_lib
from spark_jax.cli import main as cli
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory import manifest
from spark_jax.model_directory.layout import read_config
from spark_jax.model_directory.voice import Voice
from spark_jax.text.vocabulary import Speller, Vocabulary

TINY = tiny()


@pytest.fixture(scope="module")
def runs(tiny_model_directory, tmp_path_factory):
    """A folder a training, each with the sizes of its own part alone."""
    folder, variables = tmp_path_factory.mktemp("runs"), tiny_model.variables()
    for part in ("wav2vec2", "bicodec", "llm"):
        tokenizer = tiny_model_directory / "tokenizer" if part == "llm" else None
        model_directory.write_parts(folder / part, TINY, {part: variables[part]}, tokenizer)
    lines = [
        {"global_ids": [code] * 32, "semantic_ids": [code, 2], "split": "train", "index": str(number)}
        for number, code in enumerate((5, 7, 7, 3))
    ]
    (folder / "tokens.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "card.md").write_text("# A card")
    return folder


@pytest.fixture
def assemble(runs, tmp_path, capsys):
    """Runs `spark-jax assemble` with the runs, in this process. Gives exit code, output, errors."""

    def assemble(*arguments, **replaced):
        folders = {part: runs / part for part in ("wav2vec2", "bicodec", "llm")} | replaced
        options = [text for part, folder in folders.items() for text in (f"--{part}", str(folder))]
        with pytest.raises(SystemExit) as ended:
            cli.main(["assemble", str(tmp_path / "model"), *options, *map(str, arguments)])
        return ended.value.code or 0, *capsys.readouterr()

    return assemble


def test_a_folder_of_voices_is_put_in(assemble, runs, tmp_path):
    (tmp_path / "voices").mkdir()
    code, _, errors = assemble("--voices", tmp_path / "voices")
    assert code == 2 and "holds no voice, expected files NAME.json" in errors
    for name, global_id in (("default", 3), ("ada", 5)):
        voice = Voice(np.full(32, global_id), np.zeros(0, np.int32))
        voice.save(tmp_path / "voices" / f"{name}.json", TINY.sample_rate)
    assert assemble("--voices", tmp_path / "voices")[0] == 0
    loaded = model_directory.load(tmp_path / "model", parts=[])
    assert sorted(loaded.voices) == ["ada", "default"]
    np.testing.assert_array_equal(Voice.load(loaded.default_voice, TINY).global_ids, [3] * 32)
    np.testing.assert_array_equal(Voice.load(loaded.voices["ada"], TINY).global_ids, [5] * 32)


def test_the_runs_make_a_model(assemble, runs, tmp_path):
    code, out, errors = assemble(
        "--tokens", runs / "tokens.jsonl", "--dtype", "float32", "--model-card", runs / "card.md"
    )
    assert (code, errors) == (0, "") and out.startswith(f"{tmp_path / 'model'}: ")
    assert (tmp_path / "model" / "MODEL_CARD.md").read_text().startswith("# A card")
    assert read_config(tmp_path / "model") == TINY
    loaded = model_directory.load(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, tiny_model.variables())
    voice = Voice.load(loaded.default_voice, TINY)  # that of most utterances
    assert voice.global_ids.tolist() == [7] * 32 and voice.semantic_ids.tolist() == [7, 2]


def test_a_recognizer_comes_with_its_labels(assemble, runs, tmp_path):
    run = tmp_path / "run"
    recognizer = tiny_model.draw(model_directory.abstract_part("recognizer", TINY.wav2vec2, 3))
    model_directory.write_parts(run, TINY, {"recognizer": recognizer})
    code, _, errors = assemble("--recognizer", run)
    assert code == 2 and "vocabulary.json" in errors
    Vocabulary(["æ", "t"]).save(run / "vocabulary.json")
    (tmp_path / "words.json").write_text('["at"]')
    code, _, errors = assemble("--recognizer", run, "--lexicon", tmp_path / "words.json")
    assert code == 2 and "words.json: not a lexicon" in errors and not (tmp_path / "model").exists()
    (tmp_path / "words.json").write_text('{"at": "æt"}')
    assert assemble("--recognizer", run, "--lexicon", tmp_path / "words.json", "--dtype", "float32")[0] == 0
    loaded = model_directory.load(tmp_path / "model", parts=("recognizer",))
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["recognizer"], recognizer)
    assert loaded.recognizer_directory == tmp_path / "model"
    assert Speller.load(tmp_path / "model").labels("At.") == [1, 2]
    assert manifest.check(tmp_path / "model") > 0
    assert assemble("--lexicon", tmp_path / "words.json")[2].startswith("error: --lexicon needs --recognizer")


@pytest.mark.extended
def test_weights_take_half_the_room_by_default(assemble, runs, tmp_path):
    voice = Voice(np.full(32, 9), np.arange(4), "Four.")
    voice.save(tmp_path / "voice.json", 16_000)
    code, _, _ = assemble("--default-voice", tmp_path / "voice.json", "--model", write_sizes(tmp_path))
    facts = model_directory.info(tmp_path / "model")
    assert code == 0 and {part.dtype for part in facts.parts.values()} == {"float16"}
    assert Voice.load(tmp_path / "model" / "voices" / "default.json", TINY).transcript == "Four."


def write_sizes(folder: Path) -> Path:
    (folder / "sizes.yaml").write_text(json.dumps(config_lib.to_mapping(TINY)))  # JSON is YAML
    return folder / "sizes.yaml"


def test_a_model_directory_stands_for_a_run(assemble, tiny_model_directory, tmp_path):
    code, _, _ = assemble(bicodec=tiny_model_directory)
    assert code == 0 and model_directory.info(tmp_path / "model").voices == []


@pytest.mark.parametrize(
    ("arguments", "replaced", "message"),
    [
        (("--dtype", "int8"), {}, "dtype is 'int8', expected one of float16, bfloat16, float32"),
        (("--tokens", "RUNS/card.md"), {}, "card.md:1: not a JSON object"),
        (("--default-voice", "RUNS/tokens.jsonl"), {}, "tokens.jsonl: not valid JSON"),
        (("--tokens", "RUNS/tokens.jsonl", "--default-voice", "RUNS/card.md"), {}, "exclude each other"),
        ((), {"llm": "bicodec"}, "bicodec: holds no llm, but bicodec"),
        ((), {"llm": "nowhere"}, "nowhere: no such directory"),
        (("--model", "tiny_en_model"), {}, "tensors do not fit"),
    ],
)
def test_what_cannot_be_assembled(assemble, runs, tmp_path, arguments, replaced, message):
    arguments = [argument.replace("RUNS", str(runs)) for argument in arguments]
    code, _, errors = assemble(*arguments, **{part: runs / name for part, name in replaced.items()})
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    assert not (tmp_path / "model").exists()
