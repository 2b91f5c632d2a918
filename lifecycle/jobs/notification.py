"""Notifies people: delivers the outbox by mail and by the services that apprise supports."""

import hashlib
import logging
import smtplib
import ssl
from collections.abc import Callable
from email.message import EmailMessage
from email.utils import formatdate

from common.errors import PipelineError
from common.settings import Settings
from storage import events
from storage.database import Database
from storage.tables import Mail

_TIMEOUT_S = 15.0
SUBJECT_PREFIX = "[sentiment] "

log = logging.getLogger(__name__)

Deliver = Callable[[Mail], None]


def deliver_due(settings: Settings, database: Database) -> None:
    """Deliver due notifications once through each configured channel; failed deliveries are tried again later.

    If the process is killed after a server accepts a notification and before that is recorded, it is delivered twice.
    Both mails have the same Message-ID, by which Gmail and others detect the duplicate.
    """
    ways = _ways(settings)
    if not ways:
        events.drop_mails(database)
        return
    for mail in events.due_mails(database):
        failures = []
        for way, deliver in ways.items():
            if way in mail.delivered:
                continue
            try:
                deliver(mail)
            except (OSError, ValueError, smtplib.SMTPException, PipelineError) as error:
                # ValueError: a login, an address or a text cannot be put into a mail.
                failures.append(settings.without_secrets(f"{type(error).__name__}: {error}"))
            else:
                events.mark_delivered(database, mail.event_id, way)
        if failures:
            reason = "; ".join(failures)
            pause = events.mark_unsent(database, mail.event_id, reason)
            log.warning("Cannot deliver event %d (%s); trying again in %.0f s.", mail.event_id, reason, pause)
        else:
            events.mark_sent(database, mail.event_id)


def _ways(settings: Settings) -> dict[str, Deliver]:
    ways: dict[str, Deliver] = {}
    if settings.mail_to:
        ways["mail"] = lambda mail: _send_mail(settings, mail)
    for url in settings.notify_urls.get_secret_value().split():
        # Named by a hash, because the URL contains a secret.
        ways[hashlib.sha256(url.encode()).hexdigest()[:12]] = lambda mail, url=url: _notify(url, mail)  # type: ignore[misc]
    return ways


def _send_mail(settings: Settings, mail: Mail) -> None:
    sender = settings.mail_user or settings.mail_to.split(",")[0].strip()
    message = EmailMessage()
    message["From"] = sender
    message["To"] = settings.mail_to
    message["Subject"] = SUBJECT_PREFIX + " ".join(mail.subject.split())
    message["Date"] = formatdate(mail.next_attempt_at.timestamp())
    message["Message-ID"] = f"<sentiment-event-{mail.event_id}@{sender.rpartition('@')[2]}>"
    message.set_content(mail.body)
    with smtplib.SMTP(settings.smtp_host, settings.smtp_port, timeout=_TIMEOUT_S) as server:
        server.starttls(context=ssl.create_default_context())
        if settings.mail_user:
            server.login(settings.mail_user, settings.mail_password.get_secret_value())
        server.send_message(message)


def _notify(url: str, mail: Mail) -> None:
    import apprise  # takes a second to import, and few installations need it

    # apprise logs URLs that it does not know, with the secrets in them.
    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    service = apprise.Apprise()
    if not service.add(url):
        raise PipelineError("apprise does not know a URL in SENTIMENT_NOTIFY_URLS; correct its scheme")
    if not service.notify(body=mail.body, title=SUBJECT_PREFIX + mail.subject):
        raise PipelineError(f"{url.partition(':')[0]} rejected the notification")
