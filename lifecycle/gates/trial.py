"""A trial: a separate Triton that runs one version without live traffic, and gets real requests from the pipeline."""

import asyncio
import logging
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from common.errors import PipelineError
from common.settings import Settings
from lifecycle.gates.batch_predict import CALL_TIMEOUT_S
from serving.client.errors import TritonTimeoutError, TritonUnavailableError
from serving.client.triton_client import TritonClient
from serving.host import triton
from serving.host.die_with_parent import command_dying_with_parent
from serving.host.leftovers import sweep
from serving.host.log_file import last_lines
from serving.model_repo.bundle import Bundle
from serving.model_repo.protocol import MAX_BATCH_SIZE
from serving.model_repo.repository import ModelRepository
from storage.tables import Figures
from storage.versions import GateVerdict

START_TIMEOUT_S = 300.0
LARGEST_SLOWDOWN = 2.0
"""Highest accepted ratio of a lone text's median latency, and of the time for a full batch. A version whose int8 graph
was refused takes up to 1.8 times as long as a version in int8 (BERT-base size), and a better model is worth that."""
LARGEST_GROWTH = 3.0
"""Highest accepted ratio of memory; a version without its int8 graph also needs more memory."""
SLACK_MS = 2.0
SLACK_MIB = 32.0
"""A difference below `SLACK_MS` or `SLACK_MIB` is noise, whatever the ratio."""
BASE_MODEL_CHANGED = "The base model changed"
"""Beginning of the gate's message if it only reports."""
_MEASUREMENTS = 3
_PAUSE_S = 2.0
"""Seconds between two measurements."""
_ROUNDS = 7
_LONE_TEXTS = 24
"""Texts that are sent one at a time in each round."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """A version that runs in a Triton of its own at an address."""

    address: str
    process: subprocess.Popen[bytes]

    def memory_mib(self) -> float:
        """Return the memory of the processes inside Triton, without pages that they share with others."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return sum(int(child.memory_full_info().uss) for child in children) / 2**20


