"""Text in, probabilities out: a version's tokenizer and graph in this process, on all its cores.

Texts wait in one queue, whoever sent them, and each core takes from it as many as fill its next run. So a text that
arrives while all cores compute joins the next run, however the callers have divided theirs into requests.
"""

import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from errors import PipelineError
from serving.bundle import TOKENIZER, Bundle
from serving.packing import (
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
from serving.protocol import NOBODY_WAITS, TIME_HAS_PASSED
from serving.requests import DroppedError, Probabilities, Request, TextError, WaitingText
from serving.runtime import Graph, Variant, load_graph

LOOK_S = 0.05
"""How long a request has waited, since it came or was looked at last, when it is asked whether somebody still wants
it. To ask Triton takes 0.1 ms."""


@dataclass
class Totals:
    """What an engine has done since it was loaded, over all cores, and how it stands."""

    texts: int = 0
    tokens: int = 0
    slots: int = 0
    """Places for tokens in the rows that were run; what is not tokens is padding."""
    runs: int = 0
    tokenize_s: float = 0.0
    queue_s: float = 0.0
    """That requests waited until the first of their texts was run."""
    pack_s: float = 0.0
    graph_s: float = 0.0
    waiting_texts: int = 0
    busy_cores: int = 0


def load_tokenizer(file: Path, max_length: int) -> Tokenizer:
    """A bundle's tokenizer, which cuts texts to `max_length` tokens and does not pad."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


class Engine:
    """One version of the model, loaded. Any thread may call it; `close` ends its own threads.

    A core runs the graph on one thread, because threads that share a run wait for each other at every layer. Only
    when there is no more than a row to run, and all cores are idle, do they share it: nothing else can use them then.

    A request's texts are due after as long as they take alone, so a short request overtakes those long ones, and only
    those, that came not much before it.
    """

    def __init__(self, directory: Path, variant: Variant, cores: int) -> None:
        """Load the bundle in `directory` to run as `variant` on `cores` cores, and run every usual shape once.

        Raises:
            PipelineError: the bundle is incomplete, or its graph is not one of its labels.
        """
        self.bundle = Bundle.load(directory)
        self.variant = variant
        self.graph = load_graph(directory, variant, streams=cores, threads=1)
        """Runs on one core, for as many callers at a time as there are cores."""
        self._graph_of_all_cores = self.graph if cores == 1 else load_graph(directory, variant, 1, cores)
        self._tokenizer = load_tokenizer(directory / TOKENIZER, self.bundle.max_length)
        self.cores = cores
        self._changed = threading.Condition()
        self._waiting: list[WaitingText] = []
        self._texts_so_far = 0
        self._busy = 0
        self._totals = Totals()
        self._closing = False
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
        self, texts: Sequence[str], timeout_s: float = math.inf, is_wanted: Callable[[], bool] = lambda: True
    ) -> "Future[Probabilities]":
        """Classify any number of texts; what one gets does not depend on the others.

        What still waits after `timeout_s` seconds, or when `is_wanted` says no, is not computed: the future gets a
        DroppedError. `is_wanted` is asked only of requests that have waited for a while. Where the tokenizer or the
        graph fails on one of the texts, the future gets a TextError.

        A callback of the future runs in one of the engine's threads, and keeps it from running the graph meanwhile.
        """
        arrived = time.perf_counter()
        try:
            encodings = self._tokenizer.encode_batch_fast(texts)
        except BaseException as error:  # a panic of the tokenizer's Rust is no Exception
            return _failed(self._text_error(texts, error))
        request = Request(encodings, len(self.bundle.labels), arrived, timeout_s, is_wanted)
        if not texts:
            request.answer.set_result(Probabilities(request.values, request.truncated, request.phases()))
            return request.answer
        lengths = list(map(len, request.token_ids))
        due = time.monotonic() + self._seconds_per_token * sum(lengths)
        with self._changed:
            if self._closing:
                raise RuntimeError("the engine is closed")
            self._totals.tokenize_s += request.queued - arrived
            numbers = range(self._texts_so_far, self._texts_so_far + len(texts))
            self._texts_so_far += len(texts)
            place = bisect_left(self._waiting, (due, numbers[0]))
            self._waiting[place:place] = [
                WaitingText(due, number, tokens, request, position)
                for position, (number, tokens) in enumerate(zip(numbers, lengths, strict=True))
            ]
            self._changed.notify_all()
        return request.answer

    def classify(self, texts: Sequence[str]) -> Probabilities:
        """Classify any number of texts and wait for them."""
        return self.submit(texts).result()

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that the model reads of the texts."""
        return sum(len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(texts))

    def totals(self) -> Totals:
        """What it has done so far."""
        with self._changed:
            return replace(self._totals, waiting_texts=len(self._waiting), busy_cores=self._busy)

    def close(self) -> None:
        """Answer what waits, then end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> "Engine":
        """Use it in a `with` statement, which closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _warm_up(self, graph: Graph, most_rows: int) -> None:
        """Run the shapes of up to `most_rows` rows of usual length once, so that no request pays for their first use.

        Longer rows are left out. That a shape is new costs a run 10 to 35 ms (BERT-base size, int8, Zen 4), whatever
        its length; to compute all of the longer ones once took 10 of the 17 seconds until a version was ready, of
        which a rollback has five.
        """
        shapes = [
            (rows, length)
            for rows, length in all_shapes(self.bundle.max_length)
            if rows <= most_rows and length <= ROW_LENGTH
        ]
        # The largest first, so that memory is allocated once.
        for shape in reversed(shapes if graph.prepares_each_shape else shapes[-1:]):
            graph.run(rows_of_shape(*shape, self.bundle.max_length, self.bundle.padding_token))

    def _measure_token(self) -> float:
        """Seconds that a token takes while all cores are used."""
        rows = TOKENS_PER_RUN // ROW_LENGTH
        full = rows_of_shape(rows, ROW_LENGTH, self.bundle.max_length, self.bundle.padding_token)
        started = time.perf_counter()
        values = self.graph.run(full)
        if values.shape[1:] != (len(self.bundle.labels),):
            raise PipelineError(
                f"The graph of version {self.bundle.version} gives {values.shape[-1]} probabilities for a text, "
                f"and bundle.json names {len(self.bundle.labels)} labels."
            )
        return (time.perf_counter() - started) / full.input_ids.size / self.cores

    def _work(self, warm: "Future[None]") -> None:
        # In this thread, because a runtime may prepare shapes for each thread that runs them.
        try:
            self._warm_up(self.graph, TOKENS_PER_RUN)
        except BaseException as error:
            warm.set_exception(error)
            return
        warm.set_result(None)
        while True:
            while self._drop_useless():
                pass  # Those that come to the front now may be useless too.
            with self._changed:
                while not self._waiting:
                    if self._closing:
                        return
                    self._changed.wait()
                rows, texts, graph = self._take()
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

    def _take(self) -> tuple[list[Row], list[WaitingText], Graph]:
        """Choose the next run's rows, the texts that they were chosen from, and the graph to run them."""
        texts = self._waiting[:CHOICE]
        lengths = [text.tokens for text in texts]
        tokens = sum(lengths)
        if self._busy == 0 and (len(texts) == 1 or tokens <= ROW_LENGTH):
            graph, budget = self._graph_of_all_cores, ROW_LENGTH
        else:
            share = -(-tokens // (self.cores - self._busy))
            graph, budget = self.graph, min(TOKENS_PER_RUN, max(ROW_LENGTH, share))
        rows = choose_rows(lengths, budget)
        chosen = {index for row in rows for index in row.texts}
        self._waiting[:CHOICE] = [text for index, text in enumerate(texts) if index not in chosen]
        now = time.perf_counter()
        for request in {texts[index].request for index in chosen}:
            if request.begun is None:
                request.begun = now
                self._totals.queue_s += now - request.queued
        return rows, texts, graph

    def _count(self, texts: Sequence[WaitingText], slots: int, pack_s: float, graph_s: float) -> None:
        """Count a run."""
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
            for text, probabilities in zip(texts, values, strict=False):  # the graph repeats the first text
                request = text.request
                request.values[text.position] = probabilities
                request.texts_left -= 1
                if request.texts_left == 0 and not request.ended:
                    request.ended = True
                    complete.append(request)
        for request in complete:
            request.answer.set_result(Probabilities(request.values, request.truncated, request.phases()))

    def _drop_useless(self) -> bool:
        """Drop, of the requests that come next, those that are too old or that nobody waits for; whether any was."""
        with self._changed:
            requests = {text.request for text in self._waiting[:CHOICE]}
        now = time.monotonic()
        useless: dict[Request, Exception] = {}
        for request in requests:
            if request.deadline <= now:
                useless[request] = DroppedError(TIME_HAS_PASSED)
            elif now - request.looked_at >= LOOK_S:
                request.looked_at = now
                if not request.is_wanted():
                    useless[request] = DroppedError(NOBODY_WAITS)
        if useless:
            self._end(useless)
        return bool(useless)

    def _end(self, errors: Mapping[Request, Exception]) -> None:
        """Fail requests; their texts that wait would be work for nobody."""
        with self._changed:
            ended = [request for request in errors if not request.ended]
            for request in ended:
                request.ended = True
            self._waiting = [text for text in self._waiting if text.request not in errors]
        for request in ended:
            request.answer.set_exception(errors[request])

    def _run_apart(self, texts: Sequence[WaitingText], graph: Graph, error: Exception) -> None:
        """Run the texts of a run that failed one by one, so that only those at fault fail."""
        errors: dict[Request, Exception] = {}
        good: list[WaitingText] = []
        values: list[npt.NDArray[np.float32]] = []
        try:
            # If not even this can be run, it is no text's fault.
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

    def _text_error(self, texts: Sequence[str], error: BaseException) -> BaseException:
        """What tells which of the texts the tokenizer fails on; the error itself where it is none of them."""
        for position, text in enumerate(texts):
            try:
                self._tokenizer.encode(text)
            except BaseException as own:
                return _at_fault(position, own)
        return error


def _at_fault(position: int, error: BaseException) -> TextError:
    return TextError(f"TEXT[{position}] cannot be classified: {type(error).__name__}: {error}")


def _failed(error: BaseException) -> "Future[Probabilities]":
    answer: Future[Probabilities] = Future()
    answer.set_exception(error)
    return answer
