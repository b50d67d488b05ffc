"""For the API pages: the comments of a dataclass's fields become the attributes section of its docstring.

An extension of griffe, which `mkdocs.yml` names. A field's comment stands behind it, or on the lines above it.
"""

import ast
import re
from typing import Any

import griffe

COMMENT = re.compile(r"\s*# ?(.*)")


class FieldComments(griffe.Extension):
    """Appends "Attributes:" to docstrings of classes whose fields have comments and no such section yet."""

    def on_class_members(self, *, node: ast.AST | griffe.ObjectNode, cls: griffe.Class, **kwargs: Any) -> None:
        """Adds the section to a class, when griffe has read its members."""
        if not isinstance(node, ast.ClassDef) or cls.docstring is None or "Attributes:" in cls.docstring.value:
            return
        lines = cls.module.lines_collection[cls.filepath]
        comments = {
            statement.target.id: comment
            for statement in node.body
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            if (comment := field_comment(lines, statement))
        }
        if comments:
            entries = "\n".join(f"    {name}: {comment}" for name, comment in comments.items())
            cls.docstring.value = f"{cls.docstring.value}\n\nAttributes:\n{entries}"


def field_comment(lines: list[str], field: ast.AnnAssign) -> str:
    """Returns what the comments of a field say, as one line; "" where it has none."""
    parts: list[str] = []
    above = field.lineno - 2
    while above >= 0 and lines[above].lstrip().startswith("#"):
        parts.insert(0, COMMENT.fullmatch(lines[above])[1])
        above -= 1
    if behind := COMMENT.fullmatch(lines[field.end_lineno - 1].encode()[field.end_col_offset :].decode()):
        parts.append(behind[1])
    return " ".join(parts)