@contextmanager
def trial(settings: Settings, source: ModelRepository, version: int, directory: Path) -> Iterator[Trial]:
    """Run a version of `source` in a Triton of its own during the block; its files are in `directory`.

    Raises:
        PipelineError: Triton cannot run here, or cannot serve the version; the message has the end of its log.
    """
    repository = ModelRepository(directory / "triton_repo")
    _link_all(source.version_directory(version), repository.version_directory(version))
    repository.deploy(version)
    own = settings.model_copy(update={"model_repository": repository.root, "state_dir": directory, "triton_url": None})
    log_file = directory / "triton.log"
    with log_file.open("wb") as output:
        process = subprocess.Popen(
            command_dying_with_parent(triton.command(own), own_group=True, private_files=True),
            env=triton.environment(own),
            cwd=triton.working_directory(own),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        if not asyncio.run(_becomes_ready(own.triton_address, process)):
            tail = "\n".join(last_lines(log_file))[-1_000:]
            raise PipelineError(f"A Triton of its own does not serve version {version}. The end of its log:\n{tail}")
        yield Trial(own.triton_address, process)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        sweep(process.pid, triton.shared_memory_prefix(own))
        process.wait()


def base_model_change(repository: ModelRepository, before: int, after: int) -> str:
    """Return in words how the base models of two versions differ; empty if they do not, or if one is unreadable."""
    with suppress(PipelineError):
        old, new = (Bundle.load(repository.version_directory(version)).base_model for version in (before, after))
        return "" if old == new else f"{old} became {new}"
    return ""


def within_budget(champion: Trial, candidate: Trial, texts: Sequence[str], change: str = "") -> GateVerdict:
    """Gate: the candidate is about as fast as the champion, and needs about as much memory.

    If the base model has changed, the figures are only reported: what another encoder costs is what was asked for.
    `change` says in words what changed, and the message what it costs.

    Both are timed in turns, so that other load on the machine slows both. But load comes in bursts, and one may meet
    only the candidate. So a candidate is over the budget only if `_MEASUREMENTS` measurements in a row say so.
    """
    verdict = _measured(champion, candidate, texts)
    if change:
        costs = verdict.message.partition(" the budget ")[2]
        message = f"{BASE_MODEL_CHANGED}, so its costs are reported and not judged: {change} {costs}"
        return GateVerdict(verdict.gate, True, message, verdict.figures)
    for _ in range(_MEASUREMENTS - 1):
        if verdict.passed:
            break
        log.info("%s Measuring again, because the machine may have been busy.", verdict.message)
        time.sleep(_PAUSE_S)
        verdict = _measured(champion, candidate, texts)
    return verdict


def _measured(champion: Trial, candidate: Trial, texts: Sequence[str]) -> GateVerdict:
    lone: dict[str, list[float]] = {"champion": [], "candidate": []}
    batch: dict[str, list[float]] = {"champion": [], "candidate": []}
    for _ in range(_ROUNDS):
        for name, one in (("champion", champion), ("candidate", candidate)):
            lone_s, batch_s = asyncio.run(_time(one.address, texts))
            lone[name].append(1_000 * lone_s)
            batch[name].append(1_000 * batch_s)
    figures: Figures = {
        name: {
            "champion": statistics.median(champion_values),
            "candidate": statistics.median(candidate_values),
            "at most": most,
            "slack": slack,
        }
        for name, champion_values, candidate_values, most, slack in (
            ("ms for a lone text", lone["champion"], lone["candidate"], LARGEST_SLOWDOWN, SLACK_MS),
            (f"ms for {MAX_BATCH_SIZE} texts", batch["champion"], batch["candidate"], LARGEST_SLOWDOWN, SLACK_MS),
            ("MiB of memory", [champion.memory_mib()], [candidate.memory_mib()], LARGEST_GROWTH, SLACK_MIB),
        )
    }
    for item in figures.values():
        item["ratio"] = item["candidate"] / item["champion"]
    failed = [
        name
        for name, item in figures.items()
        if item["ratio"] > item["at most"] and item["candidate"] - item["champion"] > item["slack"]
    ]
    told = "; ".join(
        f"{item['champion']:,.1f} → {item['candidate']:,.1f} {name}, {item['ratio']:.1f} times"
        for name, item in figures.items()
    )
    message = f"{'Over' if failed else 'Within'} the budget (deployed version → candidate: {told})."
    return GateVerdict("budget", not failed, message, figures)


async def _becomes_ready(address: str, process: "subprocess.Popen[bytes]") -> bool:
    client = TritonClient(address)
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if await client.is_ready():
                return True
            await asyncio.sleep(0.2)
        return False
    finally:
        await client.close()


async def _time(address: str, texts: Sequence[str]) -> tuple[float, float]:
    """Return the median seconds for a lone text, and the seconds for a full batch."""
    client = TritonClient(address)
    try:
        lone = []
        for text in texts[:_LONE_TEXTS]:
            started = time.perf_counter()
            await client.classify([text], CALL_TIMEOUT_S)
            lone.append(time.perf_counter() - started)
        started = time.perf_counter()
        await client.classify(texts[:MAX_BATCH_SIZE], CALL_TIMEOUT_S)
        return statistics.median(lone), time.perf_counter() - started
    except (TritonUnavailableError, TritonTimeoutError) as error:
        raise PipelineError(f"The trial's Triton stopped answering: {error}.") from error
    finally:
        await client.close()


def _link_all(source: Path, target: Path) -> None:
    """Link the files in the directory `source`, and those in its directories, at the same places in `target`."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.rglob("*"):
        if path.is_dir():
            (target / path.relative_to(source)).mkdir(parents=True, exist_ok=True)
        else:
            _link(path, target / path.relative_to(source))


def _link(source: Path, target: Path) -> None:
    """Hard-link `source` to `target`, or copy it if a link is not possible."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())
