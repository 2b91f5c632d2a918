"""`python -m tests.e2e.soak`: half load of every kind for long, while versions change and the database goes away.

The exit status is 1 if memory, descriptors, threads, files or shared memory grow, an answer was wrong, a request failed
that needs no database or while there was one, a promotion, canary, retraining or bulk scoring failed, or an accepted
row of feedback was lost.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import numpy as np
from transformers.utils.logging import disable_progress_bar

from serving.host.triton import shared_memory_prefix
from tests.e2e.chaos.faults.postgres import running_postgres
from tests.e2e.chaos.load import BATCH, CONSOLE, FEEDBACK, GRPC, LIVE, Asked
from tests.e2e.chaos.target import Target, count_kept, opened, running_target
from tests.e2e.soak.beside import Beside
from tests.e2e.soak.telling import draw, table_of_trends, table_over_time
from tests.e2e.soak.watching import Sample, measure, trends
from tests.storage.conftest import find_postgres

SAMPLE_S = 5.0
JUDGED_S = 60.0
CALIBRATION_S = 8.0
CALLERS = 16
AWAY = " while the database was away"
MOST_RATE = 150.0
"""Requests a second, over which this load generator would measure itself."""


@dataclass
class Soak:
    """What was seen so far."""

    samples: list[Sample] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    accepted: list[str] = field(default_factory=list)
    live: list[tuple[float, float]] = field(default_factory=list)
    """When each live request was sent, and its duration in milliseconds."""


def main(arguments: list[str]) -> int:
    """Soak; returns the exit status."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.basicConfig(level=logging.ERROR)
    binaries = find_postgres()
    if binaries is None:
        print("No PostgreSQL server is installed (Debian and Ubuntu: apt-get install postgresql).", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="sentiment-soak-", ignore_cleanup_errors=True) as name:
        directory = Path(name) / "soak"
        rate = options.rate or _half_of_best(Path(name) / "calibration")
        rates = {LIVE: rate, GRPC: rate / 5, BATCH: rate / 20, FEEDBACK: rate / 20, CONSOLE: 0.5}
        (directory / "tmp").mkdir(parents=True)
        with (
            running_postgres(binaries) as postgres,
            running_target(
                directory, rates, SENTIMENT_DATABASE_URL=f"{postgres.url}/postgres", TMPDIR=str(directory / "tmp")
            ) as target,
        ):
            target.postgres = postgres
            print(f"{rate:.0f} live requests a second for {options.seconds:.0f} s", flush=True)
            beside = Beside(target, options.seconds)
            soak = _soak(target, options.seconds, beside)
            beside.end()
            target.load.stop()
            _judge(target, soak, beside)
            with opened(target.served) as database:
                lost, doubled = count_kept(database, soak.accepted)
    found = trends(soak.samples)
    told = [
        table_over_time(soak.samples),
        table_of_trends(found),
        f"{_described(soak)}; {len(beside.promotions)} promotions, {beside.canaries} canaries, "
        f"{len(beside.retrainings)} retrainings, {beside.rows:,} rows scored in bulk; "
        f"the database was away {len(beside.away)} times; "
        f"of {len(soak.accepted):,} accepted rows {lost} lost, {doubled} twice.",
        f"Live requests beside a retraining: {_times(soak, beside, True)}; otherwise: {_times(soak, beside, False)}.",
        *beside.failures,
    ]
    text = "\n\n".join(told)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "soak.md").write_text(text + "\n", encoding="utf-8")
        (options.out / "soak.json").write_text(
            json.dumps([asdict(sample) for sample in soak.samples]), encoding="utf-8"
        )
        draw(soak.samples, beside.promotions, options.out / "soak.png")
    failed = [outcome for outcome in soak.outcomes if not outcome.endswith(("right", AWAY))]
    growing = [trend.name for trend in found if trend.is_growing]
    print(f"Growing: {', '.join(growing)}." if growing else "Flat.")
    return int(bool(growing or failed or soak.wrong or lost or doubled or beside.failures))


def _soak(target: Target, seconds: float, beside: Beside) -> Soak:
    soak = Soak()
    assert target.served.process is not None
    root, prefix = target.served.process.pid, shared_memory_prefix(target.served.settings)
    began = time.monotonic()
    due = JUDGED_S
    while (elapsed := time.monotonic() - began) < seconds:
        soak.samples.append(Sample(elapsed, measure(root, prefix, target.directory)))
        if elapsed >= due:
            due += JUDGED_S
            _judge(target, soak, beside)
            print(f"{elapsed / 60:.1f} min, {len(beside.promotions)} promotions: {_described(soak)}", flush=True)
        time.sleep(max(0.0, SAMPLE_S - (time.monotonic() - began - elapsed)))
    return soak


def _judge(target: Target, soak: Soak, beside: Beside) -> None:
    """Compare what was answered so far, and forget it."""
    ended = target.load.take_ended()
    while beside.scored:
        ended.append(beside.scored.pop())
    # A retraining publishes more.
    for version in target.served.repository.published():
        target.references.learn(version, target.served.repository.version_directory(version))
    answered = [item for item in ended if item.status == 200 and item.kind != CONSOLE]
    wrong = target.references.wrong(answered)
    soak.wrong += len(wrong)
    for item in wrong[:3]:
        print(f"wrong: {str(item)[:1_000]}", flush=True)
    soak.accepted += [item.texts[0] for item in ended if item.kind == FEEDBACK and item.status == 201]
    soak.live += [(item.sent, 1e3 * (item.ended - item.sent)) for item in ended if item.kind == LIVE and item.succeeded]
    soak.outcomes.update(_outcome(item, beside) for item in ended)


def _described(soak: Soak) -> str:
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in soak.outcomes.most_common())
    return f"{sum(soak.outcomes.values()):,} requests ({outcomes}), {soak.wrong} wrong answers"


def _times(soak: Soak, beside: Beside, is_training: bool) -> str:
    times = [duration for sent, duration in soak.live if beside.was_training(sent) == is_training]
    if not times:
        return "none"
    median, p99 = np.percentile(times, [50, 99])
    return f"median {median:.1f} ms, p99 {p99:.0f} ms ({len(times):,} requests)"


def _outcome(item: Asked, beside: Beside) -> str:
    if item.succeeded and not item.failure:
        return f"{item.kind} right"
    outcome = f"{item.kind} {item.failure or f'{item.status} {item.problem}'}"
    # Only what needs the database may be refused for it.
    is_excused = item.kind in (FEEDBACK, CONSOLE) and item.status == 503 and not item.failure and beside.was_away(item)
    return f"{outcome}{AWAY}" if is_excused else outcome


def _half_of_best(directory: Path) -> float:
    """Half of the live requests a second that a few callers without a pause get answered, all texts new."""
    directory.mkdir()
    with running_target(directory, rates={}) as target:
        counts = [0] * CALLERS
        ended = threading.Event()

        def call(number: int) -> None:
            with httpx.Client(base_url=target.served.url, timeout=30, trust_env=False) as client:
                while not ended.is_set():
                    text = f"good {number} screen {counts[number]}"
                    counts[number] += client.post("/predict/live", json={"text": text}).is_success

        threads = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
        for thread in threads:
            thread.start()
        time.sleep(CALIBRATION_S)
        ended.set()
        for thread in threads:
            thread.join()
    return min(MOST_RATE, sum(counts) / CALIBRATION_S / 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1_800.0, help="default: %(default)g")
    parser.add_argument("--rate", type=float, help="live requests a second (default: half of what is measured first)")
    parser.add_argument("--out", type=Path, help="directory for soak.md, soak.json and soak.png")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
