import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

import gateway.inference.deployed_model
import gateway.main
from common.settings import Settings
from gateway.http.http_protocol import BoundedHttpProtocol
from gateway.load_control.admission import UnderWay
from gateway.main import GatewayApp, create_app
from serving.client.call_statistics import CallStatistics
from storage.database import Database
from storage.lazy_database import Storage
from tests.gateway.fake_triton import FakeTriton

WATCH_INTERVAL_S = 0.05


def until(condition: Callable[[], bool]) -> None:
    """Wait for what comes about within a moment, or later on a loaded machine."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def served(app: FastAPI) -> Iterator[int]:
    """Run `app` in the server that it runs in for its users; gives the port."""
    config = uvicorn.Config(
        app, port=0, http=BoundedHttpProtocol, ws="none", loop="uvloop", lifespan="on", log_level="warning"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session", autouse=True)
def hurried_watch() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway.inference.deployed_model, "WATCH_INTERVAL_S", WATCH_INTERVAL_S)
        yield


ADMIN_KEY = "the-admin-key"


@pytest.fixture(scope="session")
def fake_triton() -> Iterator[FakeTriton]:
    triton = FakeTriton()
    triton.start()
    yield triton
    triton.stop()


@pytest.fixture
def triton(fake_triton: FakeTriton, request: pytest.FixtureRequest) -> Iterator[FakeTriton]:
    fake_triton.behave()
    if "port" in request.fixturenames:
        # The gateway that tests share may know only what the test before has broken.
        ready = f"http://127.0.0.1:{request.getfixturevalue('port')}/health/ready"
        until(lambda: httpx.get(ready).is_success)
    yield fake_triton
    fake_triton.behave()


def make_app(triton: FakeTriton, directory: Path, **given: Any) -> GatewayApp:
    """A gateway before `triton`, whose state and model repository lie in `directory`."""
    settings = Settings(
        triton_url=f"127.0.0.1:{triton.port}",
        state_dir=directory / "state",
        model_repository=directory / "triton_repo",
        admin_key=SecretStr(ADMIN_KEY),
        **given,
    )
    return create_app(settings, Storage(settings), CallStatistics(), UnderWay())


@contextmanager
def gateway_client(triton: FakeTriton, directory: Path, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a new gateway whose state lies in `directory`."""
    with (
        served(make_app(triton, directory, **settings)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        yield client


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """The database of a gateway whose state lies in `tmp_path`."""
    opened = Database(Settings(state_dir=tmp_path / "state").database)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def gateway_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="session")
def port(fake_triton: FakeTriton, gateway_directory: Path) -> Iterator[int]:
    """Port of a gateway that has no room for answers, so that each request tells what the model is asked."""
    with ExitStack() as running:
        # Only while it starts: gateways that other tests start meanwhile have room for answers.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gateway.main, "MAX_BYTES", 0)
            port = running.enter_context(served(make_app(fake_triton, gateway_directory)))
        yield port


@pytest.fixture(scope="session")
def http(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client
