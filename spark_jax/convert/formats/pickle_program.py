"""Reads the pickle of a torch state dict as what it is, a program, on a machine that can build descriptions only.

Nothing of Python's own unpickler takes part. The machine knows the operations that `torch.save` emits for a state
dict and the few names that such a program needs; a name stands for a description (which storage, which shape), never
for a function of this process. Any other operation or name is refused where it is met. Values are text, numbers,
tuples of them, dictionaries with text keys, storages and tensors; they are neither compared, hashed nor printed, so
that a nest of shared tuples costs nothing.
"""

import enum
import pickletools
from typing import Any, NamedTuple

import numpy as np

from spark_jax.convert.formats.tensors import BFLOAT16
from spark_jax.errors import one_line

STORAGE_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
MAX_BYTES = 16 << 20  # of a program; that of a 24-layer model has 0.1 MB
MAX_OPERATIONS = 1 << 20  # some 40 a tensor


class Storage(NamedTuple):
    """A run of numbers in an archive entry of its own."""

    key: str  # the entry's name below data/
    dtype: np.dtype
    size: int  # in elements


class Tensor(NamedTuple):
    """A view of a storage."""

    storage: Storage
    offset: int  # in elements, as the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class UnsafePickleError(Exception):
    """The program is no description of tensors; the message says what it does instead."""


class _Name(enum.Enum):
    """What a program may name, besides the types of storages."""

    TENSOR = ("torch._utils", "_rebuild_tensor_v2")
    PARAMETER = ("torch._utils", "_rebuild_parameter")
    DICTIONARY = ("collections", "OrderedDict")


_NAMES = {name.value: name for name in _Name}
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "UNICODE"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def evaluate(program: bytes) -> Any:
    """Returns the value that a pickle program describes; of a state dict, a dictionary of names to `Tensor`.

    Raises:
      UnsafePickleError: the program does anything else, is malformed, or too long.
    """
    if len(program) > MAX_BYTES:
        raise UnsafePickleError(f"has {len(program)} bytes, at most {MAX_BYTES} are expected")
    machine = _Machine()
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(program)):
            if count == MAX_OPERATIONS:
                raise UnsafePickleError(f"has more than {MAX_OPERATIONS} operations")
            if operation.name == "STOP":
                return machine.result()
            machine.step(operation.name, argument)
    except UnsafePickleError:
        raise
    except Exception as error:  # pickletools answers malformed bytes with many types
        raise UnsafePickleError(f"is malformed ({one_line(error, 200)})") from error
    raise UnsafePickleError("does not end")


class _Machine:
    """Stack, marks and memo of a running program."""

    def __init__(self):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise UnsafePickleError("leaves more or less than one value")
        return self.stack[0]

    def step(self, name: str, argument: Any) -> None:
        """Runs one operation, named as in `pickletools`."""
        if name in _VALUES:
            self.stack.append(_VALUES[name])
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name == "EMPTY_DICT":
            self.stack.append({})
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "TUPLE":
            self.stack.append(tuple(self._marked()))
        elif name in _TUPLES:
            self.stack.append(tuple(self._top(_TUPLES[name])))
        elif name == "DICT":
            items = self._marked()
            self.stack.append({})
            self._set_items(items)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self._peek()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self._peek()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise UnsafePickleError(f"recalls {argument}, which it never kept")
            self.stack.append(self.memo[argument])
        elif name in ("GLOBAL", "INST"):
            self.stack.append(_named(*argument.split(" ", 1)))
            if name == "INST":
                raise UnsafePickleError("makes an instance of a class")
        elif name == "STACK_GLOBAL":
            self.stack.append(_named(*self._top(2)))
        elif name == "BINPERSID":
            self.stack.append(_storage(*self._top(1)))
        elif name == "REDUCE":
            self.stack.append(_call(*self._top(2)))
        elif name == "BUILD":
            # The attributes of an OrderedDict (torch keeps version numbers there): not needed.
            target, state = self._top(2)
            if type(target) is not dict or type(state) is not dict:
                raise UnsafePickleError("sets the state of something else than a dictionary")
            self.stack.append(target)
        elif name == "SETITEM":
            self._set_items(self._top(2))
        elif name == "SETITEMS":
            self._set_items(self._marked())
        elif name not in ("PROTO", "FRAME"):
            raise UnsafePickleError(f"uses the operation {name}; refused, nothing was run")

    def _peek(self) -> Any:
        if not self.stack:
            raise UnsafePickleError("uses a value that is not there")
        return self.stack[-1]

    def _top(self, count: int) -> list[Any]:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise UnsafePickleError("uses a value that is not there")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _marked(self) -> list[Any]:
        if not self.marks:
            raise UnsafePickleError("uses a mark that is not there")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _set_items(self, items: list[Any]) -> None:
        target = self._peek()
        if type(target) is not dict or len(items) % 2 or not all(type(key) is str for key in items[::2]):
            raise UnsafePickleError("sets an item of something else than a dictionary with names as keys")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if key in target:
                raise UnsafePickleError(f"describes {key[:200]!r} twice")
            target[key] = value


def _named(module: Any, name: Any) -> Any:
    if type(module) is not str or type(name) is not str:
        raise UnsafePickleError("names something by a value that is no text")
    if module == "torch" and name in STORAGE_DTYPES:
        return STORAGE_DTYPES[name]
    if (module, name) not in _NAMES:
        raise UnsafePickleError(f"names {f'{module}.{name}'[:200]}; refused, nothing was run")
    return _NAMES[module, name]


def _storage(identifier: Any) -> Storage:
    """The persistent identifier of a storage: ("storage", type, key, device, elements)."""
    match identifier:
        case ("storage", np.dtype() as dtype, str() as key, str(), int() as size) if size >= 0:
            return Storage(key, dtype, size)
    raise UnsafePickleError("has a persistent identifier that is none of a storage")


def _call(name: Any, arguments: Any) -> Any:
    match name, arguments:
        case _Name.DICTIONARY, ():
            return {}
        case _Name.PARAMETER, (Tensor() as tensor, *_):
            return tensor
        case _Name.TENSOR, (Storage() as storage, offset, tuple() as shape, tuple() as strides, *_):
            numbers = (offset, *shape, *strides)
            if len(shape) == len(strides) and all(type(number) is int and number >= 0 for number in numbers):
                return Tensor(storage, offset, shape, strides)
    raise UnsafePickleError("builds something that is neither a tensor nor a dictionary")
