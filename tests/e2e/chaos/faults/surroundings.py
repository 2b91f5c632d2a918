"""The database, the disks, MLflow and the mail server fail."""

import contextlib
import sqlite3
import time

import httpx
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from serving.model_repo.protocol import MODEL_NAME
from tests.conftest import LABELS
from tests.e2e.chaos.fault import Fault
from tests.e2e.chaos.surroundings import full, has_own_mounts
from tests.e2e.chaos.target import Target, count_kept, opened
from tests.e2e.conftest import wait_for
from tests.mail_server import PASSWORD
from trainer.tracking import CHAMPION

LOCKED_S = 14.0
"""Longer than the database is waited for."""
SHORTAGE_S = 5.0
MOST_BATCHES = 4
"""Of 1.6 MB each; SQLite begins its log again after 4 MB."""
TELLING_S = 60.0
_UNTOLD = "Cannot deliver event"


def _lock_database(target: Target) -> None:
    connection = sqlite3.connect(target.served.settings.database.removeprefix("sqlite:///"))
    with contextlib.closing(connection):
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(LOCKED_S)


def _fill_state(target: Target) -> None:
    """Many rows need more room than the database has taken so far."""

    batches = [
        [f"{'a bright screen ' * 100}{batch} {number}" for number in range(1_000)] for batch in range(MOST_BATCHES)
    ]

    def tell(texts: list[str]) -> httpx.Response:
        feedback = [{"text": text, "label": LABELS[1]} for text in texts]
        return target.served.ask("POST", "/feedback", json={"feedback": feedback})

    with full(target.directory / "state"):
        # The first may have room in the database's log, whose file is written again from its start.
        answers = [tell(texts) for texts in batches]
        assert answers[-1].status_code == 503, answers[-1].text
        assert {answer.status_code for answer in answers} <= {201, 503}
        time.sleep(SHORTAGE_S)
    target.is_over()
    told = tell(batches[-1])
    assert told.status_code == 201, told.text
    accepted = [
        text
        for texts, answer in zip(batches, [*answers[:-1], told], strict=True)
        if answer.is_success
        for text in texts
    ]
    with opened(target.served) as database:
        assert count_kept(database, accepted) == (0, 0)
    target.is_well()


def _fill_repository(target: Target) -> None:
    serves = target.served.repository.deployed()
    with full(target.directory / "triton_repo"):
        target.promote(target.other(), status=409)
        assert target.served.version() == serves == target.served.repository.deployed()
    target.is_over()
    target.promote(target.other())


def _lose_mlflow(target: Target) -> None:
    target.mlflow.stop()
    version = target.other()
    target.promote(version)
    wait_for(lambda: "MLflow" in target.log(), TELLING_S, "the log to tell that MLflow is away")
    target.mlflow.start()
    target.mlflow.wait()
    target.is_over()
    client = MlflowClient(target.mlflow.url)

    def follows() -> bool:
        try:
            return int(client.get_model_version_by_alias(MODEL_NAME, CHAMPION).version) == version
        except MlflowException:  # the alias may never have been set: earlier faults end the pipeline again and again
            return False

    wait_for(follows, TELLING_S, "MLflow's alias to follow")
    target.is_well()


def told_once(target: Target) -> None:
    """The mail of a promotion arrives when the server is right again, and once."""
    version = target.served.repository.deployed()

    def arrived() -> int:
        return sum(f"Version {version} was promoted" in subject for subject in target.mail.subjects())

    wait_for(lambda: arrived() > 0, TELLING_S, "the mail to arrive")
    target.is_well()
    time.sleep(6)  # the outbox is looked at every five
    assert arrived() == 1, f"the mail arrived {arrived()} times"


def _promote_untold(target: Target) -> None:
    target.mail.server.received.clear()
    target.promote(target.other())
    wait_for(lambda: _UNTOLD in target.log(), TELLING_S, "the log to tell that no mail can be sent")


def _lose_mail(target: Target) -> None:
    target.mail.stop()
    _promote_untold(target)
    target.mail.start()
    target.is_over()
    told_once(target)


def _refuse_login(target: Target) -> None:
    target.mail.server.password = "another"
    _promote_untold(target)
    assert PASSWORD not in target.served.log
    target.mail.server.password = PASSWORD
    target.is_over()
    told_once(target)


def _hang_mail(target: Target) -> None:
    with target.mail.hanging():
        _promote_untold(target)
    target.is_over()
    told_once(target)


FAULTS = [
    Fault(
        "db-locked",
        f"another program locks the database for {LOCKED_S:.0f} s",
        _lock_database,
        "Feedback could not be stored",
    ),
    Fault("mlflow-down", "MLflow is down while a version is promoted", _lose_mlflow, "MLflow at .* cannot be used"),
    Fault("mail-down", "the mail server is down", _lose_mail, _UNTOLD),
    Fault("mail-refuses", "the mail server refuses the login", _refuse_login, _UNTOLD),
    Fault("mail-hangs", "the mail server takes connections and says nothing", _hang_mail, _UNTOLD),
]
if has_own_mounts():
    FAULTS += [
        Fault("disk-full", f"no room for the database for {SHORTAGE_S:.0f} s", _fill_state, "disk of the database has"),
        Fault(
            "repository-full",
            "no room in the model repository while a version is promoted",
            _fill_repository,
            "No space left",
        ),
    ]
