"""The way back: official → ours → official changes no bit, and the files load where the official ones do."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from helpers import official_layout
from helpers.tiny_config import tiny
from helpers.tiny_model import draw
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file

from spark_jax import config as config_lib
from spark_jax.convert import configuration, official, release
from spark_jax.convert.configuration import WAV2VEC2
from spark_jax.convert.engine import Export
from spark_jax.convert.export import export
from spark_jax.errors import SparkError
from spark_jax.model_directory import directory as model_directory
from spark_jax.model_directory.parameters import abstract_part
from spark_jax.qwen2.model import Qwen2
from spark_jax.shared.pytree import flatten
from spark_jax.wav2vec2.model import Wav2Vec2

ASSETS = Path(__file__).parents[1] / "assets"


def assert_same(found: Path, expected: Path, ignored=()) -> None:
    """Two safetensors files: the same names, types and bits."""
    found, expected = load_file(found), load_file(expected)
    assert found.keys() == expected.keys() - set(ignored)
    for name, values in found.items():
        assert (values.dtype, values.shape) == (expected[name].dtype, expected[name].shape), name
        assert values.tobytes() == expected[name].tobytes(), name


LLMS = {
    "qwen2": {},
    "qwen3": {"head_dim": 12, "attention_bias": False, "qk_norm": True},
    "untied": {"tie_word_embeddings": False},
    "wide_heads": {"head_dim": 12},
}


def system(llm: str) -> config_lib.SparkConfig:
    """A tiny system with one kind of LLM."""
    config = official_layout.tiny()
    return dataclasses.replace(config, llm=dataclasses.replace(config.llm, **LLMS[llm]))


@pytest.mark.extended
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_changes_no_bit(tmp_path, dtype):
    config = official_layout.tiny()
    official_layout.write(tmp_path / "official", config, pickled=False, llm_dtype=dtype, wav2vec2_dtype=dtype)
    official.convert(tmp_path / "official", tmp_path / "model", dtype=dtype)
    export(tmp_path / "model", tmp_path / "exported")
    for folder in ("BiCodec", "LLM"):
        file = Path(folder) / "model.safetensors"
        assert_same(tmp_path / "exported" / file, tmp_path / "official" / file)
    before = load_file(tmp_path / "official" / WAV2VEC2 / "model.safetensors")
    after = load_file(tmp_path / "exported" / WAV2VEC2 / "model.safetensors")
    idle = {name for name in after if name.startswith("encoder.layers.16.")}
    assert after.keys() == before.keys() and len(idle) == 16  # the tiny source has 17 layers as well
    invented = idle | {"masked_spec_embed", "encoder.layer_norm.weight", "encoder.layer_norm.bias"}
    for name in after.keys() - invented:
        assert after[name].dtype == np.float32
        assert after[name].astype(before[name].dtype).tobytes() == before[name].tobytes()
    assert release.read_config(tmp_path / "exported") == config
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "exported/LLM" / name).read_bytes() == (tmp_path / "official/LLM" / name).read_bytes()
    official.convert(tmp_path / "exported", tmp_path / "again", dtype=dtype)
    first, second = (model_directory.load(tmp_path / name).variables for name in ("model", "again"))
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("kind", [kind for kind in LLMS if kind != "qwen2"])
def test_round_trip_of_other_decoders(tmp_path, kind):
    """Each in bfloat16, its norms' bits included."""
    config = system(kind)
    official_layout.write(tmp_path / "official", config, pickled=False, llm_dtype="bfloat16")
    official.convert(tmp_path / "official", tmp_path / "model", dtype="bfloat16", parts=["llm"])
    export(tmp_path / "model", tmp_path / "exported")
    assert [path.name for path in (tmp_path / "exported").iterdir()] == ["LLM"]
    file = Path("LLM") / "model.safetensors"
    assert_same(tmp_path / "exported" / file, tmp_path / "official" / file)
    assert configuration.read_llm_config(tmp_path / "exported" / "LLM" / "config.json") == config.llm


