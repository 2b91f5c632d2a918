"""HTTPS by setting, and what is wrong with a certificate is told before anything starts."""

import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme

from common.errors import PipelineError
from common.settings import Settings
from gateway.auth.tls import check_tls
from tests.e2e.conftest import PROJECT, free_ports, wait_for
from tests.gateway.fake_triton import FakeTriton


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> tuple[Path, Path]:
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "gateway.crt", tmp_path / "gateway.key"
    certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key


@pytest.fixture
def https_port(triton: FakeTriton, files: tuple[Path, Path], tmp_path: Path) -> Iterator[int]:
    """Port of a gateway that runs as for its users."""
    port = free_ports()
    environment = {
        "PATH": "/usr/bin:/bin",
        "SENTIMENT_HOME": ".",
        "SENTIMENT_PORT": str(port),
        "SENTIMENT_TRITON_URL": f"127.0.0.1:{triton.port}",
        "SENTIMENT_TLS_CERTIFICATE": str(files[0]),
        "SENTIMENT_TLS_KEY": str(files[1]),
    }
    log = tmp_path / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, PROJECT / "app.py", "gateway"], cwd=tmp_path, env=environment, stderr=output
        )
    try:
        wait_for(lambda: process.poll() is not None or "Ready: " in log.read_text(), 90, "the gateway")
        assert f"is deployed at https://127.0.0.1:{port}" in log.read_text()
        yield port
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_the_gateway_speaks_https_alone(https_port: int, authority: trustme.CA) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with httpx.Client(base_url=f"https://127.0.0.1:{https_port}", verify=trusting) as https:
        answer = https.post("/predict/live", json={"text": "a"})
        assert answer.status_code == 200
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert "server" not in answer.headers
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://127.0.0.1:{https_port}/health/live")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{https_port}/health/live")


def test_a_certificate_and_its_key_are_taken(files: tuple[Path, Path]) -> None:
    check_tls(Settings(tls_certificate=files[0], tls_key=files[1]))
    check_tls(Settings())


def test_what_is_wrong_with_them_is_told(files: tuple[Path, Path], authority: trustme.CA, tmp_path: Path) -> None:
    certificate, key = files
    other = tmp_path / "other.key"
    other.write_bytes(authority.issue_cert("127.0.0.1").private_key_pem.bytes())
    empty = tmp_path / "empty"
    empty.touch()
    with_password = tmp_path / "password.key"
    subprocess.run(
        ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", with_password], check=True
    )
    for given, told in (
        ({"tls_certificate": certificate}, "belong together. Set both, or neither"),
        ({"tls_key": key}, "belong together"),
        ({"tls_certificate": certificate, "tls_key": other}, "private key in PEM format: KEY_VALUES_MISMATCH"),
        ({"tls_certificate": empty, "tls_key": key}, "are not a matching certificate and private key"),
        ({"tls_certificate": certificate, "tls_key": empty}, "are not a matching certificate and private key"),
        ({"tls_certificate": tmp_path / "none", "tls_key": key}, "cannot be read: No such file or directory"),
        ({"tls_certificate": certificate, "tls_key": with_password}, "needs a password. Use a key without one"),
    ):
        with pytest.raises(PipelineError, match=told):
            check_tls(Settings().model_copy(update=given))
