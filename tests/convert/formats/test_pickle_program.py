"""Pickles that mean harm: each is refused, runs nothing, and takes neither memory nor time."""

import builtins
import contextlib
import copyreg
import functools
import importlib
import operator
import os
import pickle
import posixpath
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc

import pytest
from helpers.torch_archive import number, tensor, text, write_archive

from spark_jax.convert.formats import pickle_program
from spark_jax.convert.formats.torch_pickle import read_torch_pickle
from spark_jax.errors import SparkError

WRITE = "open('marker', 'w').close()"


def refused(tmp_path, monkeypatch, program: bytes) -> str:
    """Reads the program as a checkpoint, from a folder in which a marker would appear; the message."""
    monkeypatch.chdir(tmp_path)
    path = write_archive(tmp_path / "model.bin", program)
    start = time.process_time()  # of this process alone: others may be at work
    tracemalloc.start()
    try:
        with pytest.raises(SparkError) as caught:
            read_torch_pickle(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000 + 400 * len(program), "memory goes with the file's size, not with what it says"
    assert time.process_time() - start < 5 + len(program) / 20_000
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 600
    assert sorted(os.listdir(tmp_path)) == ["model.bin"]
    return message


class Call:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CALLS = {
    "os.system": Call(os.system, "touch marker"),
    "eval": Call(eval, WRITE),
    "exec": Call(exec, WRITE),
    "compile": Call(compile, WRITE, "marker", "exec"),
    "open": Call(open, "marker", "w"),
    "__import__": Call(builtins.__import__, "antigravity"),
    "import_module": Call(importlib.import_module, "antigravity"),
    "getattr": Call(getattr, "text", "upper"),
    "attrgetter": Call(operator.attrgetter, "__class__.__subclasses__"),
    "methodcaller": Call(operator.methodcaller, "__init_subclass__"),
    "partial": Call(functools.partial, eval, WRITE),
    "subprocess": Call(subprocess.run, ["touch", "marker"]),
    "Popen": Call(subprocess.Popen, ["touch", "marker"]),
    "rmtree": Call(shutil.rmtree, "."),
    "expanduser": Call(posixpath.expanduser, "~"),
    "exit": Call(sys.exit, 3),
    "nested": Call(pickle.loads, pickle.dumps(Call(os.system, "touch marker"))),
    "vars": Call(vars),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", CALLS)
def test_calls_are_refused_by_their_name(tmp_path, monkeypatch, name, protocol):
    harm = CALLS[name]
    for value in ({"w": harm}, harm):
        message = refused(tmp_path, monkeypatch, pickle.dumps(value, protocol))
        assert f".{harm.call[0].__name__}; refused, nothing was run" in message


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(6) + b"tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
COMMAND = text("touch marker")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        # Every operation that calls, makes or changes an object.
        (b"(ios\nsystem\n.", "names os.system"),
        (b"(icollections\nOrderedDict\n.", "makes an instance"),
        (b"(cos\nsystem\n" + COMMAND + b"o.", "names os.system"),
        (b"(ccollections\nOrderedDict\n" + COMMAND + b"o.", "operation OBJ"),
        (b"\x80\x02cos\nsystem\n" + COMMAND + b"\x85\x81.", "names os.system"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "operation NEWOBJ"),
        (b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "operation NEWOBJ_EX"),
        (b"\x80\x02ccollections\nOrderedDict\n" + COMMAND + b"\x85R.", "builds something"),
        (b"\x80\x02" + REBUILD + COMMAND + b"\x85R.", "builds something"),
        (b"\x80\x02" + COMMAND + COMMAND + b"R.", "builds something"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "builds something"),
        # Extensions, and names in disguise.
        (b"\x80\x02\x82\xf0.", "operation EXT1"),
        (b"\x80\x02\x83\xf0\x00.", "operation EXT2"),
        (b"\x80\x02\x84\xf0\x00\x00\x00.", "operation EXT4"),
        (b"\x80\x02ctorch\nload\n)R.", "names torch.load"),
        (b"\x80\x02ctorch._utils\n_rebuild_wrapper_subclass\n)R.", "names torch._utils._rebuild_wrapper_subclass"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\n)R.", "names torch.storage._load_from_bytes"),
        (b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n)R.", "names torch._tensor._rebuild_from_type_v2"),
        (b"\x80\x02ccollections\nOrderedDict.fromkeys.__globals__\n.", "names collections.OrderedDict.fromkeys"),
        (b"\x80\x04" + short("collections") + short("OrderedDict.x") + b"\x93.", "names collections.OrderedDict.x"),
        (b"\x80\x04" + short("torch\nos") + short("system") + b"\x93.", "names torch os.system"),
        (b"\x80\x04K\x01K\x02\x93.", "names something by a value"),
        (b"\x80\x04}}\x93.", "names something by a value"),
        # State: attributes of what the names stand for, of tensors, of storages.
        (b"\x80\x02" + REBUILD + b"}" + text("_call") + text("x") + b"sb.", "sets the state"),
        (b"\x80\x02" + REBUILD + b"N}" + text("_call") + text("x") + b"s\x86b.", "sets the state"),
        (b"\x80\x02" + STORAGE + b"}b.", "sets the state"),
        (b"\x80\x02}" + COMMAND + b"b.", "sets the state"),
        (b"\x80\x02" + tensor("FloatStorage", 6, 0, (6,), (1,), "0") + text("x") + text("y") + b"s.", "sets an item"),
        (b"\x80\x02}" + b"K\x01K\x01s.", "names as keys"),
        (b"\x80\x02}(" + text("x") + b"u.", "sets an item"),
        (b"\x80\x02}" + text("w") + b"Ns" + text("w") + b"Ns.", "describes 'w' twice"),
        # Persistent identifiers.
        (b"\x80\x02Ptouch marker\n.", "operation PERSID"),
        (b"\x80\x02" + COMMAND + b"Q.", "persistent identifier"),
        (b"\x80\x02)Q.", "persistent identifier"),
        (STORAGE.replace(b"storage", b"modules") + b".", "persistent identifier"),
        (STORAGE.replace(b"ctorch\nFloatStorage\n", text("FloatStorage")) + b".", "persistent identifier"),
        (STORAGE.replace(text("0"), b"K\x00") + b".", "persistent identifier"),
        (STORAGE.replace(number(6), number(-6)) + b".", "persistent identifier"),
        (STORAGE.replace(number(6), STORAGE) + b".", "persistent identifier"),
        # Tensors of anything but numbers.
        (REBUILD + b"(" + STORAGE + b"K\x00" + text("23") + b"K\x01\x85tR.", "builds something"),
        (REBUILD + b"(" + STORAGE + b"K\x00K\x01\x85K\x01\x85t" + b"K\x01\x85R.", "builds something"),
        (tensor("FloatStorage", 6, -1, (6,), (1,), "0") + b".", "builds something"),
        (tensor("FloatStorage", 6, 5, (6,), (-1,), "0") + b".", "builds something"),
        (tensor("FloatStorage", 6, 0, (6,), (1, 1), "0") + b".", "builds something"),
        (b"ctorch._utils\n_rebuild_parameter\n" + STORAGE + b"\x89N\x87R.", "builds something"),
        (tensor("QInt8Storage", 6, 0, (6,), (1,), "0") + b".", "names torch.QInt8Storage"),
        # Stack, marks and memo.
        (b"", "data.pkl is malformed"),
        (b".", "leaves more or less than one value"),
        (b"NN.", "leaves more or less than one value"),
        (b"}(.", "leaves more or less than one value"),
        (b"N", "data.pkl is malformed"),
        (b"\x85.", "value that is not there"),
        (b"N(\x85.", "value that is not there"),
        (b"t.", "mark that is not there"),
        (b"0.", "operation POP"),
        (b"K\x012.", "operation DUP"),
        (b"h\x05.", "recalls 5, which it never kept"),
        (b"q\x05.", "value that is not there"),
        (b"\xff\xff\xff", "data.pkl is malformed"),
        (b"]N" + b"a" * 9 + b".", "operation EMPTY_LIST"),
        (b"K\x01.", "holds a int; expected a state dict"),
        (b"\x8f.", "operation EMPTY_SET"),
        # Sizes that the file does not have.
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "holds a NoneType"),  # CPython's memo would take 16 GB
        (b"Nr\xff\xff\xff\xff0.", "operation POP"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "data.pkl"),  # a bytearray of a terabyte
        (b"\x8d\xff\xff\xff\xff\xff\x00\x00\x00.", "data.pkl is malformed"),  # a text of a terabyte
        (b"\x8e\xff\xff\xff\xff\xff\x00\x00\x00.", "data.pkl is malformed"),
        (b"X\xff\xff\xff\x7f.", "data.pkl is malformed"),
        (b"B\xff\xff\xff\x7f.", "data.pkl is malformed"),
        (b"\x8b\xff\xff\xff\x7f.", "data.pkl is malformed"),  # a number of 2 GB
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\x00\x00\x00N.", "holds a NoneType"),  # a frame: nothing is read by it
        (b"L" + b"9" * 100_000 + b"L\n.", "data.pkl"),
        (b"\x80\xff.", "data.pkl"),
    ],
)
def test_programs_that_mean_harm(tmp_path, monkeypatch, program, message):
    assert message in refused(tmp_path, monkeypatch, program)


