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
        "add-dependency",
        "opt-barrier",
        "slice-done",
        "dynamic-slice-done",
        *(f"{kind}-done" for kind in COLLECTIVES),
    }
)
_SLICES = ("dynamic-slice", "slice", "gather")
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
    name, rest = line.strip().removeprefix("ROOT ").split(" = ", 1)
    shape = rest[: _closing(rest) + 1] if rest.startswith("(") else rest.split(" ", 1)[0]
    rest = rest[len(shape) :].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    inside = rest[:end]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or tuple(re.findall(r"[\w.\-]+", inside))
    return Instruction(name.lstrip("%"), shape, opcode, operands, inside, rest[end + 1 :])


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
    output = shape_bytes(instruction.shape, 0)
    if opcode in _SLICES:
        return 2 * output
    if opcode == "async-start":
        return 0.0  # counted where it is called
    if opcode != "fusion":
        return output + sum(inputs)
    (callee,) = instruction.called("calls")
    return _fusion_traffic(computations.get(callee, ()), inputs, output)


def _fusion_traffic(body: Sequence[Instruction], inputs: Sequence[float], output: float) -> float:
    """A fusion reads of a parameter that it only slices the slice, and writes of one that it updates the update."""
    parameters = {i.name: int(i.operand_text) for i in body if i.opcode == "parameter"}
    sizes = {i.name: shape_bytes(i.shape) for i in body}
    uses: dict[str, list[Instruction]] = defaultdict(list)
    for instruction in body:
        for operand in instruction.operands:
            uses[operand].append(instruction)
    total = output
    for name, number in parameters.items():
        if number >= len(inputs) or inputs[number] == 0:
            continue
        users = uses[name]
        if users and all(u.opcode in _SLICES and u.operands[0] == name for u in users):
            total += sum(sizes[u.name] for u in users)
        elif users and all(u.opcode == "dynamic-update-slice" and u.operands[0] == name for u in users):
            # In place: the rest of the buffer, counted as output, is not touched either.
            total += sum(sizes.get(u.operands[1], 0.0) for u in users) - inputs[number]
        else:
            total += inputs[number]
    return max(total, 0.0)
