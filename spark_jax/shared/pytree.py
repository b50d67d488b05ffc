"""Conversion between nested trees and flat dictionaries of named leaves."""

from collections.abc import Mapping
from typing import Any

import jax


def flatten(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree of dictionaries by their slash-separated paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tree of such leaves: the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
