"""Counts of predictions by hour: sums over all gateways, for some weeks."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest

from storage import traffic
from storage.database import Database, now
from storage.tables import Traffic
from storage.traffic import KEPT, Counts, add_traffic, traffic_since


def hour(database: Database, ago: timedelta = timedelta()) -> datetime:
    with database.reading() as session:
        return (now(session) - ago).replace(minute=0, second=0, microsecond=0)


def test_what_several_gateways_answer_is_added_up(database: Database) -> None:
    assert traffic_since(database, hour(database)) is None
    with ThreadPoolExecutor(4) as gateways:
        list(gateways.map(lambda _: add_traffic(database, Counts(3, 1, 20)), range(8)))
    assert traffic_since(database, hour(database, timedelta(hours=1))) == Counts(24, 8, 160)


def test_a_gateway_that_comes_second_to_begin_the_hour_adds_to_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_traffic(database, Counts(3, 1, 20))
    real_add, tries = traffic._add, []

    def blind_once(database: Database, counts: Counts) -> None:
        tries.append(counts)
        if len(tries) == 1:
            with database.transaction() as session:  # as if the hour had not been there yet
                session.add(Traffic(hour=hour(database), **counts._asdict()))
        real_add(database, counts)

    monkeypatch.setattr(traffic, "_add", blind_once)
    add_traffic(database, Counts(1, 0, 1))
    assert len(tries) == 2
    assert traffic_since(database, hour(database)) == Counts(4, 1, 21)


def test_hours_before_a_time_do_not_count_and_old_ones_go(database: Database) -> None:
    with database.transaction() as session:
        for ago in (timedelta(hours=5), KEPT + timedelta(hours=2)):
            session.add(Traffic(hour=hour(database, ago), requests=100, failed=0, texts=100))
    add_traffic(database, Counts(1, 0, 2))
    assert traffic_since(database, hour(database, timedelta(hours=2))) == Counts(1, 0, 2)
    assert traffic_since(database, hour(database, 2 * KEPT)) == Counts(101, 0, 102)