def test_types(tmp_path, tiny_model_directory):
    """A float32 model goes out as asked for; the codec and the features stay float32."""
    for dtype in ("float32", "bfloat16", "float16"):
        parts = None if dtype == "float16" else ["llm"]
        sizes = export(tiny_model_directory, tmp_path / dtype, dtype, parts)
        llm = load_file(tmp_path / dtype / "LLM" / "model.safetensors")
        assert {str(values.dtype) for values in llm.values()} == {dtype}
        assert json.loads((tmp_path / dtype / "LLM" / "config.json").read_text())["torch_dtype"] == dtype
        assert sizes["llm"] == (tmp_path / dtype / "LLM" / "model.safetensors").stat().st_size
    for folder in ("BiCodec", WAV2VEC2):
        types = {values.dtype for values in load_file(tmp_path / "float16" / folder / "model.safetensors").values()}
        assert types - {np.dtype("int64")} == {np.dtype("float32")}


def test_the_codec_s_file_has_the_release_s_tensors_exactly():
    expected = json.loads((ASSETS / "official_tensors.json").read_text())
    names = {np.dtype("float32"): "F32", np.dtype("int64"): "I64"}
    for part in ("bicodec", "llm"):
        target = abstract_part(part, getattr(config_lib.RELEASE, part))
        job = Export(release.table(part, config_lib.RELEASE), target, np.dtype("float32"))
        found = {name: [names[dtype], list(shape)] for name, (shape, dtype) in job.specifications.items()}
        assert found == {name: [kind.replace("BF16", "F32"), shape] for name, (kind, shape) in expected[part].items()}
    job = Export(
        release.table("wav2vec2", config_lib.RELEASE),
        abstract_part("wav2vec2", config_lib.RELEASE.wav2vec2),
        np.dtype("float32"),
    )
    above = tuple(f"encoder.layers.{i}." for i in range(17, 24))
    assert job.specifications.keys() == {name for name in expected["wav2vec2"] if not name.startswith(above)}


def test_the_codec_s_configuration_has_the_release_s_keys(tmp_path):
    """The release's code passes each section to a constructor, which takes no other names."""
    configuration.write_bicodec_config(tmp_path / "config.yaml", config_lib.RELEASE.bicodec)
    sections = yaml.safe_load((tmp_path / "config.yaml").read_text())["audio_tokenizer"]
    golden = yaml.safe_load((ASSETS / "bicodec" / "config.yaml").read_text())["audio_tokenizer"]
    golden["postnet"]["sample_ratios"] = [1, 1]  # the constructor's default
    assert {name: section.keys() for name, section in sections.items()} == {
        name: section.keys() for name, section in golden.items()
    }
    assert configuration.read_bicodec_config(tmp_path / "config.yaml") == config_lib.RELEASE.bicodec


@pytest.mark.parametrize("part", ["bicodec", "wav2vec2", "llm"])
def test_goldens_pass_through_both_directions(tmp_path, part):
    """The reference's own files come back with the same bits, their configurations with the same meaning."""
    folder = ASSETS / {"bicodec": "bicodec", "wav2vec2": "wav2vec2", "llm": "qwen2"}[part]
    if part == "bicodec":
        content = yaml.safe_load((folder / "config.yaml").read_text())
        content["audio_tokenizer"]["speaker_encoder"] |= content["fixture_overrides"]
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
        own = configuration.read_bicodec_config(tmp_path / "config.yaml")
        configuration.write_bicodec_config(tmp_path / "written.yaml", own)
        assert configuration.read_bicodec_config(tmp_path / "written.yaml") == own
    elif part == "wav2vec2":
        own = configuration.read_wav2vec2_config(folder)
        configuration.write_wav2vec2_config(tmp_path, own, 16_000)
        assert configuration.read_wav2vec2_config(tmp_path) == dataclasses.replace(own, num_hidden_layers=17)
    else:
        own = configuration.read_llm_config(folder / "config.json")
        configuration.write_llm_config(tmp_path, own, "float32", end=1, padding=0)
        assert configuration.read_llm_config(tmp_path / "config.json") == own
    system = dataclasses.replace(tiny(), **{part: own})
    target = abstract_part(part, own)
    variables = official.read_variables(part, folder / "model.safetensors", system, target)
    job = Export(release.table(part, system), target, np.dtype("float32"))
    exported = dict(job.tensors(flatten(variables).items()))
    golden = load_file(folder / "model.safetensors")
    if part == "wav2vec2":
        golden = {name: values for name, values in golden.items() if name in exported}
        golden |= dict(release.table(part, system).constants.items())
    if part == "bicodec":  # the golden was saved after a step of training
        counters = {name for name in golden if name.endswith("num_batches_tracked")}
        assert all(exported[name] == 0 for name in counters)
        golden |= {name: exported[name] for name in counters}
    assert exported.keys() == golden.keys()
    for name, values in golden.items():
        np.testing.assert_array_equal(exported[name], values)


