"""Files appear whole or not at all, under any name, and every failure is one line."""

import json
import os
import stat
import threading

import pytest

from spark_jax.errors import SparkError
from spark_jax.shared import files

LONG = "x" * 251 + ".txt"  # 255 bytes, the most that file systems take


def one_line_of(function, *arguments, **options) -> str:
    with pytest.raises(SparkError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "file"
    files.write_bytes(path, b"\0\xff")
    assert files.read_bytes(path) == b"\0\xff"
    files.write_bytes(path, memoryview(b"view"))
    assert files.read_bytes(path) == b"view"
    files.write_text(path, "Ä\n")
    assert path.read_bytes() == "Ä\n".encode() and files.read_text(path) == "Ä\n"
    path.write_bytes(b"\xef\xbb\xbfmarked")
    assert files.read_text(path) == "marked"
    files.write_json(path, {"ä": [1, None]})
    assert files.read_json(path) == {"ä": [1, None]} and path.read_text() == '{\n  "ä": [\n    1,\n    null\n  ]\n}\n'
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    target, link = tmp_path / "there" / "target", tmp_path / "here" / "link"
    target.write_text("old")
    link.symlink_to(target)
    files.write_text(link, "new")
    assert link.is_symlink() and not target.is_symlink() and target.read_text() == "new"
    chain = tmp_path / "chain"
    chain.symlink_to("here/link")  # relative, over another link
    files.write_text(chain, "newer")
    assert chain.is_symlink() and link.is_symlink() and target.read_text() == "newer"
    target.unlink()
    files.write_text(link, "made")  # what the link names does not exist yet
    assert link.is_symlink() and target.read_text() == "made"
    assert os.listdir(tmp_path / "there") == ["target"] and os.listdir(tmp_path / "here") == ["link"]


def test_a_fifo_and_a_device_are_written_through(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    files.write_text(pipe, "through")
    reader.join(timeout=30)
    assert received == [b"through"] and stat.S_ISFIFO(pipe.stat().st_mode)
    files.write_text(os.devnull, "gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_the_longest_name(tmp_path):
    for text in ("first", "second"):
        files.write_text(tmp_path / LONG, text)
    assert (tmp_path / LONG).read_text() == "second"
    with files.new_directory(tmp_path / "y".ljust(255, "y")) as folder:
        (folder / "file").touch()
    assert len(os.listdir(tmp_path)) == 2
    assert "cannot be written (File name too long)" in one_line_of(files.write_text, tmp_path / f"{LONG}x", "")


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(path):
        with files.open_atomic(path) as file:
            file.write(b"half")
            raise RuntimeError("interrupted")

    for target in (path, tmp_path / "new"):
        with pytest.raises(RuntimeError, match="interrupted"):
            fail(target)
    assert os.listdir(tmp_path) == ["file"] and path.read_text() == "old"


def test_what_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "folder", "Is a directory"),
        (tmp_path / "file" / "below", "Not a directory"),
        (tmp_path / "nowhere" / "below", "No such file or directory"),
    ):
        assert one_line_of(files.write_text, path, "text") == f"{path}: cannot be written ({reason})"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and os.listdir(tmp_path / "folder") == []


def test_what_cannot_be_read(tmp_path):
    assert one_line_of(files.read_bytes, tmp_path) == f"{tmp_path}: cannot be read (Is a directory)"
    nowhere = tmp_path / "nowhere"
    message = one_line_of(files.read_json, nowhere, "a model")
    assert message == f"{nowhere}: cannot be read (No such file or directory); expected a model"
    path = tmp_path / "file"
    path.write_bytes(b"ab\xff")
    assert one_line_of(files.read_text, path) == f"{path}: not UTF-8 text (byte 2: invalid start byte)"
    for content in (b"", b"{", b'{"a":\n1,}', b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        assert one_line_of(files.read_json, path).startswith(f"{path}: not valid JSON (")


def test_a_reason_of_many_lines_becomes_one(tmp_path):
    assert "\n" not in str(files.cannot_read("file", ValueError("first\n  second")))
    assert str(files.cannot_write("file", ValueError("first\n  second"))) == "file: cannot be written (first second)"


def test_a_folder_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "a" / "b"
    with files.new_directory(target) as folder:
        (folder / "file").write_text("whole")
        assert not target.exists()
    assert (target / "file").read_text() == "whole" and os.listdir(tmp_path / "a") == ["b"]
    assert "exists already; expected a new name or an empty directory" in one_line_of(
        lambda: files.new_directory(target).__enter__()
    )
    (tmp_path / "empty").mkdir()
    with files.new_directory(tmp_path / "empty") as folder:
        (folder / "file").touch()
    assert os.listdir(tmp_path / "empty") == ["file"]


def test_an_error_leaves_no_folder(tmp_path):
    def fail():
        with files.new_directory(tmp_path / "new") as folder:
            (folder / "half").touch()
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fail()
    (tmp_path / "file").touch()
    assert "cannot be written" in one_line_of(lambda: files.new_directory(tmp_path / "file" / "below").__enter__())
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_is_replaced(tmp_path):
    fresh, target = tmp_path / "fresh", tmp_path / "target"
    for content in ("first", "second"):
        fresh.mkdir()
        (fresh / content).touch()
        files.replace_directory(fresh, target)
        assert os.listdir(tmp_path) == ["target"] and os.listdir(target) == [content]
    assert "cannot be written" in one_line_of(files.replace_directory, tmp_path / "nowhere", target)
    assert os.listdir(target) == ["second"]


def test_temporary_names_are_short_hidden_and_unlike(tmp_path):
    names = {files.temporary_name(tmp_path / LONG).name for _ in range(10)}
    assert len(names) == 10 and all(name.startswith(".") and len(name) < 24 for name in names)
    assert json.dumps(sorted(names)).isascii()
