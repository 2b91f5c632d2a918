"""*lengths*: the gateway, and the engine packed and padded, for short, mixed, long and uniform texts."""

from contextlib import ExitStack
from functools import partial

from benchmarks.batching import PACKED, PACKED_16, PADDED, PADDED_16
from benchmarks.engine_process import engine_process
from benchmarks.processes import running_pipeline
from benchmarks.results import Case
from benchmarks.run import Run
from benchmarks.sections.server import START_TIMEOUT_S
from benchmarks.texts import FLAT_LONG, LONG, MIXED, TWEETS

SECTION = "lengths"
GATEWAY = "gateway, live"
ENGINE_PACKED = "engine, packed"
ENGINE_PADDED = "engine, padded"
SETS = (TWEETS, MIXED, LONG, FLAT_LONG)


def measure(run: Run) -> None:
    """Measure each set of texts in the variant that is served.

    By 64 texts, in a batch or on as many connections; long texts by 16, of which a core has its fill.
    """
    with ExitStack() as stack:
        pipeline = stack.enter_context(running_pipeline(run.model.repository.root, run.directory / "pipeline"))
        run.progress(f"{SECTION}: waiting until the pipeline answers")
        pipeline.wait_until_answering("/health/ready", START_TIMEOUT_S)
        engine = stack.enter_context(engine_process(run.model.directory, run.model.choice().variant))
        cases = []
        for name in SETS:
            long = name in (LONG, FLAT_LONG)
            packed, padded, connections = (PACKED_16, PADDED_16, 16) if long else (PACKED, PADDED, 64)
            for group, way in ((ENGINE_PACKED, packed), (ENGINE_PADDED, padded)):
                cases.append(Case(group, name, partial(engine.measure, way, run.texts_file(name))))
            cases.append(Case(GATEWAY, name, run.live_load(pipeline, connections, name)))
        run.measure(SECTION, cases)