def test_a_registered_extension_is_not_used(tmp_path, monkeypatch):
    """What pickle itself would turn into os.system, without its name in the file."""
    copyreg.add_extension("os", "system", 240)
    try:
        assert pickle.loads(b"\x80\x02\x82\xf0.") is os.system
        for code in (b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"):
            assert "operation EXT" in refused(tmp_path, monkeypatch, b"\x80\x02" + code + COMMAND + b"\x85R.")
    finally:
        copyreg.remove_extension("os", "system", 240)


def shared_nest(depth: int) -> bytes:
    """t = (t, t), `depth` times: 2^depth leaves for whoever compares, hashes or prints it."""
    return b"N" + b"".join(b"r" + struct.pack("<I", i) + b"j" + struct.pack("<I", i) + b"\x86" for i in range(depth))


@pytest.mark.parametrize("use", [b".", b"Q.", b"}\x86R.", b"N\x93.", b"}" + text("w") + b"Ns\x86b."])
def test_a_nest_of_shared_tuples_costs_nothing(tmp_path, monkeypatch, use):
    refused(tmp_path, monkeypatch, shared_nest(60) + use)
    refused(tmp_path, monkeypatch, b"}" + shared_nest(60) + b"Ns.")  # as a key
    refused(tmp_path, monkeypatch, REBUILD + b"(" + STORAGE + b"K\x00" + shared_nest(60) + shared_nest(60) + b"tR.")


@pytest.mark.extended
def test_deep_nesting(tmp_path, monkeypatch):
    for program in (b"N" + b"\x85" * 200_000 + b".", b"(" * 200_000 + b".", b"(" * 200_000 + b"t" * 200_000 + b"."):
        refused(tmp_path, monkeypatch, program)
    dictionaries = b"}" + (text("w") + b"}") * 100_000 + b"s" * 100_000 + b"."
    path = write_archive(tmp_path / "nested.bin", dictionaries)
    assert read_torch_pickle(path)["w"].fault == "is no tensor"


def test_programs_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_program, "MAX_OPERATIONS", 1000)
    assert "more than 1000 operations" in refused(tmp_path, monkeypatch, b"N" + b"\x94" * 1000 + b".")
    assert "more than 1000 operations" in refused(tmp_path, monkeypatch, b"N" * 1001)
    with pytest.raises(pickle_program.UnsafePickleError, match="bytes, at most"):
        pickle_program.evaluate(bytes(pickle_program.MAX_BYTES + 1))
    assert pickle_program.evaluate(b"N" + b"\x94" * 998 + b".") is None


