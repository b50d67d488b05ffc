"""The hashes of a model directory: no changed bit, missing, extra or truncated file goes unseen."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spark_jax.cli import main as cli
from spark_jax.errors import SparkError
from spark_jax.model_directory import manifest


@pytest.fixture
def copy(tiny_model_directory, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model_directory, tmp_path / "model"))


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def refusal(directory: Path) -> str:
    with pytest.raises(SparkError) as caught:
        manifest.check(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_directory_passes(tiny_model_directory):
    assert manifest.check(tiny_model_directory) == len(files_of(tiny_model_directory)) - 1


def test_a_flipped_bit_in_any_file_is_found_and_named(copy):
    """In every file, the manifest too: its first and last bit, and some between."""
    rng = np.random.default_rng(0)
    for path in files_of(copy):
        content = path.read_bytes()
        if not content:
            continue
        last = 8 * len(content) - 1
        bits = {0, last, *rng.integers(0, last + 1, 3).tolist()}
        for bit in bits:
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            # A flip in the manifest makes it unreadable, or makes it accuse the file whose line it hit.
            assert (str(path) if path.name != manifest.MANIFEST else str(copy)) in refusal(copy)
        path.write_bytes(content)
    assert manifest.check(copy) > 0


@pytest.mark.extended
def test_no_bit_of_the_manifest_can_change(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "empty").touch()
    manifest.write_manifest(tmp_path)
    path = tmp_path / manifest.MANIFEST
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refusal(tmp_path)
    for other in (content + b"\n", content.replace(b"\n", b""), content.replace(b'"algorithm": "sha256",', b"")):
        path.write_bytes(other)
        assert "manifest.json is changed: it says the same in another form" in refusal(tmp_path)
    path.write_bytes(content)
    assert manifest.check(tmp_path) == 2


def test_missing_extra_truncated_and_swapped_files_come_together(copy):
    card, config = copy / "MODEL_CARD.md", copy / "config.json"
    card.unlink()
    (copy / "voices").mkdir()
    (copy / "voices" / "default.json").write_text("{}")
    config.write_bytes(config.read_bytes()[:-1])
    tokenizer = copy / "tokenizer" / "tokenizer_config.json"
    tokenizer.write_bytes(bytes(reversed(tokenizer.read_bytes())))
    os.symlink("/dev/zero", copy / "link")
    message = refusal(copy)
    assert message.startswith("5 files are not as they were written: ")
    for fact in (
        f"{card} is missing",
        f"{copy / 'voices' / 'default.json'} is extra",
        f"{config} has {config.stat().st_size} bytes, expected {config.stat().st_size + 1}",
        f"{tokenizer} is changed: its sha256",
        f"{copy / 'link'} is no plain file",
    ):
        assert fact in message


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"files": []}', b'{"files": {"a": 1}}', b"[" * 100_000])
def test_malformed_manifests(tmp_path, content):
    (tmp_path / manifest.MANIFEST).write_bytes(content)
    message = refusal(tmp_path)
    is_json = content.endswith((b"]", b"}"))
    assert f"manifest.json: {'not a list of files' if is_json else 'not valid JSON'}" in message


def test_the_command_tells_by_its_exit_code(copy, capsys):
    def run(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["info", "--check", *map(str, arguments)])
        return stop.value.code or 0, *capsys.readouterr()

    code, out, _ = run(copy)
    assert code == 0 and f"all {len(files_of(copy)) - 1} files are as they were written" in out
    data = max(files_of(copy / "params"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    code, out, err = run(copy)
    assert (code, out) == (2, "") and f"{data} is changed" in err and err.count("\n") == 1
    (copy / manifest.MANIFEST).unlink()
    code, _, err = run(copy)
    assert code == 2 and "written without hashes and cannot be checked" in err
    code, _, err = run(copy / "nowhere")
    assert code == 2 and "nowhere" in err


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(SparkError, match="nothing: cannot be read"):
        manifest.hash_files(tmp_path, ["nothing"])


def test_the_hashes_are_those_of_other_tools(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert manifest.hash_files(tmp_path, ["a"]) == {"a": known}
    manifest.write_manifest(tmp_path)
    program = (
        "import hashlib, json; files = json.load(open('manifest.json'))['files']; assert files; print(all("
        "hashlib.sha256(open(n, 'rb').read()).hexdigest() == e['sha256'] for n, e in files.items()))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "True\n"
