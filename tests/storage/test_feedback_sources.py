"""Sources of feedback: bounds, quarantine, withdrawal, idempotency keys of a caller, databases of older releases."""

import hashlib
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from common.errors import PipelineError
from common.settings import Settings
from common.source_names import is_trusted
from storage import events, withdrawal
from storage.database import _MIGRATIONS, Database, _engine
from storage.events import EventKind
from storage.feedback import (
    KeyUsedError,
    LabelledText,
    add_feedback,
    is_held_out,
    labelled_among,
    newest_feedback,
    newest_of_others,
    newest_rows,
    purge_keys,
    text_hash,
)
from storage.feedback_sources import FullError, Quota, QuotaError, list_sources, quarantine, release, size_of
from storage.tables import Feedback, FeedbackSource, IdempotencyKey

TRUSTED = Settings().trusted_sources
WIDE = Quota(TRUSTED, 1_000_000, 2**30)
KEY = "key:website"


def rows(count: int, start: int = 0, words: str = "text") -> list[LabelledText]:
    return [LabelledText(f"{words} {number}", "Positive") for number in range(start, start + count)]


def counted(database: Database, source: str) -> tuple[int, int]:
    return next((item["rows"], item["bytes"]) for item in list_sources(database, TRUSTED) if item["source"] == source)


def stored(database: Database) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count(Feedback.id))) or 0


@pytest.mark.parametrize(
    ("source", "trusted", "expected"),
    [
        ("admin", TRUSTED, True),
        ("console:anna", TRUSTED, True),
        ("import:labels.csv", TRUSTED, True),
        ("legacy:api", TRUSTED, True),
        ("key:website", TRUSTED, False),
        ("anonymous", TRUSTED, False),
        ("key:website", "admin,key:website", True),
        ("key:website2", "admin,key:website", False),
        ("key:admin", TRUSTED, False),
        ("console:anna", "console:bob", False),
        ("admin", "", False),
    ],
)
def test_sources_are_trusted_by_kind_or_by_name_in_python_and_in_sql(
    database: Database, source: str, trusted: str, expected: bool
) -> None:
    assert is_trusted(source, trusted) is expected
    add_feedback(database, rows(40), source)
    found = [newest_feedback(database, held_out, trusted) for held_out in (False, True)]
    assert [bool(part) for part in found] == [expected, expected]
    assert bool(newest_of_others(database, trusted)) is not expected


@pytest.mark.parametrize("trusted", ["keys", "admin;console", "key:a:b", "key: ", "website"])
def test_a_setting_that_names_no_source_is_refused(trusted: str) -> None:
    with pytest.raises(ValueError, match="is no source"):
        Settings(trusted_sources=trusted)


def test_a_clock_that_is_set_back_shuts_no_source_out(database: Database) -> None:
    """Else the day would begin when the clock is again where it was."""
    quota = Quota(TRUSTED, 1_000, 2**30)
    add_feedback(database, rows(10), KEY, quota=quota)
    with database.transaction() as session:
        session.scalars(select(FeedbackSource).where(FeedbackSource.name == KEY)).one().day += timedelta(days=365)
    add_feedback(database, rows(10), KEY, quota=quota)
    with pytest.raises(QuotaError, match="within a day") as refused:
        add_feedback(database, rows(1), KEY, quota=quota)
    assert refused.value.retry_after_s <= 86_400


def test_one_source_that_is_not_trusted_can_store_a_tenth_and_a_hundredth_a_day(database: Database) -> None:
    quota = Quota(TRUSTED, 1_000, 2**30)
    add_feedback(database, rows(10), KEY, quota=quota)
    with pytest.raises(QuotaError, match=r"10 rows of feedback within a day.*can send 10,") as refused:
        add_feedback(database, rows(1, 10), KEY, quota=quota)
    assert 86_000 < refused.value.retry_after_s <= 86_400
    add_feedback(database, rows(10), "key:other", quota=quota)
    add_feedback(database, rows(500), "admin", quota=quota)
    for _ in range(9):
        with database.transaction() as session:
            source = session.scalars(select(FeedbackSource).where(FeedbackSource.name == KEY)).one()
            source.day -= timedelta(days=1)
        add_feedback(database, rows(10), KEY, quota=quota)
    with database.transaction() as session:
        session.scalars(select(FeedbackSource).where(FeedbackSource.name == KEY)).one().day -= timedelta(days=1)
    with pytest.raises(QuotaError, match="has stored 100 rows"):
        add_feedback(database, rows(1), KEY, quota=quota)
    assert stored(database) == 610


