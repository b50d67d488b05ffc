"""TensorBoard's event files, read back without TensorBoard."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary


def read_values(folder: Path) -> dict[tuple[str, int], Summary.Value]:
    """What the one event file of a folder says, by (tag, step); each stands once."""
    [path] = folder.glob("events.out.tfevents.*")
    content, values, start = path.read_bytes(), {}, 0
    while start < len(content):  # a record: length, its checksum, content, its checksum
        (length,) = struct.unpack_from("<Q", content, start)
        event = Event.FromString(content[start + 12 : start + 12 + length])
        start += 12 + length + 4
        for value in event.summary.value:
            assert (value.tag, event.step) not in values
            values[value.tag, event.step] = value
    return values
