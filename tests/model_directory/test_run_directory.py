"""The model directory of a run: parts written over and over, by several processes; and folders of older runs."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny_model
from helpers.tiny_config import tiny
from orbax.checkpoint import v1 as ocp

from spark_jax import config as config_lib
from spark_jax import sharding
from spark_jax.cli import main as cli
from spark_jax.errors import SparkError
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory import manifest
from spark_jax.model_directory.parameters import abstract_part, target_variables
from spark_jax.shared.files import read_json

TINY = tiny()
LABELS = 5


@pytest.fixture(scope="module")
def variables():
    """Of all four parts."""
    recognizer = tiny_model.draw(abstract_part("recognizer", TINY.wav2vec2, LABELS), 1)
    return tiny_model.variables() | {"recognizer": recognizer}


@pytest.fixture
def tokenizer(tiny_model_directory):
    return tiny_model_directory / "tokenizer"


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_parts_come_one_by_one_and_are_replaced(tmp_path, variables, tokenizer):
    run = tmp_path / "run"
    model_directory.write_parts(run, TINY, {})
    assert names(run) == ["config.json"] and model_directory.read_config(run) == TINY
    assert model_directory.info(run).parts == {}
    doubled = jax.tree.map(lambda leaf: leaf * 2, variables["llm"])
    for llm in (variables["llm"], doubled):
        model_directory.write_parts(run, TINY, {"llm": llm}, tokenizer)
        same(model_directory.read_part(run, "llm"), llm)
    other = dataclasses.replace(config_lib.RELEASE, wav2vec2=TINY.wav2vec2)  # its LLM is not what the run has
    later = {part: variables[part] for part in ("wav2vec2", "recognizer")}
    model_directory.write_parts(run, other, later)
    assert names(run) == ["config.json", "params", "tokenizer"]
    assert names(run / "params") == ["llm", "recognizer", "wav2vec2"]
    assert read_json(run / "config.json").keys() & {"bicodec", "wav2vec2", "llm"} == {"wav2vec2", "llm"}
    config = model_directory.read_config(run)
    assert (config.llm, config.wav2vec2, config.bicodec) == (TINY.llm, TINY.wav2vec2, config_lib.RELEASE.bicodec)
    loaded = model_directory.load(run, parts=("llm", "wav2vec2", "recognizer"))
    same(loaded.variables, {"llm": doubled} | later)
    facts = model_directory.info(run)
    assert facts.provenance is None
    assert {part: size.parameters for part, size in facts.parts.items()} == {
        part: sum(leaf.size for leaf in jax.tree.leaves(variables[part])) for part in ("wav2vec2", "llm", "recognizer")
    }
    with pytest.raises(SparkError, match="manifest.json: no such file; .* cannot be checked, a training writes"):
        manifest.check(run)


def test_what_cannot_be_written(tmp_path, variables, tiny_model_directory):
    with pytest.raises(SparkError, match="a finished model directory, which does not change"):
        model_directory.write_parts(tiny_model_directory, TINY, {"llm": variables["llm"]})
    wide = dataclasses.replace(TINY, llm=dataclasses.replace(TINY.llm, intermediate_size=50))
    with pytest.raises(SparkError, match=r"run: llm not written: 3 tensors do not fit: misshapen params/layers/mlp/"):
        model_directory.write_parts(tmp_path / "run", wide, {"llm": variables["llm"]})
    bare = {"params": {name: tree for name, tree in variables["recognizer"]["params"].items() if name != "head"}}
    with pytest.raises(SparkError, match="missing params/head/bias"):
        model_directory.write_parts(tmp_path / "run", TINY, {"recognizer": bare})
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").touch()
    with pytest.raises(SparkError, match="run: cannot be written"):
        model_directory.write_parts(tmp_path / "file" / "run", TINY, {"llm": variables["llm"]})


def test_truncated_and_missing_files_are_named(tmp_path, variables):
    model_directory.write_parts(tmp_path, TINY, {part: variables[part] for part in ("wav2vec2", "recognizer")})
    data = max((tmp_path / "params" / "recognizer").rglob("*"), key=lambda path: path.stat().st_size)
    size = data.stat().st_size
    os.truncate(data, size - 1)
    marker = tmp_path / "params" / "recognizer" / "state" / "_METADATA"
    marker.unlink()
    for read in (
        lambda: model_directory.load(tmp_path, parts=("recognizer",)),
        lambda: model_directory.read_part(tmp_path, "recognizer"),
        lambda: model_directory.read_part(tmp_path / "params" / "recognizer", "recognizer"),
        lambda: model_directory.info(tmp_path),
    ):
        with pytest.raises(SparkError, match=f"incomplete model: .*{data} has {size - 1} bytes, expected {size}") as e:
            read()
        assert f"{marker} is missing" in str(e.value) and "\n" not in str(e.value)


def test_eight_devices_write_and_read_their_shards(tmp_path, variables):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    wanted = target_variables(TINY, ("llm",), mesh=mesh)
    placed = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), {"llm": variables["llm"]}, wanted)
    model_directory.write_parts(tmp_path, TINY, placed)
    for part, tree in wanted.items():
        found = model_directory.read_part(tmp_path, part, tree)
        assert jax.tree.map(lambda leaf: leaf.sharding, found) == jax.tree.map(lambda leaf: leaf.sharding, tree)
        same(found, variables[part])
        alone = model_directory.read_part(tmp_path, part)
        assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(alone)} == {1}
        same(alone, variables[part])


def test_all_differences_are_listed_at_once(tmp_path, variables):
    model_directory.write_parts(tmp_path, TINY, {"llm": variables["llm"]})
    wanted = abstract_part("llm", dataclasses.replace(TINY.llm, intermediate_size=50, tie_word_embeddings=False))
    del wanted["params"]["norm"]
    with pytest.raises(SparkError) as caught:
        model_directory.read_part(tmp_path, "llm", wanted)
    for line in (
        "missing params/head [32, 2048]",
        "extra params/norm/scale [32]",
        "misshapen params/layers/mlp/up/kernel [2, 32, 48], expected [2, 32, 50]",
    ):
        assert line in str(caught.value)
    for source in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SparkError, match="holds no bicodec; expected a model directory"):
            model_directory.read_part(source, "bicodec")


KILLED = """
import os
import signal
import sys

