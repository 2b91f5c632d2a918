"""*engine*: the graph in process, in each runtime and precision, batched in each way, on all cores."""

from contextlib import ExitStack
from functools import partial

from benchmarks.batching import WAYS
from benchmarks.engine_process import engine_process
from benchmarks.results import Case
from benchmarks.run import Run
from benchmarks.texts import REVIEWS
from errors import PipelineError

SECTION = "engine"
SHARES = "where a core's time goes (packed)"


def measure(run: Run) -> None:
    """Measure every way in every variant that the model has, whether or not it may serve."""
    texts = run.texts_file(REVIEWS)
    cases = []
    with ExitStack() as stack:
        for variant in run.model.variants():
            try:
                run.progress(f"{SECTION}: loading {variant}")
                engine = stack.enter_context(engine_process(run.model.directory, variant))
            except PipelineError as error:
                run.results.notes.append(f"{SECTION}: {variant} is left out. {error}")
                continue
            cases += [Case(str(variant), way, partial(engine.measure, way, texts)) for way in WAYS]
            cases.append(Case(str(variant), SHARES, partial(engine.shares, texts)))
        run.measure(SECTION, cases)