@pytest.mark.extended
def test_straight_from_runs(tmp_path, tiny_model_directory):
    """The model directories of runs, alone and in place of a model's parts."""
    model = model_directory.load(tiny_model_directory)
    changed = jax.tree.map(lambda leaf: leaf * 2, model.variables)
    write = model_directory.write_parts
    write(tmp_path / "llm", model.config, {"llm": changed["llm"]}, model.tokenizer_directory)
    recognizer = draw(abstract_part("recognizer", model.config.wav2vec2, 4))  # the release has no such part
    write(tmp_path / "bicodec", model.config, {"bicodec": changed["bicodec"], "recognizer": recognizer})
    assert export(tmp_path / "llm", tmp_path / "llm_alone").keys() == {"llm"}
    assert export(tmp_path / "bicodec", tmp_path / "codec_alone").keys() == {"bicodec"}
    runs = {"llm": tmp_path / "llm", "bicodec": tmp_path / "bicodec"}
    export(tiny_model_directory, tmp_path / "plain")
    export(tiny_model_directory, tmp_path / "all", replaced=runs)
    for name, folder in (("llm_alone", "LLM"), ("codec_alone", "BiCodec")):
        assert_same(tmp_path / name / folder / "model.safetensors", tmp_path / "all" / folder / "model.safetensors")
    for folder, factor in (("LLM", 2), ("BiCodec", 2), (WAV2VEC2, 1)):
        plain, found = (load_file(tmp_path / name / folder / "model.safetensors") for name in ("plain", "all"))
        for name, values in plain.items():
            np.testing.assert_array_equal(found[name], values * factor)
    write(tmp_path / "ctc", model.config, {"recognizer": recognizer})
    with pytest.raises(SparkError, match="ctc: holds none of the parts bicodec, wav2vec2, llm"):
        export(tmp_path / "ctc", tmp_path / "no")
    smaller = dataclasses.replace(model.config, llm=dataclasses.replace(model.config.llm, intermediate_size=40))
    (tmp_path / "llm" / "config.json").write_text(json.dumps({"format_version": 1, **config_lib.to_mapping(smaller)}))
    with pytest.raises(SparkError, match=r"params/llm: 3 tensors do not fit: .*misshapen params/layers/mlp/down/kern"):
        export(tmp_path / "llm", tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.extended
def test_straight_from_older_runs(tmp_path, tiny_model_directory):
    """Output folders of trainings that wrote no model directories, alone and in place of a model's parts."""
    model = model_directory.load(tiny_model_directory)
    changed = jax.tree.map(lambda leaf: leaf * 2, model.variables)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config_lib.to_mapping(model.config)))))
    for name in ("llm", "bicodec"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model": str(tmp_path / "model.yaml"), "loop": {}}))
    ocp.save(str(tmp_path / "llm" / "llm"), changed["llm"]["params"])
    shutil.copytree(model.tokenizer_directory, tmp_path / "llm" / "tokenizer")
    ocp.save(str(tmp_path / "bicodec" / "codec"), changed["bicodec"])
    export(tiny_model_directory, tmp_path / "plain")
    assert export(tmp_path / "llm", tmp_path / "llm_alone").keys() == {"llm"}
    assert [path.name for path in (tmp_path / "llm_alone").iterdir()] == ["LLM"]
    trained = {"llm": tmp_path / "llm", "bicodec": tmp_path / "bicodec"}
    export(tiny_model_directory, tmp_path / "all", replaced=trained)
    assert_same(tmp_path / "llm_alone/LLM/model.safetensors", tmp_path / "all/LLM/model.safetensors")
    for folder, factor in (("LLM", 2), ("BiCodec", 2), (WAV2VEC2, 1)):
        plain, found = (load_file(tmp_path / name / folder / "model.safetensors") for name in ("plain", "all"))
        for name, values in plain.items():
            np.testing.assert_array_equal(found[name], values * factor)
    assert release.read_config(tmp_path / "all").llm == model.config.llm
    with pytest.raises(SparkError, match="llm: holds no bicodec, but llm"):
        export(tiny_model_directory, tmp_path / "no", replaced={"bicodec": tmp_path / "llm"})
    (tmp_path / "llm" / "config.json").write_text("{}")
    with pytest.raises(SparkError, match="config.json: not the configuration of a training"):
        export(tmp_path / "llm", tmp_path / "no")
    smaller = dataclasses.replace(model.config, llm=dataclasses.replace(model.config.llm, intermediate_size=40))
    text = yaml.safe_dump(json.loads(json.dumps(config_lib.to_mapping(smaller))))
    (tmp_path / "llm" / "model.yaml").write_text(text)
    with pytest.raises(SparkError, match=r"llm/llm: 3 tensors do not fit: .*misshapen params/layers/mlp/down/kernel"):
        export(tmp_path / "llm", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_bad_arguments_and_values_leave_nothing(tmp_path, tiny_model_directory):
    for arguments, message in (
        ({"dtype": "int8"}, "dtype is 'int8', expected one of float32, bfloat16, float16"),
        ({"parts": ["vocoder"]}, "parts are vocoder, expected some of bicodec,wav2vec2,llm"),
        ({"replaced": {"llm": tmp_path / "nowhere"}}, "nowhere: no such directory"),
    ):
        with pytest.raises(SparkError, match=message):
            export(tiny_model_directory, tmp_path / "no", **arguments)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SparkError, match="config.json: cannot be read"):
        export(tmp_path / "empty", tmp_path / "no")
    model = model_directory.load(tiny_model_directory)
    model.variables["llm"]["params"]["norm"]["scale"] = jnp.full(32, 1e5)
    model.variables["llm"]["params"]["layers"]["mlp"]["up"]["kernel"] *= jnp.nan
    model_directory.save(tmp_path / "model", model.config, model.variables, model.tokenizer_directory)
    with pytest.raises(SparkError) as caught:
        export(tmp_path / "model", tmp_path / "no", dtype="float16")
    for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        assert f"{name} holds values that are not finite as float16" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "model"]