import helpers.tiny_model
import jax
from helpers.tiny_config import tiny
from orbax.checkpoint import v1 as ocp

from spark_jax.model_directory import directory as model_directory
from spark_jax.shared import files

moment, folder = sys.argv[1:]
kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
doubled = jax.tree.map(lambda leaf: leaf * 2, helpers.tiny_model.variables()["llm"])
if moment == "finalize":
    ocp.partial.finalize = kill
else:
    model_directory.replace_directory = kill
model_directory.write_parts(folder, tiny(), {"llm": doubled})
"""


@pytest.mark.parametrize("moment", [pytest.param("finalize", marks=pytest.mark.extended), "replace"])
def test_a_kill_leaves_the_older_part_and_the_next_write_cleans_up(tmp_path, variables, moment):
    model_directory.write_parts(tmp_path, TINY, {"llm": variables["llm"]})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    killed = subprocess.run([sys.executable, "-c", KILLED, moment, str(tmp_path)], env=environment, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path / "params")) == 2
    same(model_directory.read_part(tmp_path, "llm"), variables["llm"])
    assert model_directory.info(tmp_path).parts.keys() == {"llm"}
    halved = jax.tree.map(lambda leaf: leaf / 2, variables["llm"])
    model_directory.write_parts(tmp_path, TINY, {"llm": halved})
    assert names(tmp_path / "params") == ["llm"]
    same(model_directory.read_part(tmp_path, "llm"), halved)


TWO = """
import sys
from pathlib import Path

