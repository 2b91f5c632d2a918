"""A stage of the engine: one loaded model with its tokenizer and its queue of texts."""

import math
import time
from bisect import bisect_left, insort
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer

from common.errors import PipelineError
from serving.backend.packing import CHOICE, ROW_LENGTH, TOKENS_PER_RUN, Row, all_shapes, choose_rows, rows_of_shape
from serving.backend.requests import WaitingText
from serving.backend.runtime import Graph, load_graph
from serving.model_repo.bundle import TOKENIZER, Bundle
from serving.model_repo.texts import Readable
from serving.model_repo.variants import Variant


def load_tokenizer(file: Path, max_length: int) -> Tokenizer:
    """Load a bundle's tokenizer, set to truncate texts to `max_length` tokens and not to pad.

    The names of special tokens in a text, such as `[SEP]` or `<pad>`, are ordinary text.
    """
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


class Run(NamedTuple):
    """A run of one stage's graph."""

    stage: "Stage"
    graph: Graph
    rows: list[Row]
    texts: list[WaitingText]
    """The texts that the rows' indices refer to."""

    @property
    def chosen(self) -> list[WaitingText]:
        """The texts that are run, in the order of the rows."""
        return [self.texts[index] for row in self.rows for index in row.texts]


class Stage:
    """A loaded model. The engine protects its queue with a lock."""

    def __init__(self, directory: Path, variant: Variant, cores: int, threshold: float = 0.0) -> None:
        """Load the bundle in `directory` to run as `variant` on `cores` cores.

        The stage decides the texts to whose label it gives a probability of at least `threshold`.

        Raises:
            PipelineError: the bundle is incomplete.
        """
        self.bundle = Bundle.load(directory)
        self.variant = variant
        self.threshold = threshold
        self.graph: Graph = load_graph(directory, variant, streams=cores, threads=1)
        """The graph with one thread for each run; as many threads as there are cores may run it at the same time."""
        self.graph_of_all_cores = self.graph if cores == 1 else load_graph(directory, variant, 1, cores)
        self.tokenizer = load_tokenizer(directory / TOKENIZER, self.bundle.max_length)
        self.seconds_per_token = 0.0
        """Seconds per token while all cores are busy; set by `measure`."""
        self.waiting: list[WaitingText] = []
        """The queue, most urgent text first."""
        self._cores = cores
        self._held_since = 0.0

    @property
    def is_off(self) -> bool:
        """True if the stage decides no text, because its threshold is infinite."""
        return self.threshold == math.inf

    def encode(self, texts: Sequence[Readable]) -> list[Encoding | BaseException]:
        """Tokenize texts. A text on which the tokenizer fails gets its error instead, which may be a panic of Rust."""
        try:
            return list(self.tokenizer.encode_batch_fast([text.text for text in texts]))
        except KeyboardInterrupt:
            raise
        except BaseException:
            return [self._encode_alone(text.text) for text in texts]

    def _encode_alone(self, text: str) -> Encoding | BaseException:
        try:
            return self.tokenizer.encode(text)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return error

    def insert(self, texts: Sequence[WaitingText]) -> None:
        """Add texts, most urgent first, to the queue."""
        if not texts:
            return
        if not self.waiting:
            self._held_since = time.monotonic()
        place = bisect_left(self.waiting, texts[0])
        if place == len(self.waiting) or texts[-1] < self.waiting[place]:
            self.waiting[place:place] = texts
        else:
            for text in texts:
                insort(self.waiting, text)

    def take(self, busy: int, is_interactive: bool) -> Run | None:
        """Take texts from the queue for a run on a core, while `busy` of them run; None if none of the texts may run.

        `is_interactive` tells that short requests arrive one by one. The last idle core is then kept for them.
        """
        choice = self.waiting[:CHOICE]
        texts = choice
        if is_interactive and busy == self._cores - 1:
            texts = [text for text in choice if not text.request.is_bulk and text.tokens <= ROW_LENGTH]
        if not texts:
            return None
        lengths = [text.tokens for text in texts]
        tokens = sum(lengths)
        is_kept_free = is_interactive and (texts[0].request.is_bulk or lengths[0] > ROW_LENGTH)
        if busy == 0 and (len(texts) == 1 or tokens <= ROW_LENGTH) and not is_kept_free:
            graph, budget = self.graph_of_all_cores, ROW_LENGTH
        else:
            share = -(-tokens // (self._cores - busy))
            graph, budget = self.graph, min(TOKENS_PER_RUN, max(ROW_LENGTH, share))
        rows = choose_rows(lengths, budget, self.bundle.packed)
        run = Run(self, graph, rows, texts)
        chosen = {text.number for text in run.chosen}
        self.waiting[:CHOICE] = [text for text in choice if text.number not in chosen]
        self._held_since = time.monotonic()
        return run

    def is_ripe(self) -> bool:
        """Return whether the waiting texts fill a run, or have waited for as long as a full run takes."""
        if not self.waiting:
            return False
        run_s = self.seconds_per_token * self._cores * TOKENS_PER_RUN
        is_late = time.monotonic() - self._held_since >= run_s
        return is_late or sum(text.tokens for text in self.waiting[:CHOICE]) >= TOKENS_PER_RUN

    def warm_up(self, graph: Graph, most_rows: int) -> None:
        """Run each shape of up to `most_rows` rows of usual length once, so that no request pays for its first use.

        Longer rows are left out. The first run of a shape costs 10 to 35 ms more (BERT-base size, int8, Zen 4), at any
        length. Warming up the longer rows took 10 of the 17 seconds until a version was ready; a rollback has five.
        """
        shapes = [(rows, length) for rows, length in self._usual_shapes() if rows <= most_rows]
        # Largest first, so that memory is allocated only once.
        for shape in reversed(shapes if graph.prepares_each_shape else shapes[-1:]):
            graph.run(rows_of_shape(*shape, self.bundle.max_length, self.bundle.padding_token))

    def measure(self) -> None:
        """Measure the seconds per token, and check the graph's output.

        Raises:
            PipelineError: the graph has another number of outputs than the bundle has labels.
        """
        full = rows_of_shape(*self._usual_shapes()[-1], self.bundle.max_length, self.bundle.padding_token)
        started = time.perf_counter()
        values = self.graph.run(full)
        if values.shape[1:] != (len(self.bundle.labels),):
            raise PipelineError(
                f"The graph of version {self.bundle.version} gives {values.shape[-1]} probabilities for a text, "
                f"and bundle.json names {len(self.bundle.labels)} labels."
            )
        self.seconds_per_token = (time.perf_counter() - started) / full.input_ids.size / self._cores

    def _usual_shapes(self) -> list[tuple[int, int]]:
        """Return the shapes (rows, length) of runs of usual length, the largest last."""
        shapes = all_shapes(self.bundle.max_length, self.bundle.packed)
        return [(rows, length) for rows, length in shapes if length <= ROW_LENGTH]
