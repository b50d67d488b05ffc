"""JAX's persistent compilation cache in the user's cache directory, so that a second run starts fast."""

import functools
import os
import tempfile
import warnings
from pathlib import Path

import jax
import platformdirs


@functools.cache
def enable() -> None:
    """Turns the persistent compilation cache on, once per process; never fails.

    Its directory is the environment variable `JAX_COMPILATION_CACHE_DIR`, else the one that the program has set in JAX,
    else `spark-jax/xla` in the user's cache directory. Programs of any size and compile time are kept, because a
    request runs several small ones. If the directory cannot be written, there is one warning and no cache.
    """
    # JAX reads the environment variable itself, at import.
    directory = jax.config.jax_compilation_cache_dir or _default_directory()
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        jax.config.update("jax_compilation_cache_dir", None)
        warnings.warn(
            f"no compilation cache: {directory} cannot be written ({error.strerror}); each run compiles anew",
            stacklevel=2,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # XLA cannot cache steps under `mesh.cpu_block_mb`, as the configuration says: no warning at every start.
    warnings.filterwarnings("ignore", message="Error writing persistent .*Multiple temp buffer allocations found")


def _default_directory() -> str:
    return os.path.join(platformdirs.user_cache_dir("spark-jax"), "xla")
