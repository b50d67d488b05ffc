"""Packages of an extra are imported where they are used; a missing one is named with its remedy."""

import contextlib
from collections.abc import Iterator

from spark_jax.errors import SparkError


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turns an ImportError inside into a SparkError that names the package and this project's extra."""
    try:
        yield
    except ImportError as error:
        raise SparkError(
            f'package {error.name!r} is not installed; expected the extra: pip install "spark-jax[{extra}]"'
        ) from error
