"""`python -m tests.e2e.chaos`: causes faults to the real pipeline under load, and prints what came of each.

The exit status is 1 if an accepted row of feedback was lost, an answer was wrong or no clear refusal, the operator was
not told, or something did not come right again by itself.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from tests.e2e.chaos import surroundings
from tests.e2e.chaos.fault import Fault, Result, observe
from tests.e2e.chaos.faults import postgres, processes, triton, versions
from tests.e2e.chaos.faults import surroundings as surrounding_faults
from tests.e2e.chaos.table import markdown, outcome_of
from tests.e2e.chaos.target import Target, running_target
from tests.storage.conftest import find_postgres

FAULTS = [*triton.FAULTS, *versions.FAULTS, *surrounding_faults.FAULTS, *processes.FAULTS]


def main(arguments: list[str]) -> int:
    """Run the faults; returns the exit status."""
    options = _parser().parse_args(arguments)
    surroundings.enter_namespace(arguments)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.basicConfig(level=logging.ERROR)
    binaries = find_postgres()
    on_postgres = postgres.FAULTS if binaries is not None else []
    if options.list:
        for fault in [*FAULTS, *on_postgres]:
            print(f"{fault.name:24}{fault.does}")
        return 0
    known = {fault.name for fault in [*FAULTS, *on_postgres]}
    wanted = set(options.only or known)
    for name in sorted(wanted - known):
        print(f"error: there is no fault {name!r} here; --list shows what there is", file=sys.stderr)
        return 2
    results: list[Result] = []
    began = time.monotonic()
    if not surroundings.has_own_mounts():
        print("There can be no mounts of its own here, so the faults of full disks are left out.")
    if binaries is None:
        print("No PostgreSQL server is installed, so its faults are left out.")
    logs = []
    for target, faults in _stages(wanted, binaries):
        for fault in faults:
            results.append(observe(fault, target))
            print(f"{time.monotonic() - began:6.0f} s  {outcome_of(results[-1])}", flush=True)
        logs.append(target.served.log)
    table = markdown(results)
    print(f"\n{table}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "faults.md").write_text(table, encoding="utf-8")
        content = json.dumps([result.as_json() for result in results], indent=2)
        (options.out / "faults.json").write_text(content, encoding="utf-8")
        (options.out / "serve.log").write_text("\n".join(logs), encoding="utf-8")
    return int(any(result.problems for result in results))


def _stages(wanted: set[str], binaries: Path | None) -> Iterator[tuple[Target, list[Fault]]]:
    """The running pipelines, and what is done to each."""
    chosen = [fault for fault in FAULTS if fault.name in wanted]
    if chosen:
        with _directory() as directory, running_target(directory) as target:
            yield target, chosen
    chosen = [fault for fault in postgres.FAULTS if fault.name in wanted]
    if chosen and binaries is not None:
        with (
            postgres.running_postgres(binaries) as server,
            _directory() as directory,
            running_target(directory, SENTIMENT_DATABASE_URL=f"{server.url}/postgres") as target,
        ):
            target.postgres = server
            yield target, chosen


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sentiment-chaos-", ignore_cleanup_errors=True) as directory:
        try:
            yield Path(directory)
        finally:
            surroundings.unmount_small_disks()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.chaos", description=__doc__)
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="FAULT,…", help="some of the faults")
    parser.add_argument("--list", action="store_true", help="show the faults")
    parser.add_argument("--out", type=Path, help="directory for faults.md, faults.json and the pipeline's log")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
