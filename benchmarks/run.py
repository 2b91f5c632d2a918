"""What the sections of one run share."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import Load, Requests, http_client, live_body
from benchmarks.models import BenchmarkModel
from benchmarks.processes import Server
from benchmarks.results import Case, Results, measure_in_turns
from benchmarks.texts import REVIEWS, describe_lengths, distinct_texts, text_set

ENGINE_TEXTS = 4_096
"""Texts that the engine is given again and again; it remembers none."""


@dataclass
class Run:
    """One model that is measured, and where the figures go."""

    model: BenchmarkModel
    results: Results
    directory: Path
    """For what the run needs only while it lasts."""
    seconds: float
    """Length of one repeat of one case."""
    repeats: int
    progress: Callable[[str], None]
    _sets: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False)
    _streams: dict[str, Iterator[str]] = field(default_factory=dict, init=False)

    def measure(self, section: str, cases: Sequence[Case]) -> None:
        """Measure the cases in turns and keep their figures."""
        measure_in_turns(self.results, section, cases, self.seconds, self.repeats, self.progress)

    def live_load(self, server: Server, connections: int, texts: str = REVIEWS) -> Load:
        """Live requests for texts of a set, every one new, as fast as so many connections are answered."""
        requests = Requests(self.never_sent(texts), live_body)
        return Load(http_client(f"{server.url}/predict/live", connections), requests, server, self.directory)

    def texts(self, name: str) -> tuple[str, ...]:
        """A set of texts; its lengths go into the results."""
        if name not in self._sets:
            tokenizer = self.model.tokenizer()
            self._sets[name] = text_set(name, tokenizer)
            self.results.texts[name] = describe_lengths(self._sets[name], tokenizer)
        return self._sets[name]

    def never_sent(self, name: str) -> Iterator[str]:
        """Texts of a set without end; none that this run has taken before."""
        if name not in self._streams:
            self._streams[name] = distinct_texts(self.texts(name))
        return self._streams[name]

    def texts_file(self, name: str) -> Path:
        """A set of texts as a file for the workers of the engine."""
        file = self.directory / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps(self.texts(name)[:ENGINE_TEXTS]), encoding="utf-8")
        return file
