"""A process that lost the right to deploy switches nothing. One that cannot release it has deployed all the same."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from lifecycle.deployment import promotion, rollout
from lifecycle.deployment.promotion import DeploymentError
from storage import deployments, leases
from storage.database import Database
from tests.lifecycle.conftest import Served, hollow_bundle, make_served, reconciled


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """Versions 1 and 2; no Triton runs."""
    return make_served(tmp_path, hollow_bundle(tmp_path), 2)


@pytest.fixture
def database(served: Served) -> Iterator[Database]:
    with reconciled(served) as opened:
        yield opened


def fail(*_: object) -> None:
    raise OperationalError("statement", {}, Exception("the database has gone away"))


def test_a_promotion_whose_lease_is_lost_switches_nothing(
    served: Served, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "LEASE_S", 0.4)

    async def load_for_long(_rollout: object) -> None:
        monkeypatch.setattr(leases, "take", fail)
        await asyncio.sleep(2)

    monkeypatch.setattr(rollout._Rollout, "_prepare", load_for_long)
    with pytest.raises(DeploymentError, match="The right to deploy was lost"):
        promotion.promote(served.settings, database, 2, "by the test")
    assert served.repository.deployed() == 1
    with database.reading() as session:
        assert deployments.intended(session) == []


def test_a_promotion_is_done_even_if_its_lease_cannot_be_released(
    served: Served, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "give_back", fail)
    promotion.promote(served.settings, database, 2, "by the test")
    assert served.repository.deployed() == 2
