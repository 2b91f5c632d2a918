import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

import gateway.deployed_model
import gateway.main
from gateway.admission import UnderWay
from gateway.http_protocol import BoundedHttpProtocol
from gateway.main import create_app
from serving.call_statistics import CallStatistics
from settings import Settings
from storage.storage import Storage
from tests.gateway.fake_triton import FakeTriton

WATCH_INTERVAL_S = 0.05


def until(condition: Callable[[], bool]) -> None:
    """Wait for what comes about within a moment."""
    deadline = time.monotonic() + 5
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
        patch.setattr(gateway.deployed_model, "WATCH_INTERVAL_S", WATCH_INTERVAL_S)
        yield


ADMIN_KEY = "the-admin-key"


@pytest.fixture(scope="session")
def fake_triton() -> Iterator[FakeTriton]:
    triton = FakeTriton()
    triton.start()
    yield triton
    triton.stop()


@pytest.fixture
def triton(fake_triton: FakeTriton) -> Iterator[FakeTriton]:
    fake_triton.behave()
    yield fake_triton
    fake_triton.behave()


def make_app(triton: FakeTriton, directory: Path, **given: Any) -> FastAPI:
    """A gateway before `triton`, whose state and model repository lie in `directory`."""
    settings = Settings(
        triton_url=f"127.0.0.1:{triton.port}",
        state_dir=directory / "state",
        model_repository=directory / "triton_repo",
        admin_key=SecretStr(ADMIN_KEY),
        **given,
    )
    return create_app(settings, Storage(settings), CallStatistics(), UnderWay())


@pytest.fixture(scope="session")
def gateway_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="session")
def port(fake_triton: FakeTriton, gateway_directory: Path) -> Iterator[int]:
    """Port of a gateway that has no room for answers, so that each request tells what the model is asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gateway.main, "MAX_BYTES", 0)
        with served(make_app(fake_triton, gateway_directory)) as port:
            yield port


@pytest.fixture(scope="session")
def http(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client
