"""Where a source comes from: a directory, or the Hub (never asked here)."""

import huggingface_hub
import pytest
from huggingface_hub import errors

from spark_jax.convert.hub import local_directory
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
    with pytest.raises(SparkError, match="no such directory"):
        local_directory(tmp_path / "file")
    assert not asked


def test_an_id_is_downloaded(tmp_path, answers):
    asked = answers(tmp_path)
    assert local_directory("owner/Model-0.5B", ["LLM/*"]) == (tmp_path, "owner/Model-0.5B")
    assert asked == [("owner/Model-0.5B", ["LLM/*"])]


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
