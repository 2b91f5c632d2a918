"""Publishes the engine's counters as custom metrics on Triton's own metrics endpoint."""

import contextlib
import threading
from dataclasses import fields
from typing import Any

from serving.backend.engine import Engine, Totals

INTERVAL_S = 1.0
"""Seconds between two updates. Each changed metric costs a message to Triton, so requests do not send them."""

_COUNTERS = {
    "texts": ("sentiment_engine_texts_total", "Texts that were classified."),
    "first_stage_texts": ("sentiment_engine_first_stage_texts_total", "Texts that the first stage decided."),
    "audited_texts": (
        "sentiment_engine_audited_texts_total",
        "Texts that were audited while the first stage answered.",
    ),
    "audit_differing": (
        "sentiment_engine_audit_differing_total",
        "Audited texts that got another label than by the full model.",
    ),
    "tokens": ("sentiment_engine_tokens_total", "Tokens of the texts that were run."),
    "slots": ("sentiment_engine_slots_total", "Places for tokens in the rows that were run, padding among them."),
    "runs": ("sentiment_engine_runs_total", "Runs of the graph."),
    "tokenize_s": ("sentiment_engine_tokenize_seconds_total", "Time that texts were tokenized."),
    "queue_s": ("sentiment_engine_queue_seconds_total", "Time that requests waited for a core."),
    "pack_s": ("sentiment_engine_pack_seconds_total", "Time that runs were packed, over all cores."),
    "graph_s": ("sentiment_engine_graph_seconds_total", "Time that runs were computed, over all cores."),
}
_GAUGES = {
    "waiting_texts": ("sentiment_engine_waiting_texts", "Texts that wait for a core."),
    "two_stages": ("sentiment_engine_two_stages", "1 if the version has a first stage, 0 if not."),
    "first_stage_on": (
        "sentiment_engine_first_stage_on",
        "1 while a first stage answers the texts that it is sure of, 0 if the full model answers all.",
    ),
    "busy_cores": ("sentiment_engine_busy_cores", "Cores that compute now."),
}


class EngineMetrics:
    """Custom metrics of Triton's Python backend, labelled with the model version."""

    def __init__(self, engine: Engine, version: str, pb_utils: Any) -> None:
        """Start to publish the counters of `engine` through `pb_utils`, a module that exists only inside Triton."""
        self._engine = engine
        self._pb_utils = pb_utils
        self._told = Totals()
        labels = {"version": version}
        # Triton drops a metric family when Python garbage-collects it, so keep a reference to each.
        self._families: list[Any] = []
        self._metrics = {
            name: self._make(described, kind).Metric(labels=labels)
            for kind, of_kind in ((pb_utils.MetricFamily.COUNTER, _COUNTERS), (pb_utils.MetricFamily.GAUGE, _GAUGES))
            for name, described in of_kind.items()
        }
        cores = self._make(("sentiment_engine_cores", "Cores that it uses."), pb_utils.MetricFamily.GAUGE)
        self._cores = cores.Metric(labels=labels)
        self._cores.set(engine.cores)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="engine-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread that updates the metrics."""
        self._closing.set()
        self._thread.join()

    def _make(self, described: tuple[str, str], kind: Any) -> Any:
        name, text = described
        self._families.append(self._pb_utils.MetricFamily(name=name, description=text, kind=kind))
        return self._families[-1]

    def _tell(self) -> None:
        # Updates fail while Triton shuts down; the metrics are no longer needed then.
        with contextlib.suppress(self._pb_utils.TritonModelException):
            while not self._closing.wait(INTERVAL_S):
                totals = self._engine.totals()
                for field in fields(Totals):
                    value, told = getattr(totals, field.name), getattr(self._told, field.name)
                    if value == told:
                        continue
                    if field.name in _COUNTERS:
                        self._metrics[field.name].increment(value - told)
                    else:
                        self._metrics[field.name].set(value)
                self._told = totals
