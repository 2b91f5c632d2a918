"""Releases: one at a time, sums of what gateways found, and what another version's deployment means for them."""

import pytest
from sqlalchemy.exc import IntegrityError

from storage import events, releases
from storage.database import Database
from storage.feedback import LabelledText, add_feedback
from storage.releases import CANARY, SHADOW, DifferingText
from storage.tables import Release


def begin(database: Database, version: int = 2) -> int:
    with database.transaction() as session:
        return releases.begin(session, version, 1, CANARY, [0.05, 0.5], "by the test").id


def last(database: Database) -> Release:
    with database.reading() as session:
        found = releases.last(session)
    assert found is not None
    return found


def differing(number: int) -> DifferingText:
    return DifferingText(f"text {number}", ("Positive", 0.9), ("Negative", 0.8))


def test_one_is_tried_at_a_time(database: Database) -> None:
    begin(database)
    with pytest.raises(IntegrityError):
        begin(database, 3)
    with database.transaction() as session:
        release = releases.running(session)
        assert release is not None
        assert releases.share_of(release) == 0.05
        releases.end(session, release, releases.STOPPED, "by the test")
    assert releases.share_of(last(database)) == 0
    begin(database, 3)
    assert last(database).version == 3


@pytest.mark.parametrize(
    ("deployed", "state", "kinds"),
    [
        (1, releases.RUNNING, []),
        (2, releases.PROMOTED, []),
        (3, releases.STOPPED, ["release-stopped"]),
    ],
)
def test_another_version_that_serves_ends_it(database: Database, deployed: int, state: str, kinds: list[str]) -> None:
    begin(database)
    with database.transaction() as session:
        releases.follow(session, deployed)
    assert last(database).state == state
    assert [event.kind for event in events.newest(database, 10)] == kinds


def test_findings_of_all_gateways_are_summed_and_an_answer_ends_failures_in_a_row(database: Database) -> None:
    release = begin(database)
    part = {"texts": 10, "differ": 1}
    for found in (
        {"failed": 3, "failed_in_a_row": 3},
        {"failed": 2, "failed_in_a_row": 2, "parts": {"all": part}},
    ):
        releases.add_findings(database, release, found, [], True)
    assert last(database).figures == {"failed": 5, "failed_in_a_row": 5, "parts": {"all": part}}
    releases.add_findings(database, release, {"answered": 4, "parts": {"all": part}}, [], True)
    assert last(database).figures == {
        "failed": 5,
        "failed_in_a_row": 0,
        "answered": 4,
        "parts": {"all": {"texts": 20, "differ": 2}},
    }


def test_findings_are_given_up_before_the_commit_and_only_if_it_can_follow(database: Database) -> None:
    """A commit whose outcome is unknown may have stored them, so they must not be stored again."""
    release = begin(database)
    seen: list[object] = []
    releases.add_findings(
        database, release, {"answered": 1}, [], True, before_commit=lambda: seen.append(last(database).figures)
    )
    assert seen == [{}]
    broken: list[DifferingText] = [None]  # type: ignore[list-item]
    with pytest.raises(AttributeError):
        releases.add_findings(database, release, {"answered": 1}, broken, True, before_commit=lambda: seen.append("no"))
    assert seen == [{}]
    assert last(database).figures == {"answered": 1, "failed_in_a_row": 0}


def test_what_comes_after_the_end_is_passed_over(database: Database) -> None:
    release = begin(database)
    with database.transaction() as session:
        releases.follow(session, 2)
    releases.add_findings(database, release, {"answered": 4}, [differing(1)], True)
    assert last(database).figures == {}
    assert releases.differences(database, release, 10) == []


def test_the_newest_differences_are_kept(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "MOST_DIFFERENCES", 5)
    release = begin(database)
    for start in (0, 4):
        found = [differing(number) for number in range(start, start + 4)]
        releases.add_findings(database, release, {"answered": 4}, found, True)
    kept = [item.text for item in releases.differences(database, release, 10)]
    assert kept == [f"text {number}" for number in (7, 6, 5, 4, 3)]
    releases.purge_differences(database, 1, keeps_texts=False)
    assert [item.text for item in releases.differences(database, release, 10)] == [None] * 5
    releases.purge_differences(database, 0, keeps_texts=False)
    assert releases.differences(database, release, 10) == []


def test_feedback_tells_which_version_is_right_by_the_newest_label_of_a_text(database: Database) -> None:
    release = begin(database)
    releases.add_findings(database, release, {}, [differing(number) for number in (1, 2, 3, 4, 4)], True)
    for number, label in ((1, "Positive"), (2, "Negative"), (4, "Negative"), (4, "Positive"), (9, "Positive")):
        add_feedback(database, [LabelledText(f"Text  {number}", label)], "admin")
    add_feedback(database, [LabelledText("text 3", "Positive"), LabelledText("text 1", "Negative")], "key:other")
    with database.reading() as session:
        assert releases.right_by_feedback(session, release, "admin") == (2, 1)


def test_a_shadow_answers_no_share(database: Database) -> None:
    with database.transaction() as session:
        assert releases.share_of(releases.begin(session, 2, 1, SHADOW, [], "by the test")) == 0
