"""Section *engine*: the graph in process on all cores, with each runtime, precision and way of batching."""

from contextlib import ExitStack
from functools import partial

from benchmarks.batching import LONE, PACKED, WAYS
from benchmarks.engine_worker import engine_process, in_process
from benchmarks.results import Case
from benchmarks.run import Run
from benchmarks.texts import REVIEWS
from common.errors import PipelineError

SECTION = "engine"
TITLE = "Engine, in process, reviews"
ONE_STAGE = "the deployed one without its first stage"


def measure(run: Run) -> None:
    """Measure each way of batching with each of the model's variants, including refused ones.

    The deployed variant has both stages, if the model has two; it is then also measured with one.
    """
    texts = run.engine_texts_file(REVIEWS)
    cases = []
    with ExitStack() as stack:
        for variant in run.model.variants():
            try:
                run.progress(f"{SECTION}: loading {variant}")
                engine = stack.enter_context(engine_process(run.model.directory, variant))
            except PipelineError as error:
                run.results.notes.append(f"{SECTION}: {variant} is left out. {error}")
                continue
            cases += [Case(str(variant), way, partial(in_process, engine, way, texts)) for way in WAYS]
        if run.model.one_stage:
            alone = stack.enter_context(engine_process(run.model.alone, run.model.choice().variant))
            cases += [Case(ONE_STAGE, way, partial(in_process, alone, way, texts)) for way in (LONE, PACKED)]
        run.measure(SECTION, cases)