def test_all_sources_together_are_bounded_and_refused_rows_are_not_stored(database: Database) -> None:
    add_feedback(database, rows(20), "admin", quota=Quota(TRUSTED, 30, 2**30))
    with pytest.raises(FullError, match="SENTIMENT_FEEDBACK_ROWS=30"):
        add_feedback(database, rows(11), "admin", quota=Quota(TRUSTED, 30, 2**30))
    assert (stored(database), counted(database, "admin")[0]) == (20, 20)
    size = size_of("a" * 2**20)
    long = [LabelledText("a" * 2**20, "Positive")]
    with pytest.raises(FullError, match="SENTIMENT_FEEDBACK_MIB=1 "):
        add_feedback(database, long, "admin", quota=Quota(TRUSTED, 1_000, 2**20))
    add_feedback(database, long, "admin", quota=Quota(TRUSTED, 1_000, 2 * size))
    assert counted(database, "admin") == (21, sum(size_of(row.text) for row in rows(20)) + size)


def test_a_disk_that_is_nearly_full_takes_no_more_feedback(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(2**40, 2**40 - 2**28, 2**28))
    if database.engine.dialect.name != "sqlite":  # whose disk is another machine's
        add_feedback(database, rows(1), "admin", quota=WIDE)
        return
    with pytest.raises(FullError, match="256 MiB free; feedback is stored only while 500 MiB are"):
        add_feedback(database, rows(1), "admin", quota=WIDE)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(2**30, 2**29, 2**28))
    add_feedback(database, rows(1), "admin", quota=WIDE)


def test_a_source_in_quarantine_counts_for_nothing_until_it_is_released(database: Database) -> None:
    add_feedback(database, rows(40), KEY)
    hashes = [text_hash(row.text) for row in rows(40)]
    quarantine(database, KEY, "9 of 10 labels contradict")
    assert newest_of_others(database, TRUSTED) == []
    assert newest_feedback(database, False, "key") == newest_feedback(database, True, "key") == []
    assert labelled_among(database, hashes) == set()
    (event,) = events.newest(database, 1)
    assert (event.kind, event.figures["source"]) == (EventKind.SOURCE_QUARANTINED, KEY)
    assert "9 of 10 labels contradict" in event.message
    (mail,) = events.due_mails(database)
    assert KEY in mail.subject
    quarantine(database, KEY, "again")
    assert len(events.due_mails(database)) == 1, "it is told once"
    release(database, KEY, "by the test")
    assert len(newest_of_others(database, TRUSTED)) == 40
    with pytest.raises(PipelineError, match="is not in quarantine"):
        release(database, KEY, "by the test")
    for change in (quarantine, release):
        with pytest.raises(PipelineError, match="no source 'key:nobody'"):
            change(database, "key:nobody", "by the test")


@pytest.mark.parametrize("erase", [False, True])
def test_what_is_withdrawn_is_never_used_again_and_can_be_erased(database: Database, erase: bool) -> None:
    add_feedback(database, [LabelledText("Text 1", "Negative")], "admin")
    (one, *_) = add_feedback(database, [LabelledText("text  1", "Positive")], "import:more.csv")
    held_out = is_held_out(text_hash("text 1"))

    def label() -> list[str]:
        return [row.label for row in newest_feedback(database, held_out, TRUSTED)]

    assert label() == ["Positive"]
    assert withdrawal.withdraw_row(database, one, erase, "by the test") == 1
    assert label() == ["Negative"], "the label before counts again"
    assert withdrawal.withdraw_row(database, one, erase, "by the test") == 0
    assert withdrawal.withdraw_source(database, "admin", erase, "by the test") == 1
    assert label() == []
    assert [row["text"] for row in newest_rows(database, 10)] == (["", ""] if erase else ["text  1", "Text 1"])
    assert all(row["withdrawn_at"] for row in newest_rows(database, 10))
    assert counted(database, "admin") == (0, 0 if erase else size_of("Text 1"))
    assert [event.kind for event in events.newest(database, 10)] == [EventKind.FEEDBACK_WITHDRAWN] * 2
    for nothing in (lambda: withdrawal.withdraw_row(database, 99, erase, ""), lambda: release(database, "key:x", "")):
        with pytest.raises(PipelineError):
            nothing()


