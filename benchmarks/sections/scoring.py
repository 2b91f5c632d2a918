"""*scoring*: a large file by `python app.py score`: how fast, in how much memory, and what three kills leave of it."""

import csv
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import islice, zip_longest
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.batching import PACKED
from benchmarks.engine_process import engine_process
from benchmarks.processes import PROJECT, Server, running
from benchmarks.results import Figures, in_a_line
from benchmarks.run import Run
from benchmarks.sections.server import ENGINE
from benchmarks.texts import REVIEWS
from errors import PipelineError

SECTION = "scoring"
SCORE = "python app.py score"
SMALL = "10,000 rows"
LARGE = "a hundred times as many"
KILLED = f"{LARGE}, killed three times"
_ROWS = 10_000
_TIMES = 100
_KILLS = 3
_ENGINE_S = 20.0
"""Of the engine before and after, so that a machine that changes meanwhile does so for both."""
_PROBE_S = 0.2


def measure(run: Run) -> None:
    """Score a small and a large file, and the large one once more with kills, as often as a case is repeated."""
    small, large = run.directory / "small.csv", run.directory / "large.csv"
    for file, rows in ((small, _ROWS), (large, _TIMES * _ROWS)):
        with file.open("w", encoding="utf-8", newline="") as output:
            writer = csv.writer(output)
            writer.writerow(["row", "text"])
            writer.writerows(enumerate(islice(run.never_sent(REVIEWS), rows)))
    for repeat in range(run.repeats):
        before = _engine(run)
        _add(run, repeat, SMALL, _score(run, small, _ROWS))
        uninterrupted = _score(run, large, _TIMES * _ROWS)
        _add(run, repeat, LARGE, uninterrupted)
        run.results.measurement(SECTION, ENGINE, PACKED).add({"texts_per_s": (before + _engine(run)) / 2})
        _add(run, repeat, KILLED, _score_killed(run, large, uninterrupted["seconds"]))


def _add(run: Run, repeat: int, name: str, figures: Figures) -> None:
    run.results.measurement(SECTION, SCORE, name).add(figures)
    run.progress(f"{SECTION}, {repeat + 1}/{run.repeats}: {name}: {in_a_line(figures)}")


def _engine(run: Run) -> float:
    with engine_process(run.model.directory, run.model.choice().variant) as engine:
        return engine.measure(PACKED, run.texts_file(REVIEWS), _ENGINE_S)["texts_per_s"]


def _score(run: Run, file: Path, rows: int) -> Figures:
    """Rows a second, the start included, and the most memory that its processes held at once."""
    started, peak = time.perf_counter(), 0
    with _scoring(run, file) as server:
        while server.process.poll() is None:
            peak = max(peak, server.memory_bytes())
            time.sleep(_PROBE_S)
        seconds = time.perf_counter() - started
        _check(server)
    _output(file).unlink()
    return {"texts_per_s": rows / seconds, "seconds": seconds, "peak_mib": peak / 2**20}


def _score_killed(run: Run, file: Path, seconds: float) -> Figures:
    """Kill all its processes three times on the way; what the output has then, against the input."""
    started = time.perf_counter()
    for _ in range(_KILLS):
        with _scoring(run, file) as server:
            time.sleep(seconds / (_KILLS + 1))
            if server.process.poll() is not None:
                raise PipelineError(f"It ended before it was killed; the log is {server.log}.")
            os.killpg(server.process.pid, signal.SIGKILL)
    with _scoring(run, file) as server:
        server.process.wait()
        _check(server)
    took = time.perf_counter() - started
    unlike = sum(expected != found for expected, found in zip_longest(_rows(file), _scored_rows(_output(file))))
    _output(file).unlink()
    return {"kills": _KILLS, "rows_unlike": unlike, "seconds": took}


def _scoring(run: Run, file: Path) -> AbstractContextManager[Server]:
    command = [sys.executable, str(PROJECT / "app.py"), "score", str(file), "--out", str(_output(file))]
    settings = {"SENTIMENT_MODEL_REPOSITORY": str(run.model.repository.root)}
    return running(command, 0, run.directory / SECTION, "score", settings)


def _check(server: Server) -> None:
    if server.process.returncode:
        raise PipelineError(f"It failed: {server.log.read_text(encoding='utf-8')[-500:]}")


def _output(file: Path) -> Path:
    return file.with_suffix(".parquet")


def _rows(file: Path) -> Iterator[tuple[str, str]]:
    with file.open(encoding="utf-8", newline="") as input_:
        for row in csv.DictReader(input_):
            yield row["row"], row["text"]


def _scored_rows(file: Path) -> Iterator[tuple[str, str]]:
    for batch in pq.ParquetFile(file).iter_batches(columns=["row", "text"]):
        yield from zip(batch["row"].to_pylist(), batch["text"].to_pylist(), strict=True)
