import logging
import secrets
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from common.errors import PipelineError
from common.settings import Settings
from gateway.auth.admin_key import load_admin_key, printing_command
from gateway.load_control.admission import UnderWay
from gateway.main import create_app
from serving.client.call_statistics import CallStatistics
from storage.lazy_database import Storage
from tests.e2e.conftest import PROJECT
from tests.gateway.conftest import served
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.routes.test_wrong_requests import assert_problem

STARTS = 4


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "new" / "state", model_repository=tmp_path / "triton_repo", admin_key=None)


@pytest.mark.parametrize("state", [".sentiment", "the state", "given"])
def test_the_command_that_prints_the_key_works_in_the_home_directory(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setenv("SENTIMENT_HOME", str(tmp_path / "home"))
    inside = tmp_path / "home" / state
    given = settings.model_copy(update={"state_dir": tmp_path / "elsewhere" if state == "given" else inside})
    key = load_admin_key(given)
    command = printing_command(given)
    assert str(tmp_path) not in command, "strangers see it"
    (tmp_path / "home").mkdir(exist_ok=True)
    ran = subprocess.run(
        command,
        shell=True,
        cwd=tmp_path / "home",
        env={"SENTIMENT_STATE_DIR": str(given.state_dir), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == key
    assert printing_command(settings.model_copy(update={"admin_key": SecretStr("of the settings")})) == ""


def test_the_key_is_made_once_and_its_place_is_logged_but_not_itself(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = load_admin_key(settings)
    path = settings.state_dir / "admin_key"
    assert len(key) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_admin_key(settings) == key
    assert list(settings.state_dir.iterdir()) == [path]
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    assert key not in caplog.text


def test_each_state_directory_has_another_key(settings: Settings, tmp_path: Path) -> None:
    other = settings.model_copy(update={"state_dir": tmp_path / "other"})
    assert load_admin_key(settings) != load_admin_key(other)


def test_the_setting_wins_and_makes_no_file(settings: Settings) -> None:
    given = settings.model_copy(update={"admin_key": SecretStr("given")})
    assert load_admin_key(given) == "given"
    assert not settings.state_dir.exists()
    made = load_admin_key(settings)
    assert load_admin_key(given) == "given" != made


def test_a_key_that_a_person_wrote_is_taken_without_its_line_end(settings: Settings) -> None:
    settings.state_dir.mkdir(parents=True)
    (settings.state_dir / "admin_key").write_text("my own key\n")
    assert load_admin_key(settings) == "my own key"


@pytest.mark.parametrize("content", ["", " \n"])
def test_an_empty_file_is_no_key(settings: Settings, content: str) -> None:
    settings.state_dir.mkdir(parents=True)
    path = settings.state_dir / "admin_key"
    path.write_text(content)
    with pytest.raises(PipelineError) as told:
        load_admin_key(settings)
    assert str(told.value) == f"{path} is empty. Delete it to have a new admin key generated."
    path.unlink()
    assert load_admin_key(settings)


@pytest.mark.parametrize("in_the_way", ["state is a file", "key is a directory"])
def test_a_key_that_can_neither_be_read_nor_made_is_told(settings: Settings, in_the_way: str) -> None:
    path = settings.state_dir / "admin_key"
    if in_the_way == "key is a directory":
        path.mkdir(parents=True)
    else:
        settings.state_dir.parent.mkdir()
        settings.state_dir.write_text("")
    with pytest.raises(PipelineError) as told:
        load_admin_key(settings)
    assert str(told.value).startswith(f"The admin key in {path} cannot be read or created: ")


def test_threads_that_start_at_once_read_the_same_key(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(STARTS)
    make = secrets.token_urlsafe

    def make_slowly(size: int) -> str:
        time.sleep(0.05)
        return make(size)

    monkeypatch.setattr(secrets, "token_urlsafe", make_slowly)

    def start() -> str:
        together.wait(10)
        return load_admin_key(settings)

    with ThreadPoolExecutor(STARTS) as threads:
        keys = {future.result() for future in [threads.submit(start) for _ in range(STARTS)]}
    assert keys == {(settings.state_dir / "admin_key").read_text()}


def test_processes_that_start_at_once_read_the_same_key(settings: Settings) -> None:
    code = (
        "import secrets, sys, time; from pathlib import Path\n"
        "from gateway.auth.admin_key import load_admin_key; from common.settings import Settings\n"
        "make = secrets.token_urlsafe\n"
        "secrets.token_urlsafe = lambda size: time.sleep(0.05) or make(size)\n"
        f"settings = Settings(state_dir=Path({str(settings.state_dir)!r}), admin_key=None)\n"
        "print(flush=True); sys.stdin.readline(); print(load_admin_key(settings))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(STARTS)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    keys = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert keys == {(settings.state_dir / "admin_key").read_text()}
    assert [process.returncode for process in processes] == [0] * STARTS


@pytest.mark.parametrize("key", [None, "given", "schlüssel-ключ"])
def test_a_request_needs_the_very_key(triton: FakeTriton, settings: Settings, key: str | None) -> None:
    used = settings.model_copy(
        update={"triton_url": f"127.0.0.1:{triton.port}", "admin_key": SecretStr(key) if key else None}
    )
    storage = Storage(used)
    right = load_admin_key(used).encode()
    with (
        served(create_app(used, storage, CallStatistics(), UnderWay())) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        assert http.post("/retrain", headers=[(b"x-api-key", right)]).status_code == 202
        for wrong in (right[:-1], right + b"a", right.upper(), b"\xff"):
            assert_problem(http.post("/retrain", headers=[(b"x-api-key", wrong)]), 401, "key-needed")
    storage.close()
