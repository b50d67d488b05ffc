"""Names of tensors as wrappers leave them: `_orig_mod.` (torch.compile), `module.` (DDP), `base_model.model.` (PEFT).

What all names begin with is left out where more of them are a model's own without it.
"""

import itertools
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from spark_jax.convert.engine import Table
from spark_jax.convert.formats.tensors import SourceTensor

# Wrappers of single layers, too: they stand anywhere in a name, and no model has such names.
_ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def unwrap(tensors: Mapping[str, SourceTensor], table: Table, file: Path) -> dict[str, SourceTensor]:
    """Returns the tensors by the names that a table knows, without those of wrappers.

    Args:
      tensors: of a weight file.
      table: of the model that they belong to.
      file: for the warning.

    Warns:
      UserWarning: something was left out; what, is named.
    """
    renamed, dropped = inner_names(tensors, table)
    if dropped:
        warnings.warn(f"{file}: names of tensors are read without {' and '.join(map(repr, dropped))}", stacklevel=2)
    return {renamed[name]: tensor for name, tensor in tensors.items()}


def inner_names(names: Iterable[str], table: Table) -> tuple[dict[str, str], list[str]]:
    """Returns each name without those of wrappers, as a table knows it, and what was left out of some or all."""
    names = list(names)
    inner = {name: ".".join(part for part in name.split(".") if part not in _ANYWHERE) for name in names}
    prefix = _prefix(inner.values(), table)
    renamed = {name: short.removeprefix(prefix) for name, short in inner.items()}
    if len(set(renamed.values())) < len(renamed) or all(name == short for name, short in renamed.items()):
        return {name: name for name in names}, []
    dropped = [f"{part}." for part in _ANYWHERE if any(part in name.split(".") for name in names)]
    return renamed, dropped + ([prefix] if prefix else [])


def _prefix(names: Iterable[str], table: Table) -> str:
    """What all names begin with and few of the table's do: the shortest with which most names are the table's."""
    names = list(names)
    known = {name for rule in table.rules for name in rule.source_names()} | set(table.copies)

    def score(prefix: str) -> int:
        found = 0
        for name in names:
            name = name.removeprefix(prefix)
            for pattern, replacement in table.aliases:
                name = re.sub(pattern, replacement, name)
            found += name in known
        return found

    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
    candidates = ["".join(f"{part}." for part in shared[:count]) for count in range(len(shared) + 1)]
    return max(candidates, key=score)  # of equals the first, which is the shortest
