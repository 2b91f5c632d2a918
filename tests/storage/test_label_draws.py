"""Texts drawn for people to label: one series in random order, kept for one person at a time."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from sqlalchemy import update

from storage.database import Database, now
from storage.feedback import LabelledText, add_feedback, text_hash
from storage.label_draws import HELD, Series, begin_series, hand_out, purge_series, read_series, skip
from storage.sampled_predictions import newest_sample
from storage.tables import LabelDraw
from storage.withdrawal import withdraw_source
from tests.sampled_texts import asked, unlike

TRUSTED = "console"


def begun(database: Database, texts: Sequence[str], version: int = 1) -> Series:
    asked(database, texts, version=version)
    begin_series(database, version, newest_sample(database, len(texts), version=version))
    series = read_series(database, TRUSTED)
    assert series is not None
    return series


def hashes(texts: Sequence[str]) -> list[str]:
    return [text_hash(text) for text in texts]


def test_a_series_has_each_row_once_in_random_order(database: Database) -> None:
    assert read_series(database, TRUSTED) is None
    texts = unlike(200)
    series = begun(database, texts)
    assert series.version == 1
    assert series.since <= series.until <= series.began_at
    drawn = [draw.text for draw in series.draws]
    assert sorted(drawn) == sorted(texts)
    assert drawn != texts
    early = sum(text in texts[:100] for text in drawn[:100])
    assert 32 <= early <= 68, "five standard deviations of a random order"
    again = read_series(database, TRUSTED)
    assert again == series, "the order is stored"


def test_the_newest_trusted_label_of_a_text_counts_until_it_is_withdrawn(database: Database) -> None:
    texts = unlike(3)
    begun(database, [*texts, texts[0]])
    add_feedback(database, [LabelledText(texts[0].upper(), "Positive")], "console:anna")
    add_feedback(database, [LabelledText(texts[1], "Positive")], "console:anna")
    add_feedback(database, [LabelledText(texts[1], "Negative")], "console:ben")
    add_feedback(database, [LabelledText(texts[1], "Positive")], "anonymous")
    add_feedback(database, [LabelledText(texts[2], "Positive")], "key:program")

    def labels() -> set[tuple[str, str | None]]:
        series = read_series(database, TRUSTED)
        assert series is not None
        assert len(series.draws) == 4
        return {(draw.text, draw.label) for draw in series.draws}

    assert labels() == {(texts[0], "Positive"), (texts[1], "Negative"), (texts[2], None)}
    withdraw_source(database, "console:ben", erase=False, reason="by a test")
    assert labels() == {(texts[0], "Positive"), (texts[1], "Positive"), (texts[2], None)}


def test_people_at_the_same_moment_get_different_texts_for_a_while(database: Database) -> None:
    wanted = [draw.text_hash for draw in begun(database, unlike(40)).draws]
    names = [f"console:{number}" for number in range(4)]
    with ThreadPoolExecutor(4) as people:
        got = list(people.map(lambda name: hand_out(database, wanted, name, 10), names))
    assert sorted(len(hashes) for hashes in got) == [10] * 4
    assert set[str]().union(*got) == set(wanted)
    assert hand_out(database, wanted, names[0], 10) == got[0], "the same person gets the same texts again"
    assert hand_out(database, wanted, "console:late", 10) == set()
    with database.transaction() as session:
        session.execute(update(LabelDraw).values(held_until=now(session) - timedelta(seconds=1)))
    assert hand_out(database, wanted, "console:late", 10) == set(wanted[:10])
    assert timedelta(minutes=1) < HELD < timedelta(hours=1)


def test_a_text_that_was_sent_often_is_handed_out_once_and_skipped_everywhere(database: Database) -> None:
    often, once = unlike(2)
    begun(database, [often, often, often, once])
    assert hand_out(database, hashes([often, once]), "console:anna", 2) == set(hashes([often, once]))
    assert hand_out(database, hashes([often, once]), "console:ben", 2) == set()
    assert skip(database, text_hash(often))
    assert not skip(database, text_hash("a text that nobody sent"))
    series = read_series(database, TRUSTED)
    assert series is not None
    assert sorted(draw.is_open for draw in series.draws) == [False, False, False, True]


def test_two_processes_that_begin_a_series_leave_one(database: Database) -> None:
    asked(database, unlike(50))
    asked(database, unlike(30, "other"), version=2)
    rows = {version: newest_sample(database, 100, version=version) for version in (1, 2)}
    with ThreadPoolExecutor(4) as processes:
        list(processes.map(lambda version: begin_series(database, version, rows[version]), [1, 2] * 4))
    series = read_series(database, TRUSTED)
    assert series is not None
    assert len(series.draws) == len(rows[series.version])


def test_old_series_go_and_all_where_texts_are_not_kept(database: Database) -> None:
    begun(database, unlike(5))
    purge_series(database, days=1, keeps_texts=True)
    assert read_series(database, TRUSTED) is not None
    with database.transaction() as session:
        session.execute(update(LabelDraw).values(drawn_at=now(session) - timedelta(days=2)))
    purge_series(database, days=3, keeps_texts=True)
    assert read_series(database, TRUSTED) is not None
    purge_series(database, days=1, keeps_texts=True)
    assert read_series(database, TRUSTED) is None
    begun(database, unlike(5))
    purge_series(database, days=1, keeps_texts=False)
    assert read_series(database, TRUSTED) is None
