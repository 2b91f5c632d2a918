"""The inference engine: runs a model version's tokenizer and graph in this process, on all its cores.

Texts of all requests wait in one queue. Each core takes as many texts as fill its next run. A text that arrives while
all cores are busy therefore joins the next run, no matter how callers split their texts into requests.
"""

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from common.errors import PipelineError
from serving.backend.packing import (
    CHOICE,
    ROW_LENGTH,
    STEP,
    TOKENS_PER_RUN,
    Row,
    all_shapes,
    choose_rows,
    lay_out,
    rows_of_shape,
)
from serving.backend.requests import Probabilities, Request, TextError, WaitingText
from serving.backend.runtime import Graph, load_graph
from serving.model_repo.bundle import TOKENIZER, Bundle
from serving.model_repo.texts import Readable, readable
from serving.model_repo.variants import Variant

LOOK_S = 0.05
"""Seconds that a request waits before each check that its client still wants it. A check takes 0.1 ms in Triton."""
TOKENIZED_AT_ONCE = 10_000
"""Maximum characters of a request that `submit` tokenizes itself: 5 ms of typical text. A separate thread tokenizes
longer requests, so that Triton can pass on short ones meanwhile."""
TOKENIZED_TOGETHER = 8
"""Texts tokenized between two checks that the request is still wanted."""
PATIENCE = 2.0
"""A request is due after the time that it would take alone, multiplied by this factor."""
INTERACTIVE_S = 0.5
"""Interval, in seconds, that marks interactive use. If a short request arrives within this time after another one or
its response, a client probably sends short requests one by one; a core is then reserved for them for this time. The
gateway's own health probes are further apart."""
BULK_TOKENS = 4 * TOKENS_PER_RUN
"""A request with more tokens is treated as bulk, even if the client has not marked it so."""


@dataclass
class Totals:
    """An engine's counters since it was loaded, over all cores, and its current load."""

    texts: int = 0
    tokens: int = 0
    slots: int = 0
    """Token positions in the rows that were run, including padding."""
    runs: int = 0
    tokenize_s: float = 0.0
    queue_s: float = 0.0
    """Time that requests waited until the first of their texts was run."""
    pack_s: float = 0.0
    graph_s: float = 0.0
    waiting_texts: int = 0
    busy_cores: int = 0


def load_tokenizer(file: Path, max_length: int) -> Tokenizer:
    """Load a bundle's tokenizer, set to truncate texts to `max_length` tokens and not to pad.

    The names of special tokens in a text, such as `[SEP]` or `<pad>`, are ordinary text.
    """
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


