"""Scores a job on a Ray cluster with Ray Data: one engine per node, and every node can write parts.

All nodes must see the inputs, the output's folder and the model repository under the same paths. Parts are written
atomically, and existing parts are not scored again. So Ray can safely repeat the tasks of a lost node.
"""

import logging
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import PipelineError
from scoring.classify import classify
from scoring.job import Job
from scoring.parts import Parts
from scoring.planning import Span, plan
from scoring.progress import Progress
from scoring.reading import Source, read
from serving.backend.engine import Engine
from serving.backend.variant_choice import Wanted, choose_variant
from serving.model_repo.bundle import Bundle
from tables.blocks import Place

SPANS_PER_TASK = 4
"""Parts per task: few, because tasks of a lost node are repeated, but enough to make the engine's idle time at the end
of a task negligible."""
_TASKS_AHEAD = 2
_TRIES = 3
_REACH_S = 10.0
_PROJECT = Path(__file__).resolve().parent.parent
_CODE = ("common", "scoring", "serving", "tables")
"""Folders of this project that are sent to the nodes; the nodes must have the required packages installed."""

IntArray = npt.NDArray[np.int64]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """The work that each node gets."""

    job: Job
    version_directory: Path
    wanted: Wanted


class Node:
    """An engine on a node, on all cores that Ray may use there, for the whole job."""

    def __init__(self, order: Order) -> None:
        """Load the version."""
        import ray

        here = ray.get_runtime_context().get_node_id()
        cores = next(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["NodeID"] == here)
        variant = choose_variant(Bundle.load(order.version_directory), order.wanted).variant
        self._job = order.job
        self._engine = Engine(order.version_directory, variant, max(1, cores))

    def __call__(self, batch: dict[str, IntArray]) -> dict[str, IntArray]:
        """Score those spans of the batch that have no part yet, and return the batch."""
        parts = Parts(self._job)
        columns = (batch["file"], batch["row"], batch["offset"], batch["rows"])
        spans = [Span(file, Place(row, offset), rows) for file, row, offset, rows in zip(*columns, strict=True)]
        missing = [span for span in spans if not parts.has(span.file, span.start.row)]
        for _ in classify(self._engine, self._job, parts, self._read(missing)):
            pass
        return batch

    def _read(self, spans: Sequence[Span]) -> Iterator[Source]:
        for span in spans:
            for source in read(self._job, span.file, span.start):
                yield source
                if source.block.end.row >= span.start.row + span.rows:
                    break


def score_on_ray(address: str, order: Order, parts: Parts) -> Progress:
    """Score the missing parts of a job on the cluster at `address`, in the format of `ray.init`.

    Raises:
        PipelineError: Ray is not installed, no cluster responds, a node failed, or parts are missing after all tries.
    """
    try:
        import ray
    except ImportError as error:
        raise PipelineError('--ray needs Ray, which is not installed: pip install "ray[data]"') from error
    _check_reachable(address)
    with _code() as code:
        try:
            ray.init(address, runtime_env={"working_dir": str(code)}, log_to_driver=False, logging_level="warning")
        except ConnectionError as error:
            raise PipelineError(f"No Ray cluster answers at {address}: {error}") from error
        try:
            spans = list(plan(order.job))
            progress = Progress(order.job, parts)
            for _ in range(_TRIES):
                missing = [span for span in spans if not parts.has(span.file, span.start.row)]
                if not missing:
                    progress.end()
                    return progress
                _score_spans(order, spans, missing, progress)
                parts.refresh()
        finally:
            ray.shutdown()
    raise PipelineError("The cluster lost more work than it repeated. Run the same command again: it resumes.")


def _score_spans(order: Order, spans: Sequence[Span], missing: Sequence[Span], progress: Progress) -> None:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    log.info("Scoring with version %d on %d nodes.", order.job.version, len(nodes))
    DataContext.get_current().enable_progress_bars = False
    items = [
        {"file": span.file, "row": span.start.row, "offset": span.start.offset, "rows": span.rows} for span in missing
    ]
    scored = ray.data.from_items(items, override_num_blocks=-(-len(items) // SPANS_PER_TASK)).map_batches(
        Node,
        fn_constructor_args=(order,),
        batch_size=SPANS_PER_TASK,
        compute=ActorPoolStrategy(size=len(nodes), max_tasks_in_flight_per_actor=_TASKS_AHEAD),
        # One engine per node, each with half a node, so that another node has room for the engine of a lost node.
        num_cpus=min(node["Resources"]["CPU"] for node in nodes) / 2,
        scheduling_strategy="SPREAD",
    )
    rows = Counter[int]()
    for span in spans:
        rows[span.file] += span.rows
    left = Counter[int]()
    for span in missing:
        left[span.file] += span.rows
    try:
        for item in scored.iter_rows():
            left[item["file"]] -= item["rows"]
            progress.add(item["file"], item["rows"], 1 - left[item["file"]] / max(1, rows[item["file"]]))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        raise PipelineError(f"A node failed: {cause}") from error


def _check_reachable(address: str) -> None:
    """Raise an error within seconds if there is no cluster; Ray takes minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return  # `auto`, `local` or a URL
    try:
        socket.create_connection((host, int(port)), _REACH_S).close()
    except OSError as error:
        raise PipelineError(f"No Ray cluster answers at {address}: {error}.") from error


@contextmanager
def _code() -> Iterator[Path]:
    """Yield a folder with only the code that the nodes run, because Ray sends them the whole folder."""
    with tempfile.TemporaryDirectory(prefix="sentiment-scoring-") as name:
        for part in _CODE:
            shutil.copytree(_PROJECT / part, Path(name) / part, ignore=shutil.ignore_patterns("__pycache__"))
        yield Path(name)
