"""Notification on a real mail server: each event is told once, sooner or later, and no secret ever is."""

import json
import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr
from sqlalchemy import select, update

from common.settings import Settings
from lifecycle.jobs import notification
from lifecycle.jobs.notification import deliver_due
from storage import events
from storage.database import Database, now
from storage.events import EventKind
from storage.tables import Mail
from tests.mail_server import HOST, PASSWORD, MailServer, server_context

URL_SECRET = "the-secret-of-the-url"

# apprise takes an old module where there is one.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


class WebServer(ThreadingHTTPServer):
    """What takes apprise's JSON, or not."""

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Handler)
        self.status = 200
        self.received: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"json://{HOST}:{self.server_port}/{URL_SECRET}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, WebServer)
        assert self.path == f"/{URL_SECRET}"
        self.server.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    return made


@pytest.fixture
def mail_server(authority: trustme.CA) -> MailServer:
    return MailServer(server_context(authority))


@pytest.fixture
def web_server() -> Iterator[WebServer]:
    with WebServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _settings(server: MailServer, *urls: str) -> Settings:
    return Settings(
        smtp_host=HOST,
        smtp_port=server.port,
        mail_user="loop@example.org",
        mail_password=SecretStr(PASSWORD),
        mail_to="ada@example.org, grace@example.org",
        notify_urls=SecretStr(" ".join(urls)),
    )


def _record(database: Database, message: str = "It happened.") -> int:
    with database.transaction() as session:
        return events.record(session, EventKind.STALE, message, {"accuracy": 0.75}, version=3).id


def _mail(database: Database, event_id: int) -> Mail:
    with database.reading() as session:
        return session.get_one(Mail, event_id)


def _deliver_later(settings: Settings, database: Database) -> None:
    """After the pause."""
    with database.transaction() as session:
        session.execute(update(Mail).values(next_attempt_at=now(session)))
    deliver_due(settings, database)