class Engine:
    """A loaded model version. Any thread may call it; `close` ends its worker threads.

    Each core runs the graph on one thread, because threads that share a run wait for each other at every layer. The
    cores share a run only if all are idle and at most one row waits: nothing else could use them.

    A request is due after twice the time that it takes alone. A short request thus overtakes a long one only if the
    long one arrived shortly before. A run cannot be interrupted, and takes a core several times as long as a short
    request does. While short requests arrive, the last idle core therefore takes neither bulk nor long texts.
    """

    def __init__(self, directory: Path, variant: Variant, cores: int) -> None:
        """Load the bundle in `directory` to run as `variant` on `cores` cores, and run each usual shape once.

        Raises:
            PipelineError: the bundle is incomplete, or its graph has another number of outputs than its labels.
        """
        self.bundle = Bundle.load(directory)
        self.variant = variant
        self.graph = load_graph(directory, variant, streams=cores, threads=1)
        """The graph with one thread for each run; as many threads as there are cores may run it at the same time."""
        self._graph_of_all_cores = self.graph if cores == 1 else load_graph(directory, variant, 1, cores)
        self._tokenizer = load_tokenizer(directory / TOKENIZER, self.bundle.max_length)
        self.cores = cores
        self._changed = threading.Condition()
        self._waiting: list[WaitingText] = []
        self._texts_so_far = 0
        self._busy = 0
        self._totals = Totals()
        self._closing = False
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="engine-tokenizer")
        self._short_at = -math.inf
        """Time at which the last short request arrived or got its response."""
        self._interactive_until = -math.inf
        warm: list[Future[None]] = [Future() for _ in range(cores)]
        self._threads = [
            threading.Thread(target=self._work, args=(future,), name=f"engine-{core}", daemon=True)
            for core, future in enumerate(warm)
        ]
        for thread in self._threads:
            thread.start()
        try:
            for future in warm:
                future.result()
            if self._graph_of_all_cores is not self.graph:
                self._warm_up(self._graph_of_all_cores, most_rows=1)
            self._seconds_per_token = self._measure_token()
        except BaseException:
            self.close()
            raise

    def submit(
        self,
        texts: Sequence[str],
        timeout_s: float = math.inf,
        is_wanted: Callable[[], bool] = lambda: True,
        is_bulk: bool = False,
    ) -> "Future[Probabilities]":
        """Queue any number of texts for classification; a text's prediction does not depend on the others.

        `is_bulk` marks the texts as part of a large job, so that short requests go first.

        A request is dropped if it still waits after `timeout_s` seconds, or if `is_wanted` returns False; the future
        then gets a DroppedError. `is_wanted` is only called for requests that have waited for LOOK_S. If the tokenizer
        or the graph fails on a text, the future gets a TextError.

        Callbacks of the future run in an engine thread, which cannot run the graph meanwhile.
        """
        read = [readable(text, self.bundle.max_length) for text in texts]
        request = Request(read, len(self.bundle.labels), timeout_s, is_wanted, is_bulk)
        if sum(len(part.text) for part in read) <= TOKENIZED_AT_ONCE:
            self._tokenize(request)
        else:
            self._tokenizing.submit(self._tokenize_apart, request)
        return request.answer

    def _tokenize_apart(self, request: Request) -> None:
        """Tokenize and queue a request in another thread than its client's; any error ends the request."""
        try:
            self._tokenize(request)
        except BaseException as error:
            request.answer.set_exception(error)

    def _tokenize(self, request: Request) -> None:
        """Tokenize the texts of a request and queue them."""
        encodings: list[Encoding] = []
        try:
            for start in range(0, len(request.texts), TOKENIZED_TOGETHER):
                if start and (error := request.useless(LOOK_S)):
                    request.answer.set_exception(error)
                    return
                part = request.texts[start : start + TOKENIZED_TOGETHER]
                encodings += self._tokenizer.encode_batch_fast([read.text for read in part])
        except BaseException as error:  # a panic in the tokenizer's Rust code is not an Exception
            request.answer.set_exception(self._text_error(request.texts, error))
            return
        request.queue(encodings)
        self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        if not request.texts:
            request.answer.set_result(Probabilities(request.values, request.truncated, request.phases()))
            return
        lengths = list(map(len, request.token_ids))
        now = time.monotonic()
        due = now + PATIENCE * self._seconds_per_token * sum(lengths)
        with self._changed:
            if self._closing:
                raise RuntimeError("the engine is closed")
            request.is_bulk = request.is_bulk or sum(lengths) > BULK_TOKENS
            request.is_short = not request.is_bulk and sum(lengths) <= ROW_LENGTH
            if request.is_short:
                if now - self._short_at <= INTERACTIVE_S:
                    self._interactive_until = now + INTERACTIVE_S
                self._short_at = now
            self._totals.tokenize_s += request.queued - request.arrived
            numbers = range(self._texts_so_far, self._texts_so_far + len(lengths))
            self._texts_so_far += len(lengths)
            place = bisect_left(self._waiting, (due, numbers[0]))
            self._waiting[place:place] = [
                WaitingText(due, number, tokens, request, position)
                for position, (number, tokens) in enumerate(zip(numbers, lengths, strict=True))
            ]
            self._changed.notify_all()

    def classify(self, texts: Sequence[str]) -> Probabilities:
        """Classify any number of texts and wait for the result.

        If Ctrl-C or the cancellation of a job ends the wait, the texts that are still queued are dropped.
        """
        is_wanted = [True]
        answer = self.submit(texts, is_wanted=lambda: is_wanted[0])
        try:
            return answer.result()
        except KeyboardInterrupt:
            is_wanted[0] = False  # `close` would finish them, which can take minutes
            raise

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Return how many tokens of the texts the model reads."""
        read = [readable(text, self.bundle.max_length).text for text in texts]
        return sum(len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(read))

    def totals(self) -> Totals:
        """Return a copy of the counters, with the current load."""
        with self._changed:
            return replace(self._totals, waiting_texts=len(self._waiting), busy_cores=self._busy)

    def close(self) -> None:
        """Finish the queued requests, then end the threads."""
        self._tokenizing.shutdown()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "Engine":
        """Return the engine; the `with` statement closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the engine."""
        self.close()

    def _warm_up(self, graph: Graph, most_rows: int) -> None:
        """Run each shape of up to `most_rows` rows of usual length once, so that no request pays for its first use.

        Longer rows are left out. The first run of a shape costs 10 to 35 ms more (BERT-base size, int8, Zen 4), at any
        length. Warming up the longer rows took 10 of the 17 seconds until a version was ready; a rollback has five.
        """
        shapes = [(rows, length) for rows, length in self._usual_shapes() if rows <= most_rows]
        # Largest first, so that memory is allocated only once.
        for shape in reversed(shapes if graph.prepares_each_shape else shapes[-1:]):
            graph.run(rows_of_shape(*shape, self.bundle.max_length, self.bundle.padding_token))

    def _usual_shapes(self) -> list[tuple[int, int]]:
        """Return the shapes (rows, length) of runs of usual length, the largest last."""
        shapes = all_shapes(self.bundle.max_length, self.bundle.packed)
        return [(rows, length) for rows, length in shapes if length <= ROW_LENGTH]

    def _measure_token(self) -> float:
        """Measure the seconds per token while all cores are busy."""
        full = rows_of_shape(*self._usual_shapes()[-1], self.bundle.max_length, self.bundle.padding_token)
        started = time.perf_counter()
        values = self.graph.run(full)
        if values.shape[1:] != (len(self.bundle.labels),):
            raise PipelineError(
                f"The graph of version {self.bundle.version} gives {values.shape[-1]} probabilities for a text, "
                f"and bundle.json names {len(self.bundle.labels)} labels."
            )
        return (time.perf_counter() - started) / full.input_ids.size / self.cores

    def _work(self, warm: "Future[None]") -> None:
        # Warm up in this thread, because a runtime may prepare shapes per thread.
        try:
            self._warm_up(self.graph, TOKENS_PER_RUN)
        except BaseException as error:
            warm.set_exception(error)
            return
        warm.set_result(None)
        while True:
            while self._drop_useless():
                pass  # The requests that move to the front may be useless too.
            with self._changed:
                while (taken := self._take()) is None:
                    if self._closing and not self._waiting:
                        return
                    self._changed.wait(INTERACTIVE_S if self._waiting else None)
                rows, texts, graph = taken
                self._busy += 1
            started = time.perf_counter()
            try:
                token_ids = [text.request.token_ids[text.position] for text in texts]
                packed = lay_out(rows, token_ids, self.bundle.padding_token)
                packed_at = time.perf_counter()
                values = graph.run(packed)
            except Exception as error:
                self._run_apart([texts[index] for row in rows for index in row.texts], graph, error)
            else:
                run = [texts[index] for index in packed.texts]
                self._count(run, packed.input_ids.size, packed_at - started, time.perf_counter() - packed_at)
                self._deliver(run, values)

    def _take(self) -> tuple[list[Row], list[WaitingText], Graph] | None:
        """Return the next run's rows, the texts that they were chosen from, and the graph; None to wait."""
        choice = self._waiting[:CHOICE]
        is_interactive = self.cores > 1 and time.monotonic() < self._interactive_until and not self._closing
        texts = choice
        if is_interactive and self._busy == self.cores - 1:
            texts = [text for text in choice if not text.request.is_bulk and text.tokens <= ROW_LENGTH]
        if not texts:
            return None
        lengths = [text.tokens for text in texts]
        tokens = sum(lengths)
        is_kept_free = is_interactive and (texts[0].request.is_bulk or lengths[0] > ROW_LENGTH)
        if self._busy == 0 and (len(texts) == 1 or tokens <= ROW_LENGTH) and not is_kept_free:
            graph, budget = self._graph_of_all_cores, ROW_LENGTH
        else:
            share = -(-tokens // (self.cores - self._busy))
            graph, budget = self.graph, min(TOKENS_PER_RUN, max(ROW_LENGTH, share))
        rows = choose_rows(lengths, budget, self.bundle.packed)
        chosen = {texts[index].number for row in rows for index in row.texts}
        self._waiting[:CHOICE] = [text for text in choice if text.number not in chosen]
        now = time.perf_counter()
        for request in {text.request for text in texts if text.number in chosen}:
            if request.begun is None:
                request.begun = now
                self._totals.queue_s += now - request.queued
        return rows, texts, graph

    def _count(self, texts: Sequence[WaitingText], slots: int, pack_s: float, graph_s: float) -> None:
        """Add a run to the counters."""
        with self._changed:
            self._totals.texts += len(texts)
            self._totals.tokens += sum(text.tokens for text in texts)
            self._totals.slots += slots
            self._totals.runs += 1
            self._totals.pack_s += pack_s
            self._totals.graph_s += graph_s

    def _deliver(self, texts: Sequence[WaitingText], values: Iterable[npt.NDArray[np.float32]]) -> None:
        complete = []
        with self._changed:
            self._busy -= 1
            for text, probabilities in zip(texts, values, strict=False):  # the graph's output repeats the first text
                request = text.request
                request.values[text.position] = probabilities
                request.texts_left -= 1
                if request.texts_left == 0 and not request.ended:
                    request.ended = True
                    complete.append(request)
                    if request.is_short:
                        self._short_at = time.monotonic()
        for request in complete:
            request.answer.set_result(Probabilities(request.values, request.truncated, request.phases()))

    def _drop_useless(self) -> bool:
        """Drop requests near the front of the queue that expired or were cancelled; return whether there were any."""
        with self._changed:
            requests = {text.request for text in self._waiting[:CHOICE]}
        useless = {request: error for request in requests if (error := request.useless(LOOK_S))}
        if useless:
            self._end(useless)
        return bool(useless)

    def _end(self, errors: Mapping[Request, Exception]) -> None:
        """Fail the requests, and remove their remaining texts from the queue."""
        with self._changed:
            ended = [request for request in errors if not request.ended]
            for request in ended:
                request.ended = True
            self._waiting = [text for text in self._waiting if text.request not in errors]
        for request in ended:
            request.answer.set_exception(errors[request])

    def _run_apart(self, texts: Sequence[WaitingText], graph: Graph, error: Exception) -> None:
        """Run the texts of a failed run one by one, so that only the requests with a bad text fail."""
        errors: dict[Request, Exception] = {}
        good: list[WaitingText] = []
        values: list[npt.NDArray[np.float32]] = []
        try:
            # If even this run fails, no text is the cause.
            graph.run(rows_of_shape(1, STEP, self.bundle.max_length, self.bundle.padding_token))
        except Exception:
            errors = dict.fromkeys((text.request for text in texts), error)
        for text in texts:
            if text.request in errors:
                continue
            tokens = text.request.token_ids[text.position]
            try:
                packed = lay_out(choose_rows([len(tokens)]), [tokens], self.bundle.padding_token)
                values.append(graph.run(packed)[0])
            except Exception as own:
                errors[text.request] = _at_fault(text.position, own)
            else:
                good.append(text)
        self._deliver(good, values)
        self._end(errors)

    def _text_error(self, texts: Sequence[Readable], error: BaseException) -> BaseException:
        """Return a TextError that names the text on which the tokenizer fails; `error` if each text works alone."""
        for position, text in enumerate(texts):
            try:
                self._tokenizer.encode(text.text)
            except BaseException as own:
                return _at_fault(position, own)
        return error


def _at_fault(position: int, error: BaseException) -> TextError:
    return TextError(f"TEXT[{position}] cannot be classified: {type(error).__name__}: {error}")
