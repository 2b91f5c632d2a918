"""Classifies blocks of rows, keeps the engine busy, and writes the results as parts."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from common.errors import PipelineError
from scoring.job import Job
from scoring.parts import Part, Parts
from scoring.reading import Source
from serving.backend.engine import Engine
from serving.backend.requests import Probabilities

AHEAD_TEXTS = 2_048
"""Maximum texts waiting in the engine: one second of work (MiniLM, two cores). The engine stays busy while the disk is
slow, and memory does not grow with the file."""
AHEAD_CHARACTERS = 4_000_000
"""Maximum characters waiting in the engine, so that fewer long texts wait."""
_SUBMITTED_CHARACTERS = 500_000
"""Maximum characters tokenized at once, unless one text has more. Long texts need memory until they are truncated."""
_UNWRITTEN_PARTS = 2

DIGITS = 6
"""Decimals of a score; FP32 has about seven."""


def classify(engine: Engine, job: Job, parts: Parts, sources: Iterable[Source]) -> Iterator[Source]:
    """Classify blocks in order and yield them; write a part when it is full or its input ends.

    The blocks of an input must be consecutive, from the beginning of a part to the end of one. At the end of the
    iteration, all parts are written.

    Raises:
        PipelineError: an input is damaged, or columns cannot be combined in one file.
    """
    building: _Building | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="part-writer") as writer:
        unwritten: deque[Future[None]] = deque()
        for source, probabilities in _answered(engine, sources):
            if building is None:
                building = _Building(source)
            building.add(source, probabilities)
            if source.last or building.rows >= job.part_rows:
                unwritten.append(writer.submit(building.write, engine, job, parts))
                building = None
            while unwritten and (len(unwritten) > _UNWRITTEN_PARTS or unwritten[0].done()):
                unwritten.popleft().result()
            yield source
        for future in unwritten:
            future.result()


class _Building:
    """A part that is not yet full."""

    def __init__(self, first: Source) -> None:
        self._file = first.file
        self._start = first.block.end.row - first.block.rows
        self._sources: list[Source] = []
        self._values: list[npt.NDArray[np.float32]] = []

    @property
    def rows(self) -> int:
        return self._sources[-1].block.end.row - self._start

    def add(self, source: Source, values: npt.NDArray[np.float32]) -> None:
        self._sources.append(source)
        self._values.append(values)

    def write(self, engine: Engine, job: Job, parts: Parts) -> None:
        blocks = [source.block for source in self._sources]
        tables = [block.table for block in blocks]
        try:
            schema = pa.unify_schemas([table.schema for table in tables], promote_options="permissive")
            table = pa.concat_tables(tables, promote_options="permissive").cast(schema)
        except pa.ArrowException as error:
            raise PipelineError(
                f"{job.inputs[self._file].path}: the values of a field up to row {blocks[-1].end.row:,} cannot "
                f"form one column: {error}. JSON Lines as the output keep them as they are."
            ) from error
        values = np.concatenate(self._values)
        best = values.argmax(axis=1)
        scores = values[np.arange(len(values)), best].astype(np.float64).round(DIGITS)
        labels = pa.array(engine.bundle.labels, pa.string()).take(pa.array(best, pa.int64()))
        versions = pa.array(np.full(len(values), job.version), pa.int64())
        for name, column in zip(job.columns.added, (labels, pa.array(scores), versions), strict=True):
            table = table.append_column(name, column)
        rejected = [row for block in blocks for row in block.rejected]
        part = Part(self._file, self._start, blocks[-1].end, self._sources[-1].last)
        parts.write(part, table, rejected)


def _answered(engine: Engine, sources: Iterable[Source]) -> Iterator[tuple[Source, npt.NDArray[np.float32]]]:
    """Yield each block with its probabilities, [texts, labels], while later blocks wait in the engine."""
    waiting: deque[tuple[Source, list[Future[Probabilities]], int]] = deque()
    texts = characters = 0
    for source in sources:
        length = sum(map(len, source.block.texts))
        futures = [engine.submit(piece) for piece in _pieces(source.block.texts, length)]
        waiting.append((source, futures, length))
        texts += len(source.block.texts)
        characters += length
        while texts > AHEAD_TEXTS or characters > AHEAD_CHARACTERS:
            first, futures, length = waiting.popleft()
            texts -= len(first.block.texts)
            characters -= length
            yield first, _values(futures)
    for first, futures, _ in waiting:
        yield first, _values(futures)


def _pieces(texts: list[str], characters: int) -> Iterator[list[str]]:
    count = max(1, min(len(texts), -(-characters // _SUBMITTED_CHARACTERS)))
    size = max(1, -(-len(texts) // count))
    for start in range(0, max(1, len(texts)), size):
        yield texts[start : start + size]


def _values(futures: list[Future[Probabilities]]) -> npt.NDArray[np.float32]:
    return np.concatenate([future.result().values for future in futures])
