"""*engine*: the graph in process, for each runtime and precision, batched in each way, on all cores."""

from contextlib import ExitStack
from functools import partial

from benchmarks.batching import ONE_BY_ONE, PACKED, WAYS
from benchmarks.engine_processes import EngineProcesses, as_served, engine_processes, runtimes
from benchmarks.results import Case
from benchmarks.run import Run
from benchmarks.texts import REVIEWS
from errors import PipelineError
from serving.processor import usable_cores

SECTION = "engine"
SHARES = "where the time goes (packed)"


def measure(run: Run) -> None:
    """Measure every way on one-thread processes, as they are served, and the lone and packed way on all threads."""
    texts = run.texts_file(REVIEWS)
    cases = []
    with ExitStack() as stack:
        for runtime in runtimes():
            try:
                run.progress(f"{SECTION}: loading {runtime}")
                served = stack.enter_context(engine_processes(run.model.directory, runtime, *as_served()))
                ways = [(served, way) for way in WAYS]
                if usable_cores() > 1:
                    together = stack.enter_context(engine_processes(run.model.directory, runtime, 1, usable_cores()))
                    ways += [(together, ONE_BY_ONE), (together, PACKED)]
            except PipelineError as error:
                run.results.notes.append(f"{SECTION}: {runtime} is left out. {error}")
                continue
            cases += [Case(group.name, way, partial(group.measure, way, texts)) for group, way in ways]
            cases.append(_shares(run, served))
        run.measure(SECTION, cases)


def _shares(run: Run, group: EngineProcesses) -> Case:
    return Case(group.name, SHARES, partial(group.shares, run.texts_file(REVIEWS)))
