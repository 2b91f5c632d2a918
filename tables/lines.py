"""Splits a stream of bytes into lines, in chunks, with their positions in the file."""

import io
import re
from dataclasses import dataclass

from tables.streams import ByteStream

LONGEST_LINE = 16 * 2**20
"""Maximum bytes of a line. A longer line would need too much memory; it is cut, and therefore invalid."""
_CHUNK = 65_536
_BY_CR = re.compile(rb"[^\r]*\r|[^\r]+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines, with their line ends."""

    data: bytes
    size: int
    """Bytes in the file: more than those of `data` for a line that was cut."""
    too_long: bool = False
    """True for a single line that was cut."""


class LineReader:
    """Reads whole lines, about 64 KiB at a time."""

    def __init__(self, stream: ByteStream, newline: bytes) -> None:
        """Read `stream`, whose lines end with `newline`."""
        self._stream = stream
        self.newline = newline
        self._rest = b""

    def read(self) -> Chunk | None:
        """Return the next lines; None at the end. The last line may lack its line end."""
        end = self._rest.rfind(self.newline) + 1
        if end:  # lines after one that was too long
            data, self._rest = self._rest[:end], self._rest[end:]
            return Chunk(data, end)
        pieces, size = [self._rest], len(self._rest)
        self._rest = b""
        while data := self._stream.read(_CHUNK):
            # A long line comes alone, so that the lines after it are not cut with it.
            end = (data.find if size > 2 * _CHUNK else data.rfind)(self.newline) + 1
            if end:
                data, self._rest = data[:end], data[end:]
            if size < LONGEST_LINE:
                pieces.append(data)
            size += len(data)
            if end:
                break
        if not size:
            return None
        if size >= LONGEST_LINE:
            return Chunk(b"".join(pieces)[:LONGEST_LINE], size, too_long=True)
        return Chunk(b"".join(pieces), size)

    def split(self, data: bytes) -> list[bytes]:
        """Return the lines of a chunk, with their line ends."""
        return io.BytesIO(data).readlines() if self.newline == b"\n" else _BY_CR.findall(data)
