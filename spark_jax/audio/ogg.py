"""Ogg streams without chance: an encoder draws a serial number, so that the same audio gives other bytes each time."""

import zlib
from collections.abc import Iterator

_HEADER = 27  # bytes of a page before its table of segments
_SERIAL, _CHECKSUM, _SEGMENTS = slice(14, 18), slice(22, 26), 26  # places in a page
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def with_serial(content: bytes, serial: int = 1) -> bytes:
    """Returns an Ogg stream with this serial number in all of its pages.

    Args:
      content: one logical stream.
      serial: its number, of 32 bits.
    """
    changed = []
    for page in pages(content):
        page[_SERIAL], page[_CHECKSUM] = serial.to_bytes(4, "little"), bytes(4)
        page[_CHECKSUM] = checksum(page).to_bytes(4, "little")
        changed.append(page)
    return b"".join(changed)


def pages(content: bytes) -> Iterator[bytearray]:
    """Yields the pages of an Ogg stream."""
    start = 0
    while start < len(content):
        segments = content[start + _SEGMENTS]
        stop = start + _HEADER + segments + sum(content[start + _HEADER : start + _HEADER + segments])
        yield bytearray(content[start:stop])
        start = stop


def checksum(page: bytes | bytearray) -> int:
    """Returns Ogg's CRC-32 of a page whose checksum is zero: zlib's polynomial, with the highest bit first."""
    reflected = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)
