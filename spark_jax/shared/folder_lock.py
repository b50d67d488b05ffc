"""One run a folder: a lock that ends with its process, however that ends."""

from pathlib import Path
from typing import TextIO

from spark_jax.errors import SparkError
from spark_jax.shared.files import cannot_write


def lock_folder(folder: Path, name: str = ".lock", exclusive: bool = True) -> TextIO:
    """Makes a folder where it is missing, and locks it until the file is closed or the process ends in any way.

    Systems and file systems without locks go without.

    Args:
      folder: the folder.
      name: of the file that is locked.
      exclusive: False: only the folder is made, as for one of several processes of a run.

    Raises:
      SparkError: another process has locked it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / name).open("a")
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        import fcntl  # no module of Windows
    except ImportError:
        return lock
    if exclusive:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise SparkError(f"{folder}: another run is going on in this folder") from None
        except OSError:
            pass  # a file system without locks
    return lock