import jax
import numpy as np
from helpers import tiny_model
from helpers.tiny_config import tiny

from spark_jax import sharding
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.parameters import target_variables
from spark_jax.shared import distributed

distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), 20)
folder, system = Path(sys.argv[3]), tiny()
wanted = target_variables(system, ("llm",), mesh=sharding.make_mesh(data=1, fsdp=2, tensor=2))
host = {part: tiny_model.variables()[part] for part in wanted}
for factor in (1, 2):  # the second replaces the first
    state = jax.tree.map(lambda leaf, like: jax.device_put(leaf * factor, like.sharding), host, wanted)
    model_directory.write_parts(folder, system, state, sys.argv[4])
for part, tree in wanted.items():
    found = model_directory.read_part(folder, part, tree)
    jax.tree.map(
        lambda x, y: [np.testing.assert_array_equal(s.data, 2 * y[s.index]) for s in x.addressable_shards],
        found, host[part],
    )
    whole = model_directory.read_part(folder, part)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, 2 * y), jax.device_get(whole), host[part])
print("went on")
"""


@pytest.mark.extended
def test_two_processes_write_and_read_their_shards(tmp_path, variables, tokenizer):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
    }
    run = tmp_path / "run"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, address, str(i), str(run), str(tokenizer)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in range(2)
    ]
    for output, log in [process.communicate(timeout=240) for process in processes]:
        assert output.strip().endswith("went on"), log
        assert "WARNING" not in log
    assert names(run) == ["config.json", "params", "tokenizer"] and names(run / "params") == ["llm"]
    found = model_directory.load(run, parts=("llm",)).variables["llm"]  # by one process
    same(found, jax.tree.map(lambda leaf: leaf * 2, variables["llm"]))


def old_run(folder: Path, part: str, tree, tokenizer: Path | None = None) -> Path:
    """A training's output folder as trainings wrote it before they wrote model directories."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model": "nowhere.yaml", "loop": {"steps": 1}}))
    (folder / "model.yaml").write_text(json.dumps(config_lib.to_mapping(TINY)))  # JSON is YAML
    ocp.save(str(folder / part), tree)
    if tokenizer is not None:
        shutil.copytree(tokenizer, folder / "tokenizer")
    return folder


@pytest.mark.extended
def test_older_runs_are_read(tmp_path, variables, tokenizer):
    llm = old_run(tmp_path / "llm", "llm", variables["llm"]["params"], tokenizer)
    codec = old_run(tmp_path / "codec", "codec", variables["bicodec"])
    ctc = old_run(tmp_path / "ctc", "ctc", variables["recognizer"]["params"])
    ocp.save(str(ctc / "wav2vec2"), variables["wav2vec2"]["params"])
    for folder, own, part in (
        (llm, "llm", "llm"),
        (codec, "codec", "bicodec"),
        (ctc, "ctc", "recognizer"),
        (ctc, "wav2vec2", "wav2vec2"),
    ):
        same(model_directory.read_part(folder, part), variables[part])
        same(model_directory.read_part(folder / own, part), variables[part])
        same(model_directory.load(folder, parts=(part,)).variables, {part: variables[part]})
        assert model_directory.read_config(folder) == TINY
    assert model_directory.info(ctc).parts.keys() == {"wav2vec2", "recognizer"}
    assert model_directory.load(llm, parts=("llm",)).tokenizer_directory == llm / "tokenizer"
    # A run that goes on there with today's trainings: the new parts count, settings are no sizes.
    settings = json.loads((codec / "config.json").read_text()) | {"wav2vec2": "runs/ctc/wav2vec2"}
    (codec / "config.json").write_text(json.dumps(settings))
    doubled = jax.tree.map(lambda leaf: leaf * 2, variables["bicodec"])
    model_directory.write_parts(codec, TINY, {"bicodec": doubled})
    same(model_directory.load(codec, parts=("bicodec",)).variables["bicodec"], doubled)
    same(model_directory.read_part(codec, "bicodec"), doubled)
    with pytest.raises(SparkError, match=r"llm/llm: \d+ tensors do not fit: .*misshapen"):
        model_directory.read_part(llm, "llm", abstract_part("llm", config_lib.RELEASE.llm))


