"""The position of a run's data in a checkpoint: a file of each process, any of which all processes can go on from."""

import json
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import jax


class DataPosition:
    """A grain iterator as Orbax sees it; read back by any number of processes.

    grain writes a file per process. All hold the same number of batches, so that a run that goes on with another number
    of processes takes any of them.
    """

    def __init__(self, data: Any):
        self._data = data

    async def save(self, directory: Any) -> Awaitable[None]:
        """Writes the position, as Orbax's `StatefulCheckpointable` asks."""
        return await self._data.save(directory)

    async def load(self, directory: Any) -> Awaitable[None]:
        """Moves the data to the position that was written, as Orbax's `StatefulCheckpointable` asks."""
        state = read_position(Path(directory))

        async def move() -> None:
            self._data.set_state(state)

        return move()


def read_position(folder: Path) -> Any:
    """Reads the position of the data that a checkpoint holds: this process's, or another's where it has none.

    Raises:
      OSError, ValueError: it is missing, or cannot be read.
    """
    own = f"process_{jax.process_index()}-of-{jax.process_count()}.json"
    names = sorted(path.name for path in folder.iterdir() if path.name.startswith("process_"))
    if not names:
        raise FileNotFoundError("holds the position of no process")
    return json.loads((folder / (own if own in names else names[0])).read_text())
