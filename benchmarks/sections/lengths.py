"""Section *lengths*: the gateway, and the engine with packing and padding, for texts of mixed and uniform length."""

from contextlib import ExitStack
from functools import partial

from benchmarks.batching import PACKED, PADDED
from benchmarks.engine_worker import engine_process, in_process
from benchmarks.processes import running_pipeline
from benchmarks.results import Case
from benchmarks.run import Run
from benchmarks.sections.server import START_TIMEOUT_S
from benchmarks.texts import FLAT_LONG, MIXED

SECTION = "lengths"
TITLE = "Texts of other lengths, by 64 texts or connections; the gateway by 16 for flat-long"
GATEWAY = "gateway, live"
ENGINE_PACKED = "engine, packed"
ENGINE_PADDED = "engine, padded"
SETS = (MIXED, FLAT_LONG)


def measure(run: Run) -> None:
    """Measure each set of texts with the deployed variant."""
    with ExitStack() as stack:
        pipeline = stack.enter_context(running_pipeline(run.model.repository.root, run.directory / "pipeline"))
        run.progress(f"{SECTION}: waiting until the pipeline answers")
        pipeline.wait_until_answering("/health/ready", START_TIMEOUT_S)
        engine = stack.enter_context(engine_process(run.model.directory, run.model.choice().variant))
        cases = []
        for name in SETS:
            texts = run.engine_texts_file(name)
            for group, way in ((ENGINE_PACKED, PACKED), (ENGINE_PADDED, PADDED)):
                cases.append(Case(group, name, partial(in_process, engine, way, texts)))
            # 16 long texts take the gateway as long as 64 others.
            connections = 16 if name == FLAT_LONG else 64
            cases.append(Case(GATEWAY, name, run.live_load(pipeline, connections, name)))
        run.measure(SECTION, cases)
