"""What is given in place of a model: the cause and the remedy in one line, and nothing is left behind."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import official_layout
from safetensors.numpy import load_file, save_file

from spark_jax.cli import main as cli
from spark_jax.config import SamplingConfig
from spark_jax.convert import official
from spark_jax.convert.export import export
from spark_jax.convert.init_llm import init_llm
from spark_jax.errors import ManyFaultsError, SparkError
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.layout import open_parts, read_config, read_system
from spark_jax.text_config import TextConfig

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1976161736\n"


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official") / "release"
    official_layout.write(folder, official_layout.tiny())
    return folder


@pytest.fixture
def copy(layout, tmp_path):
    return Path(shutil.copytree(layout, tmp_path / "release"))


def refused(message, call, *arguments, **options):
    with pytest.raises(SparkError, match=message) as told:
        call(*arguments, **options)
    assert "\n" not in str(told.value) and len(str(told.value)) < 1000
    return told.value


POINTERS = [
    "LLM/model.safetensors",
    "LLM/tokenizer.json",
    "LLM/config.json",
    "BiCodec/model.safetensors",
    "wav2vec2-large-xlsr-53/pytorch_model.bin",
    "config.yaml",
]


@pytest.mark.parametrize("name", POINTERS)
def test_a_pointer_of_git_lfs(copy, tmp_path, name):
    (copy / name).write_text(POINTER)
    refused(f"{copy / name}: a Git LFS pointer .*git lfs pull", official.convert, copy, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_shard_that_is_a_pointer(copy, tmp_path):
    tensors = load_file(copy / "LLM" / "model.safetensors")
    (copy / "LLM" / "model.safetensors").unlink()
    places = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (copy / "LLM" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (copy / "LLM" / "model-00001-of-00001.safetensors").write_text(POINTER)
    refused("model-00001-of-00001.safetensors: a Git LFS pointer", official.convert, copy, tmp_path / "model")


def test_the_release_s_layout_as_a_model(layout, capsys):
    for call in (model_directory.load, open_parts, read_config, read_system, model_directory.info):
        refused(f"{layout}: in the layout of the release; .*spark-jax convert {layout} DST", call, layout)
    refused("a model of type 'qwen2' in the layout of transformers; .*--llm", model_directory.load, layout / "LLM")
    with pytest.raises(SystemExit) as ended:
        cli.main(["info", str(layout)])
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    save_file({"base_model.model.x": np.zeros(2, np.float32)}, folder / "adapter_model.safetensors")
    return folder


def test_a_release_or_an_adapter_as_the_llm(layout, adapter, tmp_path):
    release = f"{layout}: a whole release, no LLM; .*--llm {layout / 'LLM'}"
    refused(release, official.convert, layout, tmp_path / "model", llm=layout)
    refused(release, init_llm, layout, tmp_path / "model", 166_000)
    refused(f"{adapter}: a PEFT adapter, .*--lora", official.convert, layout, tmp_path / "model", llm=adapter)
    refused("a PEFT adapter", init_llm, adapter, tmp_path / "model", 166_000)
    assert not (tmp_path / "model").exists()


def test_a_model_as_the_adapter(layout, tmp_path):
    refused("LLM: no adapter .*--llm", official.convert, layout, tmp_path / "model", lora=layout / "LLM")


def test_a_single_model_an_adapter_or_a_model_directory_as_the_release(layout, adapter, tiny_model_directory, tmp_path):
    refused("a single model; .*--llm", official.convert, layout / "LLM", tmp_path / "model")
    refused("a PEFT adapter; .*--lora", official.convert, adapter, tmp_path / "model")
    refused("a model directory already", official.convert, tiny_model_directory, tmp_path / "model")


def test_gguf(layout, tmp_path):
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "model-q4_k_m.gguf").write_bytes(b"GGUF" + bytes(60))
    shutil.copy(layout / "LLM" / "config.json", folder)
    message = "model-q4_k_m.gguf: GGUF is a format of llama.cpp, .* expected the folder of the original checkpoint"
    for given in (folder, folder / "model-q4_k_m.gguf"):
        refused(message, official.convert, layout, tmp_path / "model", llm=given)
    refused(message, official.convert, folder / "model-q4_k_m.gguf", tmp_path / "model")
    release = Path(shutil.copytree(layout, tmp_path / "release"))
    (release / "LLM" / "model.safetensors").unlink()
    shutil.copy(folder / "model-q4_k_m.gguf", release / "LLM")
    refused(message, official.convert, release, tmp_path / "model")
    shutil.copy(folder / "model-q4_k_m.gguf", tmp_path / "model.bin")  # by its content, too
    refused("model.bin: GGUF is", official.convert, layout, tmp_path / "model", llm=tmp_path / "model.bin")


def test_a_file_in_place_of_its_folder(layout, tmp_path):
    file = layout / "LLM" / "model.safetensors"
    refused(f"{file}: no such .* a file; expected its folder, {layout / 'LLM'}", official.convert, file, tmp_path / "m")


@pytest.mark.parametrize("settings", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "awq"}, {}, "int8"])
def test_quantized_by_its_settings(copy, tmp_path, settings):
    path = copy / "LLM" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    by = f" by {settings['quant_method']}" if "quant_method" in settings else ""
    message = f"config.json: quantization_config: the weights are quantized{by}; expected the checkpoint"
    refused(message, official.convert, copy, tmp_path / "model")


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("q_proj.qweight", "quantized weights .GPTQ or AWQ"),
        ("q_proj.weight.quant_state.bitsandbytes__nf4", "quantized weights .bitsandbytes"),
        ("q_proj.SCB", "quantized weights .bitsandbytes"),
        ("q_proj.weight_scale_inv", "quantized weights .compressed-tensors or FP8"),
        ("q_proj.lora_A.default.weight", "an adapter that is not merged .*merge_and_unload"),
    ],
)
def test_quantized_or_not_merged_by_the_names(copy, tmp_path, ending, message):
    path = copy / "LLM" / "model.safetensors"
    tensors = load_file(path) | {f"model.layers.0.self_attn.{ending}": np.zeros(3, np.float32)}
    save_file(tensors, path)
    refused(f"model.safetensors: {message}", official.convert, copy, tmp_path / "model")


def same_values(one, other):
    ours, theirs = (model_directory.load(folder, parts=["llm"]).variables["llm"] for folder in (one, other))
    flat = (list(official.flatten(tree).items()) for tree in (ours, theirs))
    for (name, values), (_, expected) in zip(*flat, strict=True):
        np.testing.assert_array_equal(values, expected, err_msg=name)


def test_prefixed_weights_are_converted_and_said(layout, copy, tmp_path):
    path = copy / "LLM" / "model.safetensors"
    tensors = load_file(path)
    official.convert(layout, tmp_path / "expected", parts=["llm"])
    save_file({f"_orig_mod.base_model.model.{name}": values for name, values in tensors.items()}, path)
    with pytest.warns(UserWarning, match="read without '_orig_mod.' and 'base_model.model.'"):
        official.convert(copy, tmp_path / "model", parts=["llm"])
    same_values(tmp_path / "model", tmp_path / "expected")
    # A decoder saved without its head: the first part of the names is missing.
    save_file({name.removeprefix("model."): values for name, values in tensors.items()}, path)
    official.convert(copy, tmp_path / "headless", parts=["llm"])
    same_values(tmp_path / "headless", tmp_path / "expected")


def test_five_faults_and_a_count_unless_all_are_asked_for(copy, tmp_path, capsys):
    path = copy / "LLM" / "model.safetensors"
    tensors = load_file(path)
    save_file({f"x{i}" if i % 2 else name: values for i, (name, values) in enumerate(tensors.items())}, path)
    error = refused(
        "tensors do not fit: .*; and [0-9]+ more .all with --verbose.$", official.convert, copy, tmp_path / "m"
    )
    assert isinstance(error, ManyFaultsError) and len(error.faults) == 2 * (len(tensors) // 2)
    assert str(error).count("missing ") + str(error).count("extra ") == 5

    def run(*options):
        with pytest.raises(SystemExit) as ended:
            cli.main(["convert", str(copy), str(tmp_path / "m"), *options])
        assert ended.value.code == 2
        return capsys.readouterr().err.splitlines()

    assert len(run()) == 1
    lines = run("--verbose")
    assert lines[:-1] == error.faults and lines[-1].startswith("error: ") and lines[-1].endswith(str(error))


def test_a_model_s_own_sampling_survives_export_and_conversion(tmp_path, tiny_model_directory):
    own = Path(shutil.copytree(tiny_model_directory, tmp_path / "own"))
    path = own / "config.json"
    content = json.loads(path.read_text()) | {"sampling": {"temperature": 0.6, "top_k": 20, "top_p": 0.9}}
    path.write_text(json.dumps(content))
    export(own, tmp_path / "exported", parts=["llm"])
    official.convert(tmp_path / "exported", tmp_path / "back", parts=["llm"])
    assert read_config(tmp_path / "back").sampling == SamplingConfig(0.6, 20, 0.9)
    # As the LLM of another release, and edited by hand.
    settings = tmp_path / "exported" / "LLM" / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"temperature": 1}))
    official.convert(tmp_path / "exported", tmp_path / "edited", parts=["llm"])
    assert read_config(tmp_path / "edited").sampling == SamplingConfig(1.0, 20, 0.9)
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"top_k": "many"}))
    refused("generation_config.json: .*top_k", official.convert, tmp_path / "exported", tmp_path / "bad", parts=["llm"])


def test_what_a_model_knows_of_text_survives_export_and_conversion(tmp_path, tiny_model_directory):
    own = Path(shutil.copytree(tiny_model_directory, tmp_path / "own"))
    known = TextConfig(("en",), "abc ,.", 70, join_sentences=False, normalize=True, lower_capitals=True, controls=())
    path = own / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"text": dataclasses.asdict(known)}))
    assert read_config(own).text == known
    export(own, tmp_path / "exported", parts=["llm"])
    official.convert(tmp_path / "exported", tmp_path / "back", parts=["llm"])
    assert read_config(tmp_path / "back").text == known
    settings = tmp_path / "exported" / "LLM" / "generation_config.json"
    content = json.loads(settings.read_text())
    for section, message in (
        ([], "spark_jax_text is .*, expected a mapping"),
        ({"languages": []}, "languages is empty"),
        ({"letters": "a"}, "letters"),
    ):
        settings.write_text(json.dumps(content | {"spark_jax_text": section}))
        refused(
            f"generation_config.json: .*{message}",
            official.convert,
            settings.parents[1],
            tmp_path / "bad",
            parts=["llm"],
        )
    # The release's own folder says nothing of it.
    export(tiny_model_directory, tmp_path / "plain", parts=["llm"])
    assert "spark_jax_text" not in (tmp_path / "plain" / "LLM" / "generation_config.json").read_text()


@pytest.mark.parametrize(
    "content", ['{"temperature": 0.7, "top_k": 20, "top_p": 0.8}', "{}", '{"spark_jax_sampling": 1}']
)
def test_the_sampling_of_a_base_model_is_not_the_release_s(copy, tmp_path, content):
    (copy / "LLM" / "generation_config.json").write_text(content)
    official.convert(copy, tmp_path / "model", parts=["llm"])
    assert read_config(tmp_path / "model").sampling == SamplingConfig()
