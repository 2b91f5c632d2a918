"""*trying*: what it costs live requests that a sample of them is kept, and that a version is in the shadow."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx

from benchmarks.offering import offer, outcome_figures
from benchmarks.processes import Server, running_pipeline
from benchmarks.results import Case, Figures
from benchmarks.run import Run
from benchmarks.sections.server import START_TIMEOUT_S, connections
from errors import PipelineError

SECTION = "trying"
PLAIN = "gateway, live"
TRYING = "gateway, live, with a sample and a shadow"
FULL = connections(64)
HALF = "half of that"
"""As much as leaves cores to spare."""
_DEADLINE_S = 10.0


def measure(run: Run) -> None:
    """Load two pipelines in turns, one that does nothing else, and one that keeps a sample and tries a version."""
    version = run.model.version + 1
    if version not in run.model.repository.published():
        run.model.publish_again(version)
    with ExitStack() as stack:
        plain = stack.enter_context(_pipeline(run, "plain", {"SENTIMENT_SAMPLE_PER_MINUTE": "0"}))
        trying = stack.enter_context(_pipeline(run, "trying", {}))
        key = (run.directory / "trying" / "state" / "admin_key").read_text()
        admin = stack.enter_context(httpx.Client(base_url=trying.url, headers={"X-API-Key": key}, trust_env=False))
        admin.post(f"/models/{version}/shadow", timeout=START_TIMEOUT_S).raise_for_status()
        loads = {PLAIN: run.live_load(plain, 64), TRYING: run.live_load(trying, 64)}
        rate = loads[PLAIN](run.seconds)["texts_per_s"] / 2
        cases = [Case(name, FULL, load) for name, load in loads.items()]
        cases += [Case(PLAIN, HALF, _half(run, plain, rate)), Case(TRYING, HALF, _half(run, trying, rate))]
        run.measure(SECTION, cases)
        [tried] = [model for model in admin.get("/models").raise_for_status().json() if model["version"] == version]
        if tried["release"]["state"] != "running":
            raise PipelineError(f"Version {version} was no longer tried at the end: {tried['release']['outcome']}")


def _half(run: Run, pipeline: Server, rate: float) -> Callable[[float], Figures]:
    """Offers so many live requests a second, whatever comes of them."""

    def measure(seconds: float) -> Figures:
        pipeline.settle()
        [outcome] = offer(run, pipeline, _DEADLINE_S, [(rate, seconds)])
        return outcome_figures(outcome)

    return measure


@contextmanager
def _pipeline(run: Run, name: str, settings: dict[str, str]) -> Iterator[Server]:
    """Run a pipeline with a repository of its own, for what is tried is written there."""
    directory = run.directory / name
    repository = directory / "triton_repo"
    shutil.copytree(run.model.repository.root, repository)
    with running_pipeline(repository, directory, settings) as pipeline:
        pipeline.wait_until_answering("/health/ready", START_TIMEOUT_S)
        yield pipeline
