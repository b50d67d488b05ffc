"""Where a source comes from: a directory, or the Hub (never asked here)."""

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from spark_jax.convert.causes import check_llm
from spark_jax.convert.hub import local_adapter, local_directory, local_llm
from spark_jax.convert.weights import FILES
from spark_jax.errors import SparkError


@pytest.fixture
def answers(monkeypatch):
    """Makes the Hub answer with a folder, or fail."""
    asked = []

    def answers(result):
        def snapshot_download(name, allow_patterns):
            asked.append((name, allow_patterns))
            if isinstance(result, Exception):
                raise result
            return str(result)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return asked

    return answers


def test_directories_need_no_hub(tmp_path, answers):
    asked = answers(RuntimeError())
    assert local_directory(tmp_path) == (tmp_path, None)
    for source in (tmp_path / "nowhere", "nowhere", "../x/y", "a/b/c", "owner/.."):
        with pytest.raises(SparkError, match="no such directory, and no id of a Hub repository"):
            local_directory(source)
    (tmp_path / "file").touch()
    with pytest.raises(SparkError, match=f"file: no such directory, but a file; expected its folder, {tmp_path}"):
        local_directory(tmp_path / "file")
    assert not asked


def test_an_id_is_downloaded(tmp_path, answers):
    asked = answers(tmp_path)
    assert local_directory("owner/Model-0.5B", ["LLM/*"]) == (tmp_path, "owner/Model-0.5B")
    assert asked == [("owner/Model-0.5B", ["LLM/*"])]


@pytest.fixture
def repository(monkeypatch, tmp_path):
    """A stand-in of the Hub: a repository of empty files, of which those that are asked for come into one folder."""

    def repository(*names):
        fetched = []

        def snapshot_download(name, allow_patterns):
            chosen = list(filter_repo_objects(names, allow_patterns=allow_patterns))
            for each in chosen:
                (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / each).touch()
            fetched.extend(each for each in chosen if each not in fetched)
            return str(tmp_path)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return fetched

    return repository


SETTINGS = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
]
OTHERS = [
    "README.md",
    "optimizer.pt",
    "training_args.bin",
    "runs/events.out",
    "checkpoint-500/model.safetensors",
    "checkpoint-500/optimizer.pt",
    "onnx/model.onnx",
    "original/consolidated.00.pth",
    "tf_model.h5",
    "model-q4.gguf",
    "global_step500/mp_rank_00_model_states.pt",
]
SHARDS = ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
PICKLED = ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"]


@pytest.mark.parametrize(
    ("weights", "besides"),
    [
        (["model.safetensors"], ["pytorch_model.bin"]),
        (SHARDS, PICKLED),
        (["pytorch_model.bin"], []),
        (PICKLED, []),
        (["params/llm/state/d/0", "tokenizer/tokenizer.json", "manifest.json"], []),
    ],
)
def test_of_an_llm_only_what_it_needs_is_fetched(repository, tmp_path, weights, besides):
    fetched = repository(*SETTINGS, *weights, *besides, *OTHERS)
    assert local_llm("owner/model") == (tmp_path, "owner/model")
    assert sorted(fetched) == sorted([*SETTINGS, *weights])


def test_of_a_release_or_an_adapter_in_its_place_little_is_fetched(repository, tmp_path):
    parts = ["LLM/model.safetensors", "LLM/config.json", "BiCodec/model.safetensors", "BiCodec/config.yaml"]
    fetched = repository("config.yaml", "README.md", *parts)
    folder, _ = local_llm("owner/release")
    assert fetched == ["config.yaml"]
    with pytest.raises(SparkError, match="a whole release, no LLM"):
        check_llm(folder, FILES)


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_of_an_adapter_only_what_it_needs_is_fetched(repository, tmp_path, weights):
    fetched = repository("adapter_config.json", weights, *OTHERS, "tokenizer.json")
    assert local_adapter("owner/adapter") == (tmp_path, "owner/adapter")
    assert sorted(fetched) == ["adapter_config.json", weights]
    with pytest.raises(SparkError, match="a PEFT adapter, no LLM"):
        check_llm(tmp_path, FILES)


class Response:
    headers, request, status_code = {}, None, 404


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError("no\nsuch", response=Response()), "no .public. repository of the Hub"),
        (errors.GatedRepoError("gated", response=Response()), "accepted its terms"),
        (errors.LocalEntryNotFoundError("offline\nmode"), "the Hub cannot be reached .offline mode"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_failures_are_one_line(answers, error, message):
    answers(error)
    with pytest.raises(SparkError, match=f"owner/model: .*{message}") as caught:
        local_directory("owner/model")
    assert "\n" not in str(caught.value)


def test_offline(monkeypatch, tmp_path):
    """The library's own offline mode."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SparkError, match="owner/model: no such directory here, and the Hub cannot be reached"):
        local_directory("owner/model")
