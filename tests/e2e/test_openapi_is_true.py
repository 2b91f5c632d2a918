"""Schemathesis, with all its checks: the gateway does what its OpenAPI document says, and nothing makes it fail."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

import gateway.routes.admin
from common.settings import Settings
from gateway.load_control.admission import UnderWay
from gateway.main import create_app
from serving.client.call_statistics import CallStatistics
from storage.lazy_database import Storage
from tests.gateway.conftest import fake_triton, served, triton
from tests.gateway.fake_triton import FakeTriton
from tests.lifecycle.conftest import ADMIN_KEY, Served, make_served, serving

__all__ = ["fake_triton", "triton"]

COMMAND = Path(sys.prefix) / "bin" / "schemathesis"
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not COMMAND.exists(), reason="Schemathesis needs Python 3.11 or newer"),
]

CONFIGURATION = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 409, 413, 415, 421, 422]

[checks.positive_data_acceptance]
expected-statuses = ["2xx", 404, 409, 413]

[[operations]]
include-path = "/feedback"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 413, 422]

[[operations]]
include-path = "/feedback/withdraw"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 413, 422]

[[operations]]
include-path-regex = "^/predict/"
generation.allow-extra-parameters = false
checks.positive_data_acceptance.expected-statuses = ["2xx", 413, 504]
checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 504]
"""
"""A list or a body that is too long is refused with 413, also where every text by itself is right; which labels there
are, the model knows and not the document. Predictions may be allowed no time at all, and headers that they do not know
refuse them nothing. What is withdrawn is named by its id or by its source, one of both. From the eleventh on, wrong
keys get 429 (`test_strangers_http.py`)."""

MAX_TIME_S = 40
"""For the phases that would go on for ever; the others end by themselves."""

CHANGES_THE_MODEL = r"^/(check|retrain|models/.+)$"
"""Their work takes seconds with a real Triton, and is not what is looked at here."""


def schemathesis(url: str, *options: str, directory: Path) -> None:
    configuration = directory / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    command = [
        str(COMMAND),
        *("--config-file", str(configuration)),
        *("run", f"{url}/openapi.json", "--url", url, "--header", f"X-API-Key: {ADMIN_KEY}"),
        *(
            "--checks",
            "all",
            "--exclude-checks",
            "ignored_auth",
            "--mode",
            "all",
            "--max-time",
            str(MAX_TIME_S),
            "--request-timeout",
            "60",
            *options,
        ),
    ]
    ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture
def running(tmp_path: Path, bert_bundle: Path) -> Iterator[Served]:
    with serving(make_served(tmp_path, bert_bundle, SENTIMENT_ACCESS="keys")) as running:
        yield running


def test_of_the_model(running: Served, tmp_path: Path) -> None:
    schemathesis(running.url, "--exclude-path-regex", CHANGES_THE_MODEL, directory=tmp_path)
    assert httpx.get(f"{running.url}/health/ready").is_success
    assert "Traceback" not in running.log


def test_of_the_loop(triton: FakeTriton, bert_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.routes.admin, "CHECK_WAIT_S", 0.0)
    repository = make_served(tmp_path, bert_bundle).repository
    settings = Settings(
        triton_url=f"127.0.0.1:{triton.port}",
        state_dir=tmp_path / "state",
        model_repository=repository.root,
        admin_key=SecretStr(ADMIN_KEY),
        access="keys",
    )
    storage = Storage(settings)
    with served(create_app(settings, storage, CallStatistics(), UnderWay())) as port:
        schemathesis(f"http://127.0.0.1:{port}", "--include-path-regex", CHANGES_THE_MODEL, directory=tmp_path)
    storage.close()
