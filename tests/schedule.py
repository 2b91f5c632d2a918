"""Gives the modules of tests to the processes of pytest-xdist, and goes on when one of these dies.

Conftest imports the hooks; it works as a plugin, too: `pytest -n 2 -p tests.schedule`.
"""

import subprocess
from contextlib import suppress
from typing import Any

import pytest

from tests.pages import ORDERED

INDEPENDENT = {
    "tests/lifecycle/canary/test_release.py",
    "tests/lifecycle/deployment/test_promotion.py",
    "tests/lifecycle/deployment/test_votes.py",
    "tests/lifecycle/jobs/test_retrain.py",
}
"""Modules whose tests take minutes and share little: each test goes to the process that is free next."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return nodeid if module in INDEPENDENT else ORDERED[0] if module in ORDERED else module

        # pytest-xdist 3.8 gives the units of a dead process to others, with the tests that have ended. A process that
        # gets a unit without a test, or with one, never asks for the next, and the run does not end.

        def remove_node(self, node: Any) -> str | None:
            units = self.assigned_work[node]
            running: str | None = next((test for unit in units.values() for test in unit if not unit[test]), None)
            left = {
                scope: {test: False for test, ended in unit.items() if not ended and test != running}
                for scope, unit in units.items()
            }
            self.assigned_work[node] = {scope: unit for scope, unit in left.items() if unit}
            super().remove_node(node)
            return running

        def _reschedule(self, node: Any) -> None:
            super()._reschedule(node)
            while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
                super()._reschedule(node)

    return ByModule(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Say how a process of tests died: a negative status is a signal. One that Ctrl-C interrupted may live on."""
    if not error:
        return
    with suppress(subprocess.TimeoutExpired):
        status = node.gateway._io.popen.wait(timeout=5)
        print(f"\nThe process {node.gateway.id} of the tests ended with the status {status}.", flush=True)
