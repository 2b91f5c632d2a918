"""Promotions in a row, under load: none costs a request, and none leaves memory behind."""

import re
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import wait_for
from tests.lifecycle.conftest import Served, make_served, serving
from tests.lifecycle.deployment.test_promotion import Load

pytestmark = pytest.mark.full

PROMOTIONS = 20
SETTLED_AFTER = 5
LARGEST_GROWTH = 1.10


def memory_bytes(served: Served) -> int:
    assert served.process is not None
    root = psutil.Process(served.process.pid)
    # Not the processes that come and go, such as the one that tells MLflow.
    triton = next(child for child in root.children() if child.name() == "tritonserver")
    # The version before ends a moment after it has been replaced.
    wait_for(lambda: len(triton.children(recursive=True)) == 1, 30, "one version to be loaded")
    return sum(anonymous_bytes(process.pid) for process in [root, triton, *triton.children(recursive=True)])


def anonymous_bytes(process_id: int) -> int:
    """Return what a process has allocated; its libraries count or not, as other processes use the same files."""
    status = Path(f"/proc/{process_id}/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+) kB", status)[1])  # type: ignore[index]


def test_twenty_promotions_in_a_row(tmp_path: Path, bert_bundle: Path) -> None:
    with serving(make_served(tmp_path, bert_bundle, versions=2)) as served, Load(served.url, callers=4) as load:
        settled = 0
        for number in range(1, PROMOTIONS + 1):
            version = 1 + number % 2
            assert served.ask("POST", f"/models/{version}/promote").json() == {"version": version}
            assert served.version() == version
            if number == SETTLED_AFTER:
                settled = memory_bytes(served)
        grown = memory_bytes(served)
    assert set(load.statuses) == {200}
    assert grown <= LARGEST_GROWTH * settled
