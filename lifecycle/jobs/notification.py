"""Notifies people: delivers the outbox by mail and by the services that apprise supports."""

import hashlib
import logging
import smtplib
import ssl
from collections.abc import Callable, Collection, Mapping
from email.message import EmailMessage
from email.utils import formatdate

from common.errors import PipelineError
from common.mail_addresses import parse_mail_addresses
from common.settings import Settings
from storage import events
from storage.database import Database
from storage.tables import Mail

_TIMEOUT_S = 15.0
_MOST_REFUSALS = 24
"""Permanent refusals of the remaining recipients after which they are given up, if others got the mail: 16 hours."""
_PERMANENT = 500
"""Lowest SMTP code of a permanent refusal. Lower ones are temporary, such as 450 by greylisting."""
_HELLO = "[127.0.0.1]"
"""Name in the command EHLO. Strict servers refuse a host's own name if it has no domain or an underscore; an address
literal is always valid (RFC 5321, section 4.1.3)."""
SUBJECT_PREFIX = "[sentiment] "

log = logging.getLogger(__name__)

Deliver = Callable[[Mail, Collection[str]], None]
"""Delivers a mail through the channels with the given names, which belong together."""
_MAIL = "mail "
"""Start of a channel's name that stands for one recipient. Older releases stored `mail` for all of them."""
_ALL_MAIL = "mail"


class RefusedRecipientsError(Exception):
    """The mail server refused some recipients, or all of them, and accepted the mail for the others."""

    def __init__(self, refusals: Mapping[str, tuple[int, bytes]], recipients: Collection[str]) -> None:
        """Build the message from the server's `refusals`; `recipients` do not get the mail."""
        reasons = (f"{to} ({code} {text.decode(errors='replace')})" for to, (code, text) in refusals.items())
        super().__init__(f"the mail server refused {', '.join(reasons)}")
        self.recipients = recipients
        codes = (code for code, _ in refusals.values())
        self.is_permanent = set(recipients) <= refusals.keys() and min(codes, default=0) >= _PERMANENT
        """True if the server refused each of `recipients` with a code that forbids another try."""


def deliver_due(settings: Settings, database: Database) -> None:
    """Deliver due notifications once through each configured channel; failed deliveries are tried again later.

    If the process is killed after a server accepts a notification and before that is recorded, it is delivered twice.
    Both mails have the same Message-ID, by which Gmail and others detect the duplicate.
    """
    ways = _ways(settings)
    if not ways:  # neither mail nor webhooks are configured: recipients with a mistake are an error of the settings
        events.drop_mails(database)
        return
    for mail in events.due_mails(database):
        failures = []
        is_refused = True
        for names, deliver in ways:
            left = [name for name in names if name not in mail.delivered]
            if not left or (_ALL_MAIL in mail.delivered and left[0].startswith(_MAIL)):
                continue
            try:
                deliver(mail, left)
            except RefusedRecipientsError as error:
                failures.append(str(error))
                is_refused = is_refused and error.is_permanent
                left = [name for name in left if name.removeprefix(_MAIL) not in error.recipients]
            except (OSError, ValueError, smtplib.SMTPException, PipelineError) as error:
                # ValueError: a login, an address or a text cannot be put into a mail.
                failures.append(settings.without_secrets(f"{type(error).__name__}: {error}"))
                is_refused = False
                continue
            if left:
                events.mark_delivered(database, mail.event_id, left)
        reason = "; ".join(failures)
        if failures and is_refused and mail.delivered and mail.refusals >= _MOST_REFUSALS:
            log.error(
                "Gave up on event %d: some recipients were refused %d times: %s. Correct SENTIMENT_MAIL_TO.",
                mail.event_id,
                mail.refusals + 1,
                reason,
            )
            events.mark_sent(database, mail.event_id)
        elif failures:
            pause = events.mark_unsent(database, mail.event_id, reason, is_refused)
            log.warning("Cannot deliver event %d (%s); trying again in %.0f s.", mail.event_id, reason, pause)
        else:
            events.mark_sent(database, mail.event_id)


def _ways(settings: Settings) -> list[tuple[list[str], Deliver]]:
    """Return each delivery with the names of the channels that it serves."""
    ways: list[tuple[list[str], Deliver]] = []
    recipients = dict.fromkeys(address.addr_spec for address in parse_mail_addresses(settings.mail_to))
    if recipients:
        ways.append(
            ([_MAIL + address for address in recipients], lambda mail, names: _send_mail(settings, mail, names))
        )
    for url in settings.notify_urls.get_secret_value().split():
        # Named by a hash, because the URL contains a secret.
        name = hashlib.sha256(url.encode()).hexdigest()[:12]
        ways.append(([name], lambda mail, _, url=url: _notify(url, mail)))  # type: ignore[misc]
    return ways


def _send_mail(settings: Settings, mail: Mail, names: Collection[str]) -> None:
    """Send a mail to the recipients of the channels in `names`.

    Raises:
        RefusedRecipientsError: some recipients were refused, or all of them; the others get the mail.
        SMTPException: nobody gets the mail.
    """
    to = parse_mail_addresses(settings.mail_to)
    sender = settings.mail_user or to[0].addr_spec
    message = EmailMessage()
    message["From"] = sender
    message["To"] = to
    message["Subject"] = SUBJECT_PREFIX + " ".join(mail.subject.split())
    message["Date"] = formatdate(mail.next_attempt_at.timestamp())
    message["Message-ID"] = f"<sentiment-event-{mail.event_id}@{sender.rpartition('@')[2]}>"
    message.set_content(mail.body)
    with smtplib.SMTP(settings.smtp_host, settings.smtp_port, _HELLO, timeout=_TIMEOUT_S) as server:
        server.starttls(context=ssl.create_default_context())
        if settings.mail_user:
            server.login(settings.mail_user, settings.mail_password.get_secret_value())
        recipients = [name.removeprefix(_MAIL) for name in names]
        try:
            refusals = server.send_message(message, to_addrs=recipients)
        except smtplib.SMTPRecipientsRefused as error:
            # It names not all of them if the server ended the connection meanwhile.
            raise RefusedRecipientsError(error.recipients, recipients) from error
    if refusals:
        raise RefusedRecipientsError(refusals, refusals)


def _notify(url: str, mail: Mail) -> None:
    import apprise  # takes a second to import, and few installations need it

    # apprise logs URLs that it does not know, with the secrets in them.
    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    service = apprise.Apprise()
    if not service.add(url):
        raise PipelineError("apprise does not know a URL in SENTIMENT_NOTIFY_URLS; correct its scheme")
    if not service.notify(body=mail.body, title=SUBJECT_PREFIX + mail.subject):
        raise PipelineError(f"{url.partition(':')[0]} rejected the notification")
