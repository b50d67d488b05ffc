"""What a compiled program moves in one run: its collectives and its memory traffic, from the text of its HLO.

XLA's own cost analysis counts the body of a loop once; here a loop counts as often as it runs. Everything is read
from `jax.stages.Compiled.as_text()`, the optimized program of one device.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Names for values, or what is part of another instruction: no traffic of their own.
_NO_TRAFFIC = frozenset(
    {
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "partition-id",
        "replica-id",
        "iota",
        "copy-done",
        "async-update",
        "async-done",
        "fusion-done",
        "add-dependency",
        "opt-barrier",
        "slice-done",
        "dynamic-slice-done",
        *(f"{kind}-done" for kind in COLLECTIVES),
    }
)
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = ("dynamic-update-slice", "scatter")
_SAME_VALUES = ("bitcast", "convert", "reshape", "transpose")  # what is not asked of the result is not read
_SIZES = {"pred": 1, "token": 0, "opaque": 0, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"(pred|token|opaque|[a-z]+\d+[a-z0-9]*)\[([^\]]*)\](\{[^{}]*\})?")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `shape` is the text of the result's type."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    operand_text: str
    attributes: str
    is_root: bool = False

    def called(self, key: str) -> list[str]:
        """Returns the computations that the attribute `key` names."""
        found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return [] if found is None else re.findall(r"[\w.\-]+", found[1])


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one run of the program, on one device.

    Attributes:
      count: how often one runs.
      operand_bytes: their inputs.
      link_bytes: what the device receives over its links when each runs as a ring.
    """

    count: int = 0
    operand_bytes: float = 0.0
    link_bytes: float = 0.0


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Of one run of the program, on one device.

    Attributes:
      collectives: by kind.
      memory_bytes: read and written by all instructions, each of which reads its inputs from memory and writes its
        result to it; what stays in faster memory (TPU: VMEM) does not count.
      unknown_loops: loops whose number of turns the program does not say; they count as one turn.
    """

    collectives: Mapping[str, Collective]
    memory_bytes: float
    unknown_loops: int

    @property
    def link_bytes(self) -> float:
        return sum(collective.link_bytes for collective in self.collectives.values())


def traffic(text: str) -> Traffic:
    """Reads an optimized HLO module."""
    computations, entry = parse(text)
    runs, fused, unknown = _runs(computations, entry)
    collectives: dict[str, Collective] = {}
    memory = 0.0
    for name, times in runs.items():
        shapes = {instruction.name: instruction.shape for instruction in computations[name]}
        for instruction in computations[name]:
            kind = _kind(instruction, name)
            if kind is not None:
                size = sum(map(shape_bytes, (shapes.get(operand, "") for operand in instruction.operands)))
                group = group_size(instruction.attributes)
                old = collectives.get(kind, Collective())
                collectives[kind] = Collective(
                    old.count + times,
                    old.operand_bytes + times * size,
                    old.link_bytes + times * size * _ring(kind, group),
                )
            if name not in fused:
                memory += times * _traffic(instruction, shapes, computations)
    return Traffic(collectives, memory, unknown)


def large_writes(text: str, least: float) -> list[str]:
    """Returns the instructions that write at least so many bytes at a time, to any memory: `copy.3 bf16[8,128]`.

    An update in place counts as the update. So a large array that a program should only read and update is copied
    where this finds an instruction of its size.
    """
    computations, entry = parse(text)
    runs, fused, _ = _runs(computations, entry)
    found = []
    for name in runs.keys() - fused:
        shapes = {instruction.name: instruction.shape for instruction in computations[name]}
        for instruction in computations[name]:
            if instruction.opcode in (*_NO_TRAFFIC, *_UPDATES) or "AllocateBuffer" in instruction.attributes:
                continue
            size = _written(instruction, computations, None)
            if instruction.opcode.endswith("-start"):  # the result names the source, too
                size -= sum(shape_bytes(shapes.get(operand, "")) for operand in instruction.operands)
            if size >= least:
                found.append(f"{instruction.name} {instruction.shape}")
    return sorted(found)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns the instructions of each computation by its name, and the name of the entry."""
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    entry = ""
    for line in text.splitlines():
        if line.endswith("{") and " -> " in line and not line.startswith(" "):
            head = re.match(r"(ENTRY )?%?([\w.\-]+)", line)
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith(" ") and " = " in line:
            current.append(_instruction(line))
    return computations, entry


