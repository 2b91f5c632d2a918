"""The commands check, retrain, models, promote, rollback and events: what they print."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import app
from common.settings import Settings
from lifecycle.cli import commands
from lifecycle.deployment import promotion
from lifecycle.jobs import job_process
from storage import events, jobs, leases
from storage.database import Database
from storage.jobs import Outcome
from storage.versions import GateVerdict, add_verdicts
from tests.lifecycle.conftest import hollow_bundle, make_served

FIGURES = {
    "texts": 173,
    "accuracy": 0.5838,
    "macro_f1": 0.5749,
    "calibration_error": 0.2463,
    "f1_by_label": {"Negative": 0.5135, "Positive": 0.6364},
}
PROBLEMS = [
    "accuracy on feedback is 0.5838, under 0.7 (173 texts)",
    "macro F1 on feedback is 0.5749, under 0.7 (173 texts)",
]

in_the_database = pytest.mark.usefixtures("database")


class Desk:
    """A directory with two versions, of which the first is deployed, in which commands run; no Triton runs."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.served = make_served(directory, hollow_bundle(directory), versions=2)
        self._capsys = capsys

    @property
    def settings(self) -> Settings:
        return self.served.settings

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command; gives its status, and what it wrote to both outputs."""
        status = app.main([*arguments])
        printed = self._capsys.readouterr()
        return status, printed.out, printed.err


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    desk = Desk(tmp_path, capsys)
    monkeypatch.chdir(tmp_path)
    for name, value in desk.served.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(commands, "_set_alias", lambda *_: None)  # MLflow knows none of these versions
    yield desk
    logging.getLogger("lifecycle.jobs.check").setLevel(logging.NOTSET)  # the command was this process


@pytest.fixture
def database(desk: Desk) -> Iterator[Database]:
    """Knows which version is deployed, as once the pipeline has started."""
    opened = Database(desk.settings.database)
    promotion.reconcile(desk.settings, opened)
    yield opened
    opened.close()


FINE = "Version 1 is fine: accuracy 87.6% on validation; no drift."


def ends_with(monkeypatch: pytest.MonkeyPatch, **result: object) -> None:
    """Have the job of the command end with this result."""

    def do(*_: object) -> Outcome:
        return Outcome(jobs.SUCCEEDED, {"version": 1, "summary": FINE, "drift": {}, **result})

    monkeypatch.setattr(job_process, "_do", do)
    monkeypatch.setattr(commands, "require_running", lambda _: None)


@in_the_database
def test_a_job_that_fails_says_why_once_and_its_files_go(
    desk: Desk, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    files = desk.settings.state_dir / "retraining"
    for arguments in (["retrain"], ["job", "2"]):
        job = jobs.enqueue(database, jobs.RETRAIN, "by the test")
        (files / str(job.id)).mkdir(parents=True)
        caplog.clear()
        _, printed, told = desk.run(*arguments)
        assert (printed + told + caplog.text).count("The data files have problems") == 1
    assert desk.run("events", "--json")[1].count("job-failed") == 2
    assert [path.name for path in files.iterdir()] == ["2"], "the next retraining removes those of the one before"


def test_a_wrong_path_is_told_before_the_wait_for_a_retraining(desk: Desk, database: Database) -> None:
    assert leases.take(database, jobs.RETRAIN, leases.new_holder(), 3_600)
    jobs.begin(database, jobs.enqueue(database, jobs.RETRAIN, "by the scheduler").id)
    status, _, told = desk.run("import", "./nothing")
    assert (status, told.startswith("error: ./nothing is not a directory.")) == (1, True)


@in_the_database
@pytest.mark.parametrize("arguments", [["check"], ["predict", "fine"]])
def test_what_asks_a_pipeline_that_does_not_run_says_so_and_is_no_failed_job(desk: Desk, arguments: list[str]) -> None:
    status, _, told = desk.run(*arguments)
    assert status == 1
    assert told.startswith("error: The pipeline does not run, so the deployed model cannot be asked. Start it with")
    assert "job-failed" not in desk.run("events", "--json")[1]


@in_the_database
def test_a_check_says_what_became_of_the_retraining_that_it_requested(
    desk: Desk, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.enqueue(database, jobs.RETRAIN, "by the check")
    decision = f"A retraining was requested: job {job.id}."
    ends_with(monkeypatch, decision=decision)
    assert desk.run("check")[1].splitlines()[-1] == decision
    with database.transaction() as session:
        jobs.end(session, job.id, Outcome(jobs.REJECTED, {}))
    assert desk.run("check")[1].splitlines()[-1] == f"{decision} It has ended meanwhile: rejected."


@in_the_database
def test_a_second_rollback_names_the_step_forward(desk: Desk) -> None:
    assert desk.run("rollback")[2] == "error: There is no previous version to roll back to.\n"
    assert desk.run("promote", "2")[0] == 0
    assert desk.run("rollback")[1] == "Version 1 is deployed.\n"
    status, _, told = desk.run("rollback")
    assert status == 1
    assert "Version 2 was deployed before version 1 and was rolled back" in told
    assert "to deploy it anyway: `python app.py promote 2`." in told
    assert desk.run("promote", "2")[1] == "Version 2 is deployed.\n", "and so it is"


@in_the_database
def test_an_unknown_kind_of_events_is_an_error_that_lists_the_kinds(desk: Desk) -> None:
    status, _, told = desk.run("events", "--kind", "foo")
    assert status == 1
    assert told.startswith("error: --kind foo: there is no such kind of event. Choose one of checked, stale, ")
    assert desk.run("events", "--kind", "checked")[0] == 0


@pytest.mark.parametrize("command", ["promote", "shadow", "canary", "stop"])
def test_a_version_that_is_no_number_is_an_error_that_says_where_versions_are(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        app.main([command, "x"])
    told = capsys.readouterr().err
    assert "argument version: 'x' is not the number of a version. `python app.py models` lists the versions." in told


def test_the_newest_version_comes_first_and_the_deployed_one_is_not_called_never_deployed(desk: Desk) -> None:
    _, printed, _ = desk.run("models")
    newest, deployed = printed.splitlines()[1:]
    assert (newest.split()[0], "never" in newest) == ("2", True)
    assert (deployed.split()[0], "from the next start on" in deployed) == ("1", True)


@in_the_database
def test_versions_are_listed_with_their_accuracy_on_feedback(desk: Desk, database: Database) -> None:
    gate = GateVerdict("thresholds", True, "They are met.", {"feedback": {"accuracy": 0.8123}})
    desk.run("models")  # records the versions
    add_verdicts(database, 2, [gate])
    checked = {"validation": {"accuracy": 0.9}, "feedback": {"accuracy": 0.5838}}
    with database.transaction() as session:
        for figures in ({"feedback": {"accuracy": 0.1}}, checked):
            events.record(session, events.EventKind.CHECKED, "Version 1 was checked.", figures, version=1)
    columns, candidate, deployed, _ = desk.run("models")[1].splitlines()
    assert "on feedback" in columns
    assert "0.8123" in candidate, "of the gates"
    assert "0.5838" in deployed, "of the last check"


@in_the_database
def test_the_first_deployment_is_an_event(desk: Desk) -> None:
    _, printed, _ = desk.run("events")
    assert "deployed Version 1 is deployed (deployed before this database was created)." in " ".join(printed.split())


def test_the_only_version_is_said_to_be_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served = make_served(tmp_path, hollow_bundle(tmp_path), versions=1)
    for name, value in served.environment.items():
        monkeypatch.setenv(name, value)
    database = served.database()
    promotion.reconcile(served.settings, database)
    database.close()
    assert app.main(["events"]) == 0
    assert "deployed  Version 1 is deployed (first version)." in capsys.readouterr().out


@in_the_database
def test_a_check_gives_one_verdict_and_then_what_follows(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    found = f"Version 1 is under a threshold: {PROBLEMS[0]}; {PROBLEMS[1]}; no drift."
    ends_with(monkeypatch, feedback=FIGURES, summary=found, decision="A retraining was requested: job 2.")
    _, printed, told = desk.run("check")
    assert printed.splitlines()[-2:] == [found, "A retraining was requested: job 2."]
    assert (printed + told).count("threshold") == 1

    ends_with(monkeypatch)
    assert desk.run("check")[1].splitlines()[-1] == FINE
    # Drift alone can cause a retraining, of a version that is good.
    ends_with(monkeypatch, decision="A retraining was requested: job 5.")
    assert desk.run("check")[1].splitlines()[-2:] == [FINE, "A retraining was requested: job 5."]


def test_retrain_shows_the_steps_of_a_job_that_another_process_runs(
    desk: Desk, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.enqueue(database, jobs.RETRAIN, "by the scheduler")
    jobs.begin(database, job.id)

    def end() -> None:
        with database.transaction() as session:
            jobs.end(session, job.id, Outcome(jobs.SUCCEEDED, {"version": 2}))

    story = iter(
        [
            lambda: jobs.set_step(database, job.id, "training"),
            lambda: None,
            lambda: jobs.set_step(database, job.id, "testing version 2"),
            end,
        ]
    )
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: next(story)())
    monkeypatch.setattr(commands, "time", clock)
    _, printed, told = desk.run("retrain")
    assert [line.partition("  ")[2].partition("  ")[0] for line in told.splitlines() if line.startswith("job ")] == [
        "running",
        "training",
        "testing version 2",
        "succeeded after 0 s",
    ]
    assert printed == "Version 2 passed every gate and is deployed.\n"
