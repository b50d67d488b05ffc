"""Imports of optional packages: a missing one becomes an error that names the extra to install."""

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