def shape_bytes(shape: str, memory_space: int | None = None) -> float:
    """Returns the bytes of a type, tuples with all their parts.

    Args:
      memory_space: count only arrays there (0: main memory); None: all.
    """
    total = 0.0
    for dtype, dims, layout in _ARRAY.findall(shape):
        space = re.search(r"S\((\d+)\)", layout)
        if memory_space is None or memory_space == (int(space[1]) if space else 0):
            total += _item_bytes(dtype) * math.prod(int(re.sub(r"\D", "", dim) or 0) for dim in dims.split(",") if dim)
    return total


def group_size(attributes: str) -> int:
    """Returns how many devices a collective runs over, by any of the ways in which replica_groups is written."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{}]*(?:\([^)]*\))?[^{}]*\{([^}]*)\}", attributes):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']*)'=(\d+)", found[1])}
        # An axis, or a part of one: 'axis_0':(1)2 stands for two devices of it.
        parts = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in parts)
    return 2 if "source_target_pairs" in attributes else 1


def _instruction(line: str) -> Instruction:
    is_root = line.lstrip().startswith("ROOT ")
    name, rest = line.strip().removeprefix("ROOT ").split(" = ", 1)
    shape = rest[: _closing(rest) + 1] if rest.startswith("(") else rest.split(" ", 1)[0]
    rest = rest[len(shape) :].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    inside = rest[:end]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or tuple(re.findall(r"[\w.\-]+", inside))
    return Instruction(name.lstrip("%"), shape, opcode, operands, inside, rest[end + 1 :], is_root)


def _closing(text: str) -> int:
    """Place of the bracket that closes the one `text` begins with."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    return len(text)


def _item_bytes(dtype: str) -> float:
    if dtype in _SIZES:
        return _SIZES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits[1]) / 8


def _kind(instruction: Instruction, computation: str) -> str | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    # TPU: a fusion of an all-reduce with the slice that the device keeps of it.
    return "reduce-scatter" if computation.startswith("all-reduce-scatter") else kind


def _ring(kind: str, group: int) -> float:
    """Bytes received for each byte of the operand."""
    return {
        "all-gather": group - 1,
        "reduce-scatter": (group - 1) / group,
        "all-reduce": 2 * (group - 1) / group,
        "all-to-all": (group - 1) / group,
        "collective-permute": 1,
    }[kind]


def _runs(computations: Mapping[str, Sequence[Instruction]], entry: str) -> tuple[dict[str, int], set[str], int]:
    """How often each computation runs, those that are parts of a fusion, and the number of unknown loops."""
    runs: dict[str, int] = defaultdict(int)
    fused: set[str] = set()
    unknown = 0

    def visit(name: str, times: int, in_fusion: bool) -> None:
        nonlocal unknown
        runs[name] += times
        if in_fusion:
            fused.add(name)
        for instruction in computations.get(name, ()):
            for callee, inner, turns in _callees(instruction, computations):
                unknown += turns == 0
                visit(callee, times * max(turns, 1), in_fusion or inner)

    visit(entry, 1, False)
    return {name: times for name, times in runs.items() if name in computations}, fused, unknown


def _callees(
    instruction: Instruction, computations: Mapping[str, Sequence[Instruction]]
) -> Iterator[tuple[str, bool, int]]:
    """(computation, is it part of a fusion, turns; 0: unknown)."""
    if instruction.opcode == "while":
        turns = _turns(instruction, computations)
        yield from ((body, False, turns) for body in instruction.called("body"))
    elif instruction.opcode == "conditional":
        for key in ("branch_computations", "true_computation", "false_computation"):
            yield from ((branch, False, 1) for branch in instruction.called(key))
    elif instruction.opcode == "call":
        yield from ((callee, False, 1) for callee in instruction.called("to_apply"))
    elif instruction.opcode == "async-start":
        yield from ((callee, False, 1) for callee in instruction.called("calls"))
    elif instruction.opcode == "fusion" and "-done" not in instruction.name:
        yield from ((callee, True, 1) for callee in instruction.called("calls"))


def _turns(loop: Instruction, computations: Mapping[str, Sequence[Instruction]]) -> int:
    """Turns of a loop that counts up from 0, as those of `scan` do; 0: unknown."""
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(found[1])
    (condition,) = loop.called("condition")
    constants = {}
    for instruction in computations.get(condition, ()):
        if instruction.opcode == "constant" and instruction.operand_text.isdigit():
            constants[instruction.name] = int(instruction.operand_text)
        if instruction.opcode == "compare" and "direction=LT" in instruction.attributes:
            return constants.get(instruction.operands[-1], 0)
    return 0


