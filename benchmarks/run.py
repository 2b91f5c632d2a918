"""State and helpers shared by the sections of one run."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.models import BenchmarkModel
from benchmarks.processes import Server
from benchmarks.results import Case, Figures, Results, measure_in_turns
from benchmarks.texts import REVIEWS, describe_lengths, text_set
from benchmarks.worker import Worker

ENGINE_TEXTS = 4_096
"""Number of texts that the engine classifies repeatedly; it caches none."""


@dataclass
class Run:
    """A benchmark run of one model, with its results."""

    model: BenchmarkModel
    results: Results
    generator: Worker
    """Process that generates load; see `load_worker`."""
    directory: Path
    """Directory for temporary files of the run."""
    seconds: float
    """Length of one repeat of one case."""
    repeats: int
    progress: Callable[[str], None]
    _sets: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False)

    def measure(self, section: str, cases: Sequence[Case]) -> None:
        """Measure the cases in turn and store their figures."""
        measure_in_turns(self.results, section, cases, self.seconds, self.repeats, self.progress)

    def load(self, server: Server, kind: str, **task: object) -> Callable[[float], Figures]:
        """Return a function that puts a load of `load_worker` on a server, once the server is idle."""

        def put(seconds: float) -> Figures:
            server.settle()
            figures: Figures = self.generator.do(kind=kind, seconds=seconds, **task)
            return figures

        return put

    def live_load(self, server: Server, connections: int, texts: str = REVIEWS) -> Callable[[float], Figures]:
        """Return a closed-loop load of live requests, each with a new text, over the given number of connections."""
        file = str(self.texts_file(texts))
        return self.load(server, "http", url=f"{server.url}/predict/live", connections=connections, texts=file)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a set of texts, and add its lengths to the results."""
        if name not in self._sets:
            tokenizer = self.model.tokenizer()
            self._sets[name] = text_set(name, tokenizer, [text for text, _ in self.model.unknown])
            self.results.texts[name] = describe_lengths(self._sets[name], tokenizer)
        return self._sets[name]

    def texts_file(self, name: str) -> Path:
        """Write a set of texts to a file for the load generator."""
        return self._write(name, self.texts(name))

    def engine_texts_file(self, name: str) -> Path:
        """Write the first ENGINE_TEXTS texts of a set to a file for the engine."""
        return self._write(f"{name}-engine", self.texts(name)[:ENGINE_TEXTS])

    def _write(self, name: str, texts: Sequence[str]) -> Path:
        file = self.directory / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps(texts), encoding="utf-8")
        return file