@pytest.mark.extended
def test_a_codec_with_a_harmonic_source_has_no_official_form(tmp_path, tiny_model_directory):
    model = model_directory.load(tiny_model_directory)
    codec = model.config.bicodec
    decoder = dataclasses.replace(codec.decoder, source=config_lib.SourceConfig(blocks=(0, 1), noise_blocks=()))
    config = dataclasses.replace(model.config, bicodec=dataclasses.replace(codec, decoder=decoder))
    variables = model.variables | {"bicodec": draw(model_directory.abstract_variables(config)["bicodec"])}
    model_directory.save(tmp_path / "model", config, variables, model.tokenizer_directory)
    assert model_directory.load(tmp_path / "model").config == config
    with pytest.raises(SparkError, match="bicodec.decoder.source is set"):
        export(tmp_path / "model", tmp_path / "no")
    assert set(export(tmp_path / "model", tmp_path / "rest", parts=["wav2vec2", "llm"])) == {"wav2vec2", "llm"}
    configuration.write_bicodec_config(tmp_path / "config.yaml", codec)
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert "source" not in content["audio_tokenizer"]["decoder"]
    content["audio_tokenizer"]["decoder"]["source"] = {"blocks": [0, 1]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SparkError, match="config.yaml: decoder: source is .*; the release has no harmonic source"):
        configuration.read_bicodec_config(tmp_path / "config.yaml")