def test_what_was_withdrawn_before_can_still_be_erased(database: Database) -> None:
    add_feedback(database, rows(3), KEY)
    assert withdrawal.withdraw_row(database, newest_rows(database, 1)[0]["id"], False, "by the test") == 1
    assert counted(database, KEY)[0] == 2, "the others are used"
    assert withdrawal.withdraw_source(database, KEY, False, "by the test") == 2
    first = newest_rows(database, 1)[0]["withdrawn_at"]
    assert withdrawal.withdraw_source(database, KEY, True, "by the test") == 3
    assert newest_rows(database, 1)[0]["withdrawn_at"] == first
    assert counted(database, KEY) == (0, 0)


def test_a_key_is_its_callers_own_and_is_forgotten_after_a_week(database: Database) -> None:
    assert add_feedback(database, rows(1), KEY, "1")
    assert add_feedback(database, rows(1, 5), "key:other", "1")
    assert add_feedback(database, rows(1, 6), "anonymous", "1", caller="anonymous 10.0.0.1")
    assert add_feedback(database, rows(1, 7), "anonymous", "1", caller="anonymous 10.0.0.2")
    assert add_feedback(database, rows(1), KEY, "1") == []
    with pytest.raises(KeyUsedError):
        add_feedback(database, rows(2), KEY, "1")
    with database.transaction() as session:
        for key in session.scalars(select(IdempotencyKey).where(IdempotencyKey.caller == KEY)):
            key.created_at -= timedelta(days=7, seconds=1)
    purge_keys(database)
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(IdempotencyKey)) == 3
    assert add_feedback(database, rows(2), KEY, "1")


def test_feedback_of_an_older_release_stays_trusted_and_its_keys_are_known(empty_database_url: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    engine = _engine(empty_database_url, lambda: 15.0)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        for number, source in enumerate(("api", "console", "more.csv")):
            connection.execute(
                text(
                    "INSERT INTO feedback (text, text_hash, label, held_out, source, received_at) "
                    "VALUES (:text, :hash, 'Positive', :held_out, :source, '2026-01-01 00:00:00')"
                ),
                {"text": f"t {number}", "hash": text_hash(f"t {number}"), "held_out": False, "source": source},
            )
        connection.execute(
            text("INSERT INTO idempotency_keys VALUES ('old', :hash, '2026-01-01 00:00:00')"), {"hash": _content()}
        )
    engine.dispose()
    database = Database(empty_database_url)
    assert [row.source for row in newest_feedback(database, False, TRUSTED)] == [
        "legacy:api",
        "console:legacy",
        "import:more.csv",
    ]
    assert {item["source"]: item["rows"] for item in list_sources(database, TRUSTED)} == {
        "legacy:api": 1,
        "console:legacy": 1,
        "import:more.csv": 1,
    }
    assert add_feedback(database, rows(1), KEY, "old") == [], "the same request, sent again after the update"
    assert add_feedback(database, rows(2), KEY, "old"), "the key was another caller's"
    database.close()


def _content() -> str:
    return hashlib.sha256(repr([(row.text, row.label) for row in rows(1)]).encode()).hexdigest()


def test_many_at_once_are_counted_right(database: Database) -> None:
    def send(number: int) -> int:
        with suppress(SQLAlchemyError):
            return len(add_feedback(database, rows(5, 5 * number), KEY, quota=WIDE))
        return 0

    with ThreadPoolExecutor(8) as pool:
        sent = sum(pool.map(send, range(16)))
    assert counted(database, KEY)[0] == stored(database) == sent > 0