def test_parts_that_are_lacking_come_from_a_base(tmp_path, variables, tiny_model_directory, tokenizer):
    run = tmp_path / "run"
    doubled = jax.tree.map(lambda leaf: leaf * 2, variables["llm"])
    system = dataclasses.replace(config_lib.RELEASE, llm=TINY.llm, sampling=config_lib.SamplingConfig(0.5, 3, 0.5))
    model_directory.write_parts(run, system, {"llm": doubled}, tokenizer)
    base = Path(shutil.copytree(tiny_model_directory, tmp_path / "base"))
    (base / "voices").mkdir()
    (base / "voices" / "default.json").write_text("{}")
    with pytest.raises(SparkError, match="run: holds no bicodec and no wav2vec2; expected a model of"):
        model_directory.load(run)
    loaded = model_directory.load(run, base=base)
    expected = {part: variables[part] for part in ("bicodec", "wav2vec2")} | {"llm": doubled}
    same(loaded.variables, expected)
    assert loaded.config == dataclasses.replace(TINY, sampling=system.sampling)
    assert loaded.tokenizer_directory == run / "tokenizer"
    assert loaded.default_voice == base / "voices" / "default.json"
    # A codec of one's own: the base's voices mean nothing to it.
    codec = tmp_path / "codec"
    model_directory.write_parts(codec, TINY, {"bicodec": variables["bicodec"]})
    loaded = model_directory.load(codec, base=base)
    assert loaded.voices == {} and loaded.tokenizer_directory == base / "tokenizer"
    mel_params = dataclasses.replace(TINY.bicodec.mel_params, sample_rate=24_000)
    fast_codec = dataclasses.replace(TINY.bicodec, mel_params=mel_params)
    fast = dataclasses.replace(TINY, sample_rate=24_000, bicodec=fast_codec)
    model_directory.write_parts(tmp_path / "fast", fast, {"llm": variables["llm"]}, tokenizer)
    with pytest.raises(
        SparkError, match="fast: sample_rate is 24000 in .*fast, which has the llm, and 16000 in .*base"
    ):
        model_directory.load(tmp_path / "fast", base=base)


def test_the_commands_take_a_run_and_its_best(tmp_path, variables, tokenizer, capsys):
    def run(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([*map(str, arguments)])
        return stop.value.code or 0, *capsys.readouterr()

    folder = tmp_path / "run"
    model_directory.write_parts(folder, TINY, {"llm": variables["llm"]}, tokenizer)
    shutil.copytree(folder, folder / "best")
    for place in (folder, folder / "best"):
        code, out, _ = run("info", place)
        assert code == 0 and "  llm " in out and "vocabulary of 2,048 tokens" in out and "bicodec" not in out
        assert "where it comes from is not recorded" in out
        code, out, err = run("info", place, "--check")
        assert (code, out) == (2, "") and err.count("\n") == 1
        assert "cannot be checked, a training writes its parts too often" in err
        code, out, _ = run("export", place, tmp_path / f"{place.name}_exported")
        assert code == 0 and os.listdir(tmp_path / f"{place.name}_exported") == ["LLM"]


def test_sizes_by_the_name_of_a_file_or_a_folder(tmp_path, variables):
    model_directory.write_parts(tmp_path / "run", TINY, {"llm": variables["llm"]})
    (tmp_path / "model.yaml").write_text(json.dumps(config_lib.to_mapping(TINY)))
    for path in (tmp_path / "run", tmp_path / "run" / "config.json", tmp_path / "model.yaml"):
        assert model_directory.read_system(path).llm == TINY.llm
