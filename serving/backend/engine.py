"""The inference engine: runs a model version's tokenizer and graph in this process, on all its cores.

Texts of all requests wait in one queue. Each core takes as many texts as fill its next run. A text that arrives while
all cores are busy therefore joins the next run, no matter how callers split their texts into requests.

A version may have two stages. Then a smaller model runs first, and decides the texts that it is sure of. The others
join the queue of the full model, where they keep their place by due time, and share runs with texts of other requests.
A sample of the texts is audited: the other stage classifies them too, when there is time, and no answer waits for it.
"""

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from serving.backend.audit import Audit
from serving.backend.packing import CHOICE, ROW_LENGTH, STEP, TOKENS_PER_RUN, choose_rows, lay_out, rows_of_shape
from serving.backend.requests import Probabilities, Request, TextError, WaitingText
from serving.backend.runtime import Graph
from serving.backend.second_opinions import SecondOpinions
from serving.backend.stage import Run, Stage
from serving.backend.variant_choice import arithmetic_of
from serving.model_repo.bundle import FIRST_STAGE
from serving.model_repo.texts import readable
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

log = logging.getLogger(__name__)


@dataclass
class Totals:
    """An engine's counters since it was loaded, over all cores, and its current load."""

    texts: int = 0
    first_stage_texts: int = 0
    """Number of texts that the first stage decided."""
    audited_texts: int = 0
    """Number of texts that were audited while the first stage answered."""
    audit_differing: int = 0
    """Number of these that got another label than by the full model."""
    tokens: int = 0
    """Tokens that were run; those of a text that both stages read count twice."""
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
    two_stages: int = 0
    """1 if the version has a first stage."""
    first_stage_on: int = 0
    """1 while the first stage answers the texts that it is sure of."""


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

        The bundle's first stage runs too, if its certificate holds for `variant` on this processor.

        Raises:
            PipelineError: the bundle is incomplete, or its graph has another number of outputs than its labels.
        """
        self.full = Stage(directory, variant, cores)
        """The full model, which decides all texts that reach it."""
        self.first: Stage | None = None
        """The smaller model that runs before it, if there is one."""
        self.bundle = self.full.bundle
        self.variant = variant
        certificate = self.bundle.first_stage
        if certificate and (certificate.full, certificate.arithmetic) == (variant, arithmetic_of(variant)):
            self.first = Stage(directory / FIRST_STAGE, certificate.first, cores, certificate.threshold)
        self.stages = [stage for stage in (self.first, self.full) if stage is not None]
        """The stages, in the order in which a text passes them."""
        self.cores = cores
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        """Numbers of the texts; to be drawn under the lock."""
        self.second_opinions: SecondOpinions | None = None
        """The audit of the first stage, if there is one."""
        if self.first is not None and certificate is not None:
            self.second_opinions = SecondOpinions(
                Audit(certificate), self.first, self.full, self._changed, self._numbers
            )
        self._busy: set[int] = set()
        """Threads that run the graph now."""
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
            for stage in self.stages:
                if stage.graph_of_all_cores is not stage.graph:
                    stage.warm_up(stage.graph_of_all_cores, most_rows=1)
                stage.measure()
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
        stage = self.full if self.first is None or self.first.is_off else self.first
        encodings: list[Encoding] = []
        for start in range(0, len(request.texts), TOKENIZED_TOGETHER):
            if start and (error := request.useless(LOOK_S)):
                request.answer.set_exception(error)
                return
            for one in stage.encode(request.texts[start : start + TOKENIZED_TOGETHER]):
                if isinstance(one, BaseException):
                    request.answer.set_exception(_at_fault(len(encodings), one))
                    return
                encodings.append(one)
        request.queue(encodings)
        self._enqueue(request, stage)

    def _enqueue(self, request: Request, stage: Stage) -> None:
        if not request.texts:
            request.answer.set_result(Probabilities(request.values, request.truncated, request.phases()))
            return
        lengths = list(map(len, request.token_ids))
        now = time.monotonic()
        due = now + PATIENCE * self.full.seconds_per_token * sum(lengths)
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
            stage.insert(
                [
                    WaitingText(due, next(self._numbers), tokens, request, position)
                    for position, tokens in enumerate(lengths)
                ]
            )
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
        """Return how many tokens of the texts the full model reads."""
        read = [readable(text, self.bundle.max_length) for text in texts]
        return sum(len(one.ids) for one in self.full.tokenizer.encode_batch_fast([text.text for text in read]))

    def totals(self) -> Totals:
        """Return a copy of the counters, with the current load."""
        with self._changed:
            audit = self.second_opinions.audit if self.second_opinions else None
            return replace(
                self._totals,
                audited_texts=audit.texts if audit else 0,
                audit_differing=audit.differing if audit else 0,
                two_stages=int(self.first is not None),
                first_stage_on=int(audit is not None and audit.is_on),
                waiting_texts=sum(len(stage.waiting) for stage in self.stages),
                busy_cores=len(self._busy),
            )

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

    def _work(self, warm: "Future[None]") -> None:
        # Warm up in this thread, because a runtime may prepare shapes per thread.
        try:
            for stage in self.stages:
                stage.warm_up(stage.graph, TOKENS_PER_RUN)
        except BaseException as error:
            warm.set_exception(error)
            return
        warm.set_result(None)
        while True:
            taken: Run | None = None
            try:
                while self._drop_useless():
                    pass  # The requests that move to the front may be useless too.
                with self._changed:
                    while (taken := self._take()) is None:
                        is_waiting = any(stage.waiting for stage in self.stages)
                        if self._closing and not is_waiting:
                            return
                        self._changed.wait(INTERACTIVE_S if is_waiting else None)
                    self._busy.add(threading.get_ident())
                self._run(taken)
            except Exception as error:
                self._give_up(taken, error)
                if taken is None:
                    if self._closing:
                        return
                    time.sleep(INTERACTIVE_S)  # it may fail again at once

    def _run(self, taken: Run) -> None:
        """Run the graph, and deliver what it says of the texts."""
        stage, graph, rows, texts = taken
        started = time.perf_counter()
        try:
            token_ids = [text.request.token_ids[text.position] for text in texts]
            packed = lay_out(rows, token_ids, stage.bundle.padding_token)
            packed_at = time.perf_counter()
            values = graph.run(packed)
        except Exception as error:
            self._run_apart(stage, taken.chosen, graph, error)
        else:
            run = [texts[index] for index in packed.texts]
            self._count(run, packed.input_ids.size, packed_at - started, time.perf_counter() - packed_at)
            self._deliver(stage, run, values)

    def _give_up(self, taken: Run | None, error: Exception) -> None:
        """End the requests of a run, or all that wait if there is none, after an error of the engine's own.

        It would otherwise end this thread, so that these requests wait, and a core idles, for as long as the process.
        """
        with self._changed:
            self._busy.discard(threading.get_ident())
            texts = taken.chosen if taken else [text for stage in self.stages for text in stage.waiting]
        self._end({text.request: error for text in texts})
        log.error("The engine failed; its requests get this error.", exc_info=error)

    def _take(self) -> Run | None:
        """Return the next run, or None to wait.

        The full model waits until its texts fill a run, while the first stage has texts: it gets more from them.
        """
        is_interactive = self.cores > 1 and time.monotonic() < self._interactive_until and not self._closing
        stages = self.stages
        if self.first is not None and (self.first.is_off or self.full.is_ripe() or not self.first.waiting):
            stages = [self.full, self.first]
        run = next((run for stage in stages if (run := stage.take(len(self._busy), is_interactive))), None)
        if run is not None:
            now = time.perf_counter()
            for request in {text.request for text in run.chosen}:
                if request.begun is None and not request.is_audit:
                    request.begun = now
                    self._totals.queue_s += now - request.queued
        return run

    def _count(self, texts: Sequence[WaitingText], slots: int, pack_s: float, graph_s: float) -> None:
        """Add a run to the counters."""
        with self._changed:
            self._totals.tokens += sum(text.tokens for text in texts)
            self._totals.slots += slots
            self._totals.runs += 1
            self._totals.pack_s += pack_s
            self._totals.graph_s += graph_s

    def _deliver(self, stage: Stage, texts: Sequence[WaitingText], values: Iterable[npt.NDArray[np.float32]]) -> None:
        """Store the probabilities of the texts that `stage` decides, and queue the others for the full model."""
        decided, undecided = [], []
        for text, probabilities in zip(texts, values, strict=False):  # the graph's output repeats the first text
            if stage is self.full or text.request.is_audit or probabilities.max() >= stage.threshold:
                decided.append((text, probabilities))
            else:
                undecided.append(text)
        passed_on, errors = self._for_full_model(undecided)
        complete = []
        with self._changed:
            self._busy.discard(threading.get_ident())
            answers = sum(not text.request.is_audit for text, _ in decided)
            self._totals.texts += answers
            if stage is not self.full:
                self._totals.first_stage_texts += answers
            for text, probabilities in decided:
                request = text.request
                request.values[text.position] = probabilities
                request.texts_left -= 1
                if request.texts_left == 0 and not request.ended:
                    request.ended = True
                    complete.append(request)
                    if request.is_short:
                        self._short_at = time.monotonic()
            if passed_on:
                self.full.insert([text for text in passed_on if not text.request.ended])
                self._changed.notify_all()
        for request in complete:
            request.answer.set_result(Probabilities(request.values, request.truncated, request.phases()))
        if errors:
            self._end(errors)
        if self.second_opinions is not None:
            self.second_opinions.ask(stage, decided, len(undecided))

    def _for_full_model(self, texts: Sequence[WaitingText]) -> tuple[list[WaitingText], dict[Request, BaseException]]:
        """Tokenize texts for the full model; also return the errors of the requests on which its tokenizer fails."""
        if not texts:
            return [], {}
        read = [text.request.texts[text.position] for text in texts]
        passed_on = []
        errors: dict[Request, BaseException] = {}
        for text, one, encoding in zip(texts, read, self.full.encode(read), strict=True):
            if isinstance(encoding, BaseException):
                errors[text.request] = _at_fault(text.position, encoding)
                continue
            text.request.token_ids[text.position] = encoding.ids
            text.request.truncated[text.position] = one.is_cut or bool(encoding.overflowing)
            passed_on.append(text._replace(tokens=len(encoding.ids)))
        return sorted(passed_on), errors

    def _drop_useless(self) -> bool:
        """Drop requests near the front of the queue that expired or were cancelled; return whether there were any."""
        with self._changed:
            requests = {text.request for stage in self.stages for text in stage.waiting[:CHOICE]}
        useless = {request: error for request in requests if (error := request.useless(LOOK_S))}
        if useless:
            self._end(useless)
        return bool(useless)

    def _end(self, errors: Mapping[Request, BaseException]) -> None:
        """Fail the requests, and remove their remaining texts from the queue."""
        with self._changed:
            ended = [request for request in errors if not request.ended]
            for request in ended:
                request.ended = True
            for stage in self.stages:
                stage.waiting = [text for text in stage.waiting if text.request not in errors]
        for request in ended:
            request.answer.set_exception(errors[request])

    def _run_apart(self, stage: Stage, texts: Sequence[WaitingText], graph: Graph, error: Exception) -> None:
        """Run the texts of a failed run one by one, so that only the requests with a bad text fail."""
        errors: dict[Request, BaseException] = {}
        good: list[WaitingText] = []
        values: list[npt.NDArray[np.float32]] = []
        try:
            # If even this run fails, no text is the cause.
            graph.run(rows_of_shape(1, STEP, stage.bundle.max_length, stage.bundle.padding_token))
        except Exception:
            errors = dict.fromkeys((text.request for text in texts), error)
        for text in texts:
            if text.request in errors:
                continue
            tokens = text.request.token_ids[text.position]
            try:
                packed = lay_out(choose_rows([len(tokens)]), [tokens], stage.bundle.padding_token)
                values.append(graph.run(packed)[0])
            except Exception as own:
                errors[text.request] = _at_fault(text.position, own)
            else:
                good.append(text)
        self._deliver(stage, good, values)
        self._end(errors)


def _at_fault(position: int, error: BaseException) -> TextError:
    return TextError(f"TEXT[{position}] cannot be classified: {type(error).__name__}: {error}")
