"""Checks the TLS certificate of the gateway."""

import ssl

from common.errors import PipelineError
from common.settings import Settings


def check_tls(settings: Settings) -> None:
    """Raise a PipelineError if a certificate or key is set, and they are not both readable and a matching pair."""
    if settings.tls_certificate is None and settings.tls_key is None:
        return
    if settings.tls_certificate is None or settings.tls_key is None:
        raise PipelineError("SENTIMENT_TLS_CERTIFICATE and SENTIMENT_TLS_KEY belong together. Set both, or neither.")

    def refuse_password() -> str:
        raise PipelineError(f"{settings.tls_key} needs a password. Use a key without one.")

    files = f"{settings.tls_certificate} and {settings.tls_key} (SENTIMENT_TLS_CERTIFICATE, SENTIMENT_TLS_KEY)"
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, refuse_password)
    except ssl.SSLError as error:
        raise PipelineError(
            f"{files} are not a matching certificate and private key in PEM format: {error.reason}."
        ) from error
    except OSError as error:
        raise PipelineError(f"{files} cannot be read: {error.strerror}.") from error
