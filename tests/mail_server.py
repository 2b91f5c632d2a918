"""A real mail server on loopback, spoken to with STARTTLS and a login."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

HOST = "127.0.0.1"
PASSWORD = "the-secret-password"


class MailServer:
    """A mail server that takes mails after STARTTLS and a login, while it runs."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.port = free_port()
        self.password = PASSWORD
        self.logins = 0
        self.received: list[EmailMessage] = []
        self.recipients: list[list[str]] = []
        self.refused: set[str] = set()
        """Recipients for whom it takes no mail."""
        self.refusal = "550 5.1.1 no such user"
        self.names: list[str] = []
        """Names that clients gave after EHLO."""
        self._context = context

    @contextmanager
    def running(self) -> Iterator[None]:
        is_safe = self._context is not None
        controller = Controller(
            self,
            hostname=HOST,
            port=self.port,
            tls_context=self._context,
            authenticator=self._authenticate,
            require_starttls=is_safe,
            auth_required=is_safe,
        )
        controller.start()
        try:
            yield
        finally:
            controller.stop()

    def _authenticate(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> Any:
        assert isinstance(data, LoginPassword)
        self.logins += 1
        if data.password == self.password.encode():
            return AuthResult(success=True)
        refusal = f"535 5.7.8 {data.login.decode()} has another password than {data.password.decode()}"
        return AuthResult(success=False, handled=False, message=refusal)

    async def handle_EHLO(  # noqa: N802
        self, _server: Any, session: Any, _envelope: Any, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        self.names.append(hostname)
        return responses

    async def handle_RCPT(  # noqa: N802
        self, _server: Any, _session: Any, envelope: Any, address: str, _options: list[str]
    ) -> str:
        if address in self.refused:
            return self.refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802
        message = message_from_bytes(envelope.content, policy=default)
        assert isinstance(message, EmailMessage)
        self.received.append(message)
        self.recipients.append(envelope.rcpt_tos)
        return "250 OK"


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    """For a server whose certificate the authority has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    return context


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