def test_honest_programs():
    """What torch.save writes: attributes of the dictionary, parameters, both forms of names, recalled values."""
    hooks = b"ccollections\nOrderedDict\n)R"
    parameter = b"ctorch._utils\n_rebuild_parameter\n" + tensor("HalfStorage", 6, 1, (2,), (3,), "7") + b"\x88" + hooks
    program = (
        b"\x80\x02"
        + hooks
        + b"q\x00("
        + text("w")
        + parameter
        + b"\x87R"
        + text("v")
        + tensor("LongStorage", 1, 0, (), (), "8")
        + b"u}"
        + text("_metadata")
        + hooks
        + b"sb."
    )
    state = pickle_program.evaluate(program)
    assert list(state) == ["w", "v"]
    assert state["w"].storage.key == "7" and state["w"].storage.dtype == "<f2" and state["w"].storage.size == 6
    assert state["w"][1:] == (1, (2,), (3,)) and state["v"].shape == () and state["v"].storage.dtype == "<i8"


def test_every_program_of_two_operations_is_answered():
    """No sequence of bytes does anything but give a value or be refused."""
    for first in range(256):
        for second in range(256):
            with contextlib.suppress(pickle_program.UnsafePickleError):
                pickle_program.evaluate(bytes([first, second, 46]))
