"""The bytes of a text file: unpacked, and in UTF-8 where lines cannot be split before decoding."""

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from tables.errors import TableError
from tables.kinds import Kind, check_not_foreign, compression_of

WIDE_ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32")
"""Encodings with several bytes per character, in which a byte 10 need not be a line end."""
_BUFFER = 2**16
"""Unpacked bytes read at once. A larger buffer is not faster, and `fraction` counts its bytes too early."""
_START = 4

Source = Path | bytes
"""A file, or its content."""


class ByteStream:
    """The unpacked bytes of a file."""

    def __init__(self, raw: BinaryIO, size: int, name: str, kind: Kind | None) -> None:
        """Read `raw`, a file of `size` bytes that is called `name` in errors.

        Raises:
            TableError: the file is a workbook or an archive.
        """
        self.start = raw.read(_START)
        """First bytes of the file, as it is."""
        check_not_foreign(self.start, name)
        raw.seek(0)
        self._raw = raw
        self._size = max(1, size)
        self.compression = compression_of(self.start, kind)
        """Arrow's name of the compression; None if uncompressed."""
        self._stream: BinaryIO = raw
        if self.compression:
            unpacked = pa.CompressedInputStream(pa.PythonFile(raw, "r"), self.compression)
            self._stream = io.BufferedReader(unpacked, _BUFFER)
        self._decoder: codecs.IncrementalDecoder | None = None
        self._given = 0

    def recode(self, encoding: str) -> None:
        """Give the rest of the file in UTF-8 instead of `encoding`. What cannot be decoded is invalid in UTF-8 too."""
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")

    def seek(self, offset: int) -> None:
        """Go to a position in an uncompressed file."""
        self._stream.seek(offset)
        self._given = offset

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none at the end."""
        given = self._read(size)
        self._given += len(given)
        return given

    def _read(self, size: int) -> bytes:
        if self._decoder is None:
            return self._stream.read(size)
        while True:
            packed = self._stream.read(size)
            try:
                text = self._decoder.decode(packed, final=not packed)
            except UnicodeDecodeError:
                self._decoder.reset()
                return b"\xff"  # never part of UTF-8, so the last line is invalid
            if text or not packed:
                return text.encode(errors="surrogatepass")

    def fraction(self, offset: int) -> float:
        """Return the share of the file, 0 to 1, before `offset`, a position in the bytes that `read` has returned."""
        return min(1.0, self._raw.tell() / self._size * offset / max(1, self._given))


@contextmanager
def open_stream(source: Source, name: str, kind: Kind | None) -> Iterator[ByteStream]:
    """Open a file. `name` is used in errors.

    Raises:
        TableError: the file is damaged, or a workbook or an archive.
        OSError: the file cannot be opened.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as raw:
            size = raw.seek(0, io.SEEK_END)
            raw.seek(0)
            yield ByteStream(raw, size, name, kind)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise TableError(f"{name} cannot be read to its end: {error}.") from error