def _assert_no_secret_is_told(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    with database.reading() as session:
        kept = [f"{mail.last_error} {mail.delivered} {mail.body}" for mail in session.scalars(select(Mail))]
    for told in (caplog.text, *kept):
        assert PASSWORD not in told
        assert URL_SECRET not in told


def test_a_mail_arrives_once_and_under_the_same_name_if_it_must_be_sent_again(
    mail_server: MailServer, database: Database
) -> None:
    event_id = _record(database, "Version 3 has become stale: größer.\nRetraining is job 7.")
    settings = _settings(mail_server)
    with mail_server.running():
        for _ in range(3):
            deliver_due(settings, database)
        (mail,) = mail_server.received
        assert _mail(database, event_id).sent_at is not None
        # A process that was killed before it could write down that the mail is sent.
        with database.transaction() as session:
            session.execute(update(Mail).values(sent_at=None, delivered=[]))
        deliver_due(settings, database)
    assert mail["Subject"] == "[sentiment] Version 3 has become stale: größer."
    assert mail["From"] == "loop@example.org"
    assert mail["To"] == "ada@example.org, grace@example.org"
    assert mail_server.recipients[0] == ["ada@example.org", "grace@example.org"]
    assert mail["Date"] is not None
    lines = mail.get_content().splitlines()
    assert lines[:2] == ["Version 3 has become stale: größer.", "Retraining is job 7."]
    assert lines[-2:] == ["Version: 3", "accuracy: 0.7500"]
    assert mail["Message-ID"] == f"<sentiment-event-{event_id}@example.org>"
    assert [again["Message-ID"] for again in mail_server.received] == [mail["Message-ID"]] * 2


def test_each_event_has_a_mail_of_its_own_and_they_come_in_order(mail_server: MailServer, database: Database) -> None:
    with mail_server.running():
        for number in range(3):
            _record(database, f"event {number}")
        deliver_due(_settings(mail_server), database)
    assert [mail["Subject"] for mail in mail_server.received] == [f"[sentiment] event {number}" for number in range(3)]
    assert len({mail["Message-ID"] for mail in mail_server.received}) == 3


def test_a_mail_waits_while_the_server_does_not_take_the_password(
    mail_server: MailServer, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    event_id = _record(database)
    settings = _settings(mail_server)
    mail_server.password = "another"
    with mail_server.running():
        deliver_due(settings, database)
        tried = mail_server.logins
        deliver_due(settings, database)
        assert mail_server.logins == tried
        assert mail_server.received == []
        error = _mail(database, event_id).last_error
        assert error.startswith("SMTPAuthenticationError")
        assert "has another password than …" in error
        assert "trying again in 10 s" in caplog.text
        _assert_no_secret_is_told(database, caplog)
        mail_server.password = PASSWORD
        _deliver_later(settings, database)
    assert len(mail_server.received) == 1
    assert _mail(database, event_id).sent_at is not None


def test_nothing_is_lost_while_the_server_is_down(
    mail_server: MailServer, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    settings = _settings(mail_server)
    first = _record(database, "the first")
    deliver_due(settings, database)
    assert _mail(database, first).last_error.startswith("ConnectionRefusedError")
    _record(database, "the second")
    _deliver_later(settings, database)
    waiting = _mail(database, first)
    assert waiting.attempts == 2
    with database.reading() as session:
        assert 15 < (waiting.next_attempt_at - now(session)).total_seconds() <= 20
    assert "trying again in 20 s" in caplog.text
    with mail_server.running():
        deliver_due(settings, database)
        assert mail_server.received == []
        _deliver_later(settings, database)
        _deliver_later(settings, database)
    assert [mail["Subject"] for mail in mail_server.received] == ["[sentiment] the first", "[sentiment] the second"]


def test_a_way_that_fails_has_no_other_way_tell_twice(
    mail_server: MailServer, web_server: WebServer, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    event_id = _record(database)
    settings = _settings(mail_server, web_server.url)
    web_server.status = 500
    with mail_server.running():
        deliver_due(settings, database)
        _deliver_later(settings, database)
        assert (len(mail_server.received), len(web_server.received)) == (1, 2)
        assert "json rejected the notification" in _mail(database, event_id).last_error
        web_server.status = 200
        _deliver_later(settings, database)
        _deliver_later(settings, database)
    assert (len(mail_server.received), len(web_server.received)) == (1, 3)
    assert web_server.received[-1]["title"] == "[sentiment] It happened."
    assert "accuracy: 0.7500" in web_server.received[-1]["message"]
    assert _mail(database, event_id).sent_at is not None
    _assert_no_secret_is_told(database, caplog)


def test_a_refused_recipient_is_told_and_tried_again_and_the_others_get_the_mail_once(
    mail_server: MailServer, web_server: WebServer, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    event_id = _record(database)
    settings = _settings(mail_server, web_server.url)
    mail_server.refused = {"grace@example.org"}
    with mail_server.running():
        for _ in range(2):
            _deliver_later(settings, database)
        assert mail_server.recipients == [["ada@example.org"]]
        assert "grace@example.org (550 5.1.1 no such user)" in _mail(database, event_id).last_error
        assert "refused grace@example.org (550 5.1.1 no such user)); trying again in 10 s" in caplog.text
        assert _mail(database, event_id).sent_at is None
        mail_server.refused = set()
        for _ in range(2):
            _deliver_later(settings, database)
    assert mail_server.recipients == [["ada@example.org"], ["grace@example.org"]]
    assert [mail["To"] for mail in mail_server.received] == ["ada@example.org, grace@example.org"] * 2
    assert len(web_server.received) == 1
    assert _mail(database, event_id).sent_at is not None


def test_a_recipient_that_stays_refused_is_given_up(
    mail_server: MailServer, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notification, "_MOST_REFUSALS", 2)
    event_id = _record(database)
    mail_server.refused = {"grace@example.org"}
    with mail_server.running():
        for _ in range(4):
            _deliver_later(_settings(mail_server), database)
    assert mail_server.recipients == [["ada@example.org"]]
    assert mail_server.logins == 3
    assert _mail(database, event_id).sent_at is not None
    assert f"Gave up on event {event_id}: some recipients were refused 3 times: the mail server refused" in caplog.text
    assert "Correct SENTIMENT_MAIL_TO." in caplog.text


def test_neither_an_outage_nor_a_temporary_refusal_counts_as_a_refusal(
    mail_server: MailServer, web_server: WebServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notification, "_MOST_REFUSALS", 1)
    event_id = _record(database)
    settings = _settings(mail_server, web_server.url)
    for _ in range(3):
        _deliver_later(settings, database)
    mail_server.refused = {"ada@example.org", "grace@example.org"}
    with mail_server.running():
        mail_server.refusal = "450 4.2.0 greylisted"
        for _ in range(3):
            _deliver_later(settings, database)
        mail_server.refusal = "550 5.1.1 no such user"
        _deliver_later(settings, database)
        assert _mail(database, event_id).sent_at is None
        mail_server.refused = set()
        _deliver_later(settings, database)
    assert mail_server.recipients == [["ada@example.org", "grace@example.org"]]
    assert _mail(database, event_id).sent_at is not None


def test_names_and_an_additional_comma_add_no_recipients(mail_server: MailServer, database: Database) -> None:
    _record(database)
    settings = _settings(mail_server).model_copy(update={"mail_to": '"Team, A" <ada@example.org>, ada@example.org,'})
    with mail_server.running():
        deliver_due(settings, database)
    assert mail_server.recipients == [["ada@example.org"]]
    assert mail_server.received[0]["To"].addresses[0].display_name == "Team, A"


def test_a_mail_that_an_older_release_sent_is_not_sent_again(
    mail_server: MailServer, web_server: WebServer, database: Database
) -> None:
    event_id = _record(database)
    with database.transaction() as session:
        session.execute(update(Mail).values(delivered=["mail"]))
    with mail_server.running():
        deliver_due(_settings(mail_server, web_server.url), database)
    assert (len(mail_server.received), len(web_server.received)) == (0, 1)
    assert _mail(database, event_id).sent_at is not None


@pytest.mark.parametrize("name", ["my_laptop", "my_laptop.lan", "host"])
def test_the_name_in_the_greeting_is_valid_whatever_the_host_is_called(
    name: str, mail_server: MailServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.getfqdn", lambda _name="": name)
    monkeypatch.setattr("socket.gethostname", lambda: name)
    _record(database)
    with mail_server.running():
        deliver_due(_settings(mail_server), database)
    assert len(mail_server.received) == 1
    assert set(mail_server.names) == {"[127.0.0.1]"}


def test_the_other_way_does_not_wait_for_the_mail_server(
    mail_server: MailServer, web_server: WebServer, database: Database
) -> None:
    _record(database)
    settings = _settings(mail_server, web_server.url)
    deliver_due(settings, database)
    assert len(web_server.received) == 1
    with mail_server.running():
        _deliver_later(settings, database)
    assert (len(mail_server.received), len(web_server.received)) == (1, 1)


@pytest.mark.parametrize(
    ("certified_by", "error"),
    [
        (lambda: server_context(trustme.CA()), "CERTIFICATE_VERIFY_FAILED"),
        (lambda: None, "STARTTLS extension not supported"),
    ],
    ids=["not trusted", "no TLS"],
)
@pytest.mark.usefixtures("authority")
def test_a_server_that_cannot_prove_itself_gets_nothing(
    database: Database, certified_by: Callable[[], ssl.SSLContext | None], error: str
) -> None:
    server = MailServer(certified_by())
    event_id = _record(database)
    with server.running():
        deliver_due(_settings(server), database)
    assert (server.logins, server.received) == (0, [])
    assert error in _mail(database, event_id).last_error


def test_where_nobody_is_to_be_told_what_waits_is_dropped(mail_server: MailServer, database: Database) -> None:
    _record(database)
    deliver_due(Settings(), database)
    with mail_server.running():
        deliver_due(_settings(mail_server), database)
    assert mail_server.received == []
    assert len(events.newest(database, 10)) == 1


@pytest.mark.parametrize(
    ("url", "error"),
    [
        (f"nosuch://{URL_SECRET}@host/", "apprise does not know"),
        (f"slack://{URL_SECRET}", "apprise does not know"),
        (URL_SECRET, "apprise does not know"),
        (f"json://{HOST}:1/{URL_SECRET}", "json rejected the notification"),
    ],
)
def test_a_url_that_does_not_work_is_told_without_it(
    mail_server: MailServer, database: Database, caplog: pytest.LogCaptureFixture, url: str, error: str
) -> None:
    event_id = _record(database)
    with mail_server.running(), caplog.at_level(logging.INFO):
        deliver_due(_settings(mail_server, url), database)
    assert len(mail_server.received) == 1
    assert error in _mail(database, event_id).last_error
    assert "Cannot deliver event" in caplog.text
    _assert_no_secret_is_told(database, caplog)


def test_an_odd_first_line_makes_a_subject_and_holds_up_no_other_mail(
    mail_server: MailServer, database: Database
) -> None:
    _record(database, "Job 7 failed: 50 %\r100 %\u2028and\x0cmore\nits log")
    _record(database, "the next")
    with mail_server.running():
        deliver_due(_settings(mail_server), database)
    assert [mail["Subject"] for mail in mail_server.received] == [
        "[sentiment] Job 7 failed: 50 % 100 % and more",
        "[sentiment] the next",
    ]


def test_a_password_that_cannot_be_sent_is_told_and_holds_up_no_other_way(
    mail_server: MailServer, web_server: WebServer, database: Database
) -> None:
    event_id = _record(database)
    settings = _settings(mail_server, web_server.url).model_copy(update={"mail_password": SecretStr("pässword")})
    with mail_server.running():
        deliver_due(settings, database)
    assert len(web_server.received) == 1
    assert "UnicodeEncodeError" in _mail(database, event_id).last_error