def test_other_decoders_have_no_official_form(tmp_path):
    llama = dataclasses.replace(tiny().llm, attention_bias=False)
    with pytest.raises(SparkError, match="attention_bias False with qk_norm False is neither Qwen2 nor Qwen3"):
        configuration.write_llm_config(tmp_path, llama, "float32", 1, 0)


@pytest.mark.parametrize(("kind", "dtype"), [*((kind, "float32") for kind in LLMS), ("qwen2", "bfloat16")])
def test_transformers_gives_the_same_logits(tmp_path, kind, dtype):
    torch = pytest.importorskip("torch", reason="torch is in the extra parity only")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    config = system(kind)
    official_layout.write(tmp_path / "official", config, pickled=False)
    official.convert(tmp_path / "official", tmp_path / "model", parts=["llm"])
    export(tmp_path / "model", tmp_path / "exported", dtype=dtype)
    theirs, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "exported" / "LLM", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.rope_parameters["rope_theta"] == config.llm.rope_theta
    ids = np.random.default_rng(0).integers(0, config.llm.vocab_size, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).logits.numpy()
    variables = model_directory.load(tmp_path / "model", parts=["llm"]).variables["llm"]
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), variables)
    model = Qwen2(config.llm)
    hidden, _ = model.apply(variables, ids)
    logits = model.apply(variables, hidden, method="logits")
    worst = np.abs(logits - expected).max() / np.abs(expected).max()
    print(f"logits of up to {np.abs(expected).max():.2f}: largest difference {worst:.1e} of that")
    assert worst < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported" / "LLM")
    settings = GenerationConfig.from_pretrained(tmp_path / "exported" / "LLM")
    assert settings.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>") == theirs.config.eos_token_id
    assert settings.temperature == 0.8 and settings.top_k == 50 and settings.top_p == 0.95


def test_transformers_gives_the_tapped_hidden_states(tmp_path):
    """hidden_states[11], [14] and [16] of the exported model, as the official code reads them: no final norm."""
    torch = pytest.importorskip("torch", reason="torch is in the extra parity only")
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

    config = official_layout.tiny()
    official_layout.write(tmp_path / "official", config, pickled=False)
    official.convert(tmp_path / "official", tmp_path / "model", parts=["wav2vec2"])
    export(tmp_path / "model", tmp_path / "exported")
    folder = tmp_path / "exported" / WAV2VEC2
    theirs, report = Wav2Vec2Model.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    samples = np.random.default_rng(0).standard_normal(16_000)
    inputs = Wav2Vec2FeatureExtractor.from_pretrained(folder)(samples, sampling_rate=16_000, return_tensors="pt")
    theirs.config.output_hidden_states = True
    with torch.no_grad():
        states = [state.numpy() for state in theirs.eval()(inputs.input_values).hidden_states]
    assert len(states) == 18
    variables = model_directory.load(tmp_path / "model", parts=["wav2vec2"]).variables["wav2vec2"]
    ours = Wav2Vec2(config.wav2vec2).apply(variables, inputs.input_values.numpy(), method="hidden_states")
    for layer in (11, 14, 16):
        worst = np.abs(ours[layer] - states[layer]).max() / np.abs(states[layer]).max()
        print(f"hidden state {layer}: largest difference {worst:.1e}")
        assert worst < 1e-5
    # transformers 4 puts the final norm on the last hidden state; that must be the idle layer's.
    normalized = theirs.encoder.layer_norm(torch.from_numpy(states[16])).detach().numpy()
    assert np.abs(normalized - states[16]).max() > 1e-2
    assert min(np.abs(states[17] - other).max() for other in (states[16], normalized)) < 1e-6


def test_a_truncated_model_is_told_before_anything_is_written(tmp_path, tiny_model_directory):
    broken = shutil.copytree(tiny_model_directory, tmp_path / "model")
    data = max((broken / "params" / "llm").rglob("d/*"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(SparkError, match=f"incomplete model: {data} has"):
        export(broken, tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
