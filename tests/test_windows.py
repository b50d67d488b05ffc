"""What only Unix has is imported where it is used: every module can be imported without it."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
import jax, numpy, orbax.checkpoint, grain, typer, tokenizers  # what others import is theirs
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None  # an import of it is an ImportError
import spark_jax
found = [module.name for module in pkgutil.walk_packages(spark_jax.__path__, "spark_jax.")]
for name in found:
    importlib.import_module(name)
print(len(found))
"""


def test_every_module_is_imported_without_the_modules_of_unix():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 100
