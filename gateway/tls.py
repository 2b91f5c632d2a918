"""The certificate that the gateway speaks HTTPS with."""

import ssl

from errors import PipelineError
from settings import Settings


def check_tls(settings: Settings) -> None:
    """Raise a PipelineError unless the certificate and its key, where they are set, are there and fit each other."""
    if settings.tls_certificate is None and settings.tls_key is None:
        return
    if settings.tls_certificate is None or settings.tls_key is None:
        raise PipelineError("SENTIMENT_TLS_CERTIFICATE and SENTIMENT_TLS_KEY need each other; set both, or neither.")

    def refuse_password() -> str:
        raise PipelineError(f"{settings.tls_key} needs a password; give a key without one.")

    files = f"{settings.tls_certificate} and {settings.tls_key} (SENTIMENT_TLS_CERTIFICATE, SENTIMENT_TLS_KEY)"
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, refuse_password)
    except ssl.SSLError as error:
        raise PipelineError(
            f"{files} are no certificate and private key that fit each other, in PEM: {error.reason}."
        ) from error
    except OSError as error:
        raise PipelineError(f"{files} cannot be read: {error.strerror}.") from error