def _traffic(
    instruction: Instruction, shapes: Mapping[str, str], computations: Mapping[str, Sequence[Instruction]]
) -> float:
    """Bytes of main memory that an instruction reads and writes."""
    opcode = instruction.opcode
    if opcode in _NO_TRAFFIC or "AllocateBuffer" in instruction.attributes:
        return 0.0
    inputs = [shape_bytes(shapes.get(operand, ""), 0) for operand in instruction.operands]
    if opcode in ("copy-start", "all-gather-start", "collective-permute-start"):
        return shape_bytes(instruction.shape, 0)  # the result names source and destination
    if opcode in ("slice-start", "dynamic-slice-start"):  # so does this one's, but only a slice of the source is read
        source = sum(shape_bytes(shapes.get(operand, "")) for operand in instruction.operands)
        return shape_bytes(instruction.shape) - source + shape_bytes(instruction.shape, 0) - sum(inputs)
    if opcode == "dynamic-update-slice":
        return 2 * inputs[1]
    if opcode == "scatter":  # in place, as it is in a fusion
        arrays = len(inputs) // 2
        return sum(inputs[arrays:]) + sum(inputs[arrays + 1 :])
    output = shape_bytes(instruction.shape, 0)
    if opcode in _SLICES:
        return 2 * output
    if opcode == "async-start":
        return 0.0  # counted where it is called
    if opcode == "fusion-start":  # GPU: a slice that is copied beside other work; the result names its inputs, too
        output -= sum(inputs)
    elif opcode != "fusion":
        return output + sum(inputs)
    (callee,) = instruction.called("calls")
    read = sum(size and size * _read(computations, callee, number) for number, size in enumerate(inputs))
    return read + (output if opcode == "fusion-start" else _written(instruction, computations, 0))


def _read(computations: Mapping[str, Sequence[Instruction]], name: str, number: int) -> float:
    """The part of a parameter that a fusion reads, 0 to 1: of one that it only slices the slice."""
    body = computations.get(name, ())
    parameter = next((i for i in body if i.opcode == "parameter" and int(i.operand_text) == number), None)
    return 1.0 if parameter is None else _read_value(computations, body, parameter)


def _read_value(
    computations: Mapping[str, Sequence[Instruction]], body: Sequence[Instruction], value: Instruction
) -> float:
    """The part of a value that the other instructions of a fusion read; 1 where it is the fusion's result."""
    size, total = shape_bytes(value.shape), float(value.is_root)
    for user in body:
        for place, operand in enumerate(user.operands):
            if operand != value.name:
                continue
            if user.opcode in _SLICES and place == 0:
                total += shape_bytes(user.shape) / size if size else 0.0
            elif user.opcode in _UPDATES and place == 0:  # in place: what is not updated is not touched
                total += 0.0 if user.is_root else _read_value(computations, body, user)
            elif user.opcode in _SAME_VALUES:
                total += _read_value(computations, body, user)
            elif user.opcode == "fusion":
                total += sum(_read(computations, callee, place) for callee in user.called("calls"))
            else:
                total += 1.0
    return min(total, 1.0)


def _written(
    instruction: Instruction, computations: Mapping[str, Sequence[Instruction]], memory_space: int | None
) -> float:
    """Bytes of its result that an instruction writes: of arrays that it updates in place, the update.

    Args:
      instruction: no name for a value (`_NO_TRAFFIC`).
      computations: of the module.
      memory_space: see `shape_bytes`.
    """
    parts = _written_parts(instruction, computations)
    arrays = [match[0] for match in _ARRAY.finditer(instruction.shape)]
    if len(parts) != len(arrays):  # tuples in tuples
        parts = [1.0] * len(arrays)
    return sum(part * shape_bytes(array, memory_space) for part, array in zip(parts, arrays, strict=True))


def _written_parts(instruction: Instruction, computations: Mapping[str, Sequence[Instruction]]) -> list[float]:
    """The parts, 0 to 1, of each array of a fusion's result (or an update's) that are written."""
    if instruction.opcode != "fusion":
        return [1.0]
    (callee,) = instruction.called("calls")
    body = computations.get(callee, ())
    values = {i.name: i for i in body}
    root = next((i for i in body if i.is_root), None)
    results = () if root is None else root.operands if root.opcode == "tuple" else (root.name,)
    return [_written_part(values, values[name], computations) for name in results if name in values]


def _written_part(
    values: Mapping[str, Instruction], value: Instruction, computations: Mapping[str, Sequence[Instruction]]
) -> float:
    while value.opcode == "bitcast" and value.operands[0] in values:
        value = values[value.operands[0]]
    if value.opcode in _UPDATES and values.keys() >= set(value.operands):
        update = value.operands[1 if value.opcode == "dynamic-update-slice" else -1]
        return min(1.0, shape_bytes(values[update].shape) / max(shape_bytes(value.shape), 1.0))
    if value.opcode == "fusion":
        parts = _written_parts(value, computations)
        return parts[0] if len(parts) == 1 else 1.0
    return 1.0
