"""A Ray cluster of two nodes does the same work, also when it loses one of them."""

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import wait_for
from tests.scoring.conftest import Desk, read_rows, rows_of, write_rows

pytest.importorskip("ray", reason='Ray is not installed: pip install "ray[data]"')
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore")]

ROWS = 60_000
_SMALL = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=_SMALL)
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def test_two_nodes_and_one_is_lost(cluster: Any, desk: Desk) -> None:
    rows = rows_of(ROWS)
    write_rows(desk.folder / "in.csv", rows)
    with (desk.folder / "told").open("w") as told:
        process = subprocess.Popen(
            desk.command("in.csv", "--out", "out.csv", "--ray", cluster.address),
            cwd=desk.folder,
            env=desk.environment,
            stderr=told,
        )
    try:
        parts = desk.folder / "out.csv.partial"

        def has_begun() -> bool:
            assert process.poll() is None, (desk.folder / "told").read_text()
            return len(list(parts.glob("*.parquet"))) >= 3

        wait_for(has_begun, 180, "the first parts")
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        assert process.wait(200) == 0, (desk.folder / "told").read_text()
    finally:
        process.kill()
        process.wait()
    found = read_rows(desk.folder / "out.csv")
    assert [row["id"] for row in found] == list(range(ROWS))
    assert found[:500] == desk.scored(rows[:500])
    assert found[-500:] == desk.scored(rows[-500:])


def test_without_a_cluster_it_says_so(desk: Desk) -> None:
    write_rows(desk.folder / "in.csv", rows_of(10))
    told = desk.refused("in.csv", "--out", "out.csv", "--ray", "127.0.0.1:1")
    assert "No Ray cluster answers at 127.0.0.1:1" in told
