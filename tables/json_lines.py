"""Reads the objects of a JSON Lines file one by one, so that an invalid line does not affect others."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import orjson

from tables.csv_window import TOO_LONG, UNDECODABLE
from tables.encodings import UTF_8
from tables.layout import Layout
from tables.lines import LONGEST_LINE, LineReader
from tables.streams import ByteStream

_MARK = "\ufeff".encode()

NOT_JSON = "not JSON"
NOT_AN_OBJECT = "not an object"


class JsonLines:
    """The objects of a JSON Lines file, or for each invalid line the reason."""

    def __init__(self, stream: ByteStream, layout: Layout, offset: int = 0) -> None:
        """Read `stream`, which `layout` describes, from the byte `offset` on."""
        if offset:
            stream.seek(offset)
        self._reader = LineReader(stream, layout.newline)
        self._codec = layout.line_codec
        self.offset = offset
        """Position in an uncompressed file of the next line."""
        self.nuls = 0
        """Number of NUL characters that were removed so far."""

    def __iter__(self) -> Iterator[tuple[int, bytes, dict[str, Any] | str]]:
        """Yield each line that is not blank: its number, its content in UTF-8, and its object or what is wrong."""
        number, start = 0, self.offset
        while chunk := self._reader.read():
            lines = [chunk.data] if chunk.too_long else self._reader.split(chunk.data)
            ends = [chunk.size] if chunk.too_long else accumulate(map(len, lines))
            nuls = chunk.data.count(0)
            self.nuls += nuls
            for line, end in zip(lines, ends, strict=True):
                number += 1
                content = line.replace(b"\0", b"") if nuls else line
                if start == 0 and number == 1:
                    content = content.removeprefix(_MARK)
                self.offset = start + end
                if not content.isspace() and content:
                    yield number, *self._parsed(content)
            start += chunk.size

    def _parsed(self, line: bytes) -> tuple[bytes, dict[str, Any] | str]:
        if self._codec != UTF_8.codec:
            try:
                line = line.decode(self._codec).encode()
            except UnicodeDecodeError as error:
                return b"", _undecodable(error, self._codec)
        return line.strip(), parsed(line)


def parsed(line: bytes | str) -> dict[str, Any] | str:
    """Return the object in a line, or what is wrong with the line."""
    if len(line) >= LONGEST_LINE:
        return f"{TOO_LONG}: the line has more than {LONGEST_LINE:,} bytes"
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            if isinstance(line, bytes):
                line.decode()
        except UnicodeDecodeError as undecodable:
            return _undecodable(undecodable, UTF_8.codec)
        return f"{NOT_JSON}: {error}"
    return value if isinstance(value, dict) else f"{NOT_AN_OBJECT}: {type(value).__name__}"


def _undecodable(error: UnicodeDecodeError, codec: str) -> str:
    return f"{UNDECODABLE}: byte 0x{error.object[error.start]:02x} at position {error.start} is not {codec}"
