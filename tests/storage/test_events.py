"""Events and the outbox: what is told is what happened, and a mail that cannot be sent waits longer and longer."""

from datetime import timedelta

import pytest
from sqlalchemy import update

from storage import events
from storage.database import Database, now
from storage.events import FIRST_PAUSE_S, LONGEST_PAUSE_S, EventKind
from storage.tables import Mail


def _record(database: Database, kind: EventKind = EventKind.STALE, message: str = "something") -> int:
    with database.transaction() as session:
        return events.record(session, kind, message).id


def _mail(database: Database, event_id: int) -> Mail:
    with database.reading() as session:
        return session.get_one(Mail, event_id)


def test_an_event_and_its_mail_are_kept_or_undone_together(database: Database) -> None:
    def record_and_fail() -> None:
        with database.transaction() as session:
            events.record(session, EventKind.STALE, "never happened")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        record_and_fail()
    assert events.newest(database, 10) == []
    assert events.due_mails(database) == []
    event_id = _record(database)
    assert [event.id for event in events.newest(database, 10)] == [event_id]
    assert [mail.event_id for mail in events.due_mails(database)] == [event_id]


def test_people_get_mails_only_of_what_they_should_know(database: Database) -> None:
    for kind in EventKind:
        _record(database, kind, kind.value)
    assert {mail.subject for mail in events.due_mails(database)} == {
        "source-quarantined",
        "stale",
        "estimated-low",
        "drift",
        "data-unfit",
        "retraining-started",
        "candidate-rejected",
        "promoted",
        "promotion-failed",
        "suspected",
        "rolled-back",
        "job-failed",
        "canary-started",
        "release-held",
        "taken-back",
        "digest",
    }
    assert len(events.newest(database, 100)) == len(EventKind)


def test_a_mail_tells_the_message_and_the_figures(database: Database) -> None:
    figures = {
        "accuracy": 0.91234,
        "before": {"macro_f1": 0.5, "texts": 1305.0, "rows": 2305},
        "worst": ["short", 0.25],
    }
    with database.transaction() as session:
        event = events.record(session, EventKind.STALE, "It is stale: how.\nAnd why.", figures, version=3)
    (mail,) = events.due_mails(database)
    assert mail.subject == "It is stale: how."
    assert mail.body.split("\n") == [
        "It is stale: how.",
        "And why.",
        "",
        f"When: {event.at:%Y-%m-%d %H:%M:%S} UTC",
        "Version: 3",
        "accuracy: 0.9123",
        "before: macro_f1 0.5000, texts 1,305, rows 2,305",
        "worst: short; 0.2500",
    ]


def test_texts_are_in_the_mail_and_not_in_the_event(database: Database) -> None:
    flips = {"negative flips": 1, "examples": [{"text": "A fine phone.", "right": "Positive"}]}
    with database.transaction() as session:
        events.record(session, EventKind.PROMOTED, "Promoted.", {"flips": flips, "before": 0.5})
    (event,), (mail,) = events.newest(database, 1), events.due_mails(database)
    assert event.figures == {"flips": {"negative flips": 1}, "before": 0.5}
    assert "flips: negative flips 1, examples text A fine phone., right Positive" in mail.body


def test_a_mail_is_tried_again_after_pauses_that_double_up_to_the_longest(database: Database) -> None:
    event_id = _record(database)
    pauses = [events.mark_unsent(database, event_id, f"failure {number}") for number in range(11)]
    assert pauses == [*(FIRST_PAUSE_S * 2**number for number in range(9)), LONGEST_PAUSE_S, LONGEST_PAUSE_S]
    mail = _mail(database, event_id)
    assert (mail.attempts, mail.last_error, mail.sent_at) == (11, "failure 10", None)
    with database.reading() as session:
        assert (mail.next_attempt_at - now(session)).total_seconds() == pytest.approx(LONGEST_PAUSE_S, abs=5)
    # Nobody can be reached for months.
    with database.transaction() as session:
        session.execute(update(Mail).values(attempts=5_000))
    assert events.mark_unsent(database, event_id, "still not") == LONGEST_PAUSE_S


def test_mails_that_wait_are_told_oldest_first_until_they_are_sent(database: Database) -> None:
    first, second, third = (_record(database) for _ in range(3))
    assert [mail.event_id for mail in events.due_mails(database)] == [first, second, third]
    events.mark_delivered(database, first, ["one way"])
    events.mark_delivered(database, first, ["another"])
    assert _mail(database, first).delivered == ["one way", "another"]
    events.mark_sent(database, first)
    events.mark_unsent(database, second, "no")
    assert [mail.event_id for mail in events.due_mails(database)] == [third]
    events.drop_mails(database)
    with database.transaction() as session:
        session.execute(update(Mail).values(next_attempt_at=now(session)))
    assert events.due_mails(database) == []
    assert _mail(database, first).sent_at is not None


def test_a_mail_does_not_wait_until_a_clock_that_was_set_back_is_where_it_was(database: Database) -> None:
    event_id = _record(database)
    for _ in range(10):
        events.mark_unsent(database, event_id, "no")
    assert events.due_mails(database) == []
    with database.transaction() as session:
        session.execute(update(Mail).values(next_attempt_at=now(session) + timedelta(days=365)))
    assert [mail.event_id for mail in events.due_mails(database)] == [event_id]


def test_the_newest_events_are_told_page_by_page_and_by_kind(database: Database) -> None:
    ids = [_record(database, kind) for kind in (EventKind.CHECKED, EventKind.STALE) * 3]
    assert [event.id for event in events.newest(database, 2)] == [ids[5], ids[4]]
    assert [event.id for event in events.newest(database, 3, before=ids[4])] == [ids[3], ids[2], ids[1]]
    assert [event.id for event in events.newest(database, 2, "checked")] == [ids[4], ids[2]]
    assert [event.id for event in events.newest(database, 9, "checked", before=ids[2])] == [ids[0]]
    assert events.newest(database, 9, "no such kind") == []
