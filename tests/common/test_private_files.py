"""What the pipeline keeps is closed to other accounts; what cannot be closed is told."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from common import private_files
from common.private_files import close_to_other_accounts, what_stays_open
from common.settings import Settings
from tests.e2e.conftest import PROJECT

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another account")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An installation of an older version: everything is readable by all."""
    monkeypatch.chdir(tmp_path)
    for name in ("state", "model", "triton_repo"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o755)
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    for name in (".env", "elsewhere/feedback.db", "elsewhere/feedback.db-wal"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    return Settings(
        state_dir=tmp_path / "state",
        model_dir=tmp_path / "model",
        model_repository=tmp_path / "triton_repo",
        database_url=f"sqlite:///{tmp_path}/elsewhere/feedback.db",
    )


def test_what_an_older_version_left_open_is_closed_and_told_once(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state" / "texts").touch()
    (tmp_path / "triton_repo" / "README.md").touch()  # as in a fresh clone
    close_to_other_accounts(settings)
    for name in ("state", "model", "triton_repo"):
        assert mode(tmp_path / name) == 0o700
    for name in (".env", "elsewhere/feedback.db", "elsewhere/feedback.db-wal"):
        assert mode(tmp_path / name) == 0o600
    assert mode(tmp_path / "elsewhere") == 0o755, "this is not the pipeline's alone"
    [line] = caplog.messages
    assert line.startswith("Only this account can read ")
    assert str(tmp_path / "state") in line
    assert "triton_repo" not in line
    close_to_other_accounts(settings)
    assert caplog.messages == [line]


def test_what_a_triton_of_an_older_version_left_in_shared_memory_is_closed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_files, "_SHARED_MEMORY", tmp_path)
    left = tmp_path / f"sentiment-{settings.triton_grpc_port}-afc96071-d1a8-4b2f-8f50-6d97c0c7edb8"
    others = tmp_path / f"sentiment-{settings.triton_grpc_port + 30}-{left.name}"
    elsewhere = tmp_path / "elsewhere" / "file"
    for path in (left, others, elsewhere):
        path.touch()
        path.chmod(0o644)
    (tmp_path / f"sentiment-{settings.triton_grpc_port}-link").symlink_to(elsewhere)
    close_to_other_accounts(settings)
    assert [mode(path) for path in (left, others, elsewhere)] == [0o600, 0o644, 0o644]


@pytest.mark.parametrize("given", [0o750, 0o2770, 0o2775])
def test_a_group_that_was_let_in_on_purpose_stays_in(settings: Settings, tmp_path: Path, given: int) -> None:
    (tmp_path / "triton_repo").chmod(given)
    close_to_other_accounts(settings)
    assert mode(tmp_path / "triton_repo") == given & 0o7770
    assert what_stays_open(settings) == []


def test_the_repository_of_an_external_triton_stays_as_it_is(settings: Settings, tmp_path: Path) -> None:
    close_to_other_accounts(settings.model_copy(update={"triton_url": "triton:8001"}))
    assert mode(tmp_path / "triton_repo") == 0o755


def test_a_file_system_without_rights_is_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Path, "chmod", lambda *_: None)  # as vfat's
    close_to_other_accounts(settings)
    told = "\n".join(caplog.messages)
    state = tmp_path / "state"
    assert f"Other accounts of this machine can read {state} (its file system keeps the rights 755), and in it" in told
    assert "the admin key" in told


@as_root
def test_a_directory_of_another_account_is_told_and_what_is_in_it_closed(settings: Settings, tmp_path: Path) -> None:
    own = tmp_path / "state" / "sentiment.db"
    own.touch()
    own.chmod(0o644)
    os.chown(tmp_path / "state", 65534, 65534)
    close_to_other_accounts(settings)
    assert mode(own) == 0o600
    assert any(f"can change {tmp_path / 'state'} (it belongs to nobody" in line for line in what_stays_open(settings))


def test_a_directory_in_which_others_can_replace_it_is_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_files, "_CONTAINERS", ())
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    close_to_other_accounts(settings)
    assert what_stays_open(settings) == []
    tmp_path.chmod(0o777)
    assert any(f"can replace what lies in {tmp_path} (rights 777" in line for line in what_stays_open(settings))
    tmp_path.chmod(0o1777)  # as /tmp: nobody removes what is another's
    assert what_stays_open(settings) == []
    tmp_path.chmod(0o777)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # volumes are so there, and have no other accounts
    assert what_stays_open(settings) == []


def test_a_kernel_that_cannot_keep_shared_memory_private_is_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_to_other_accounts(settings)
    monkeypatch.setattr(private_files, "_SECCOMP", tmp_path / "none")
    assert any("/dev/shm" in line for line in what_stays_open(settings))
    external = settings.model_copy(update={"triton_url": "triton:8001"})
    assert what_stays_open(external) == []


def run(directory: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SENTIMENT_")}
    ended = subprocess.run(
        [sys.executable, PROJECT / "app.py", *arguments],
        cwd=directory,
        env=environment | {"SENTIMENT_HOME": "."},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        umask=0o022,
    )
    return ended.stderr


def test_what_the_pipeline_makes_is_private(tmp_path: Path) -> None:
    run(tmp_path, "keys", "add", "website", "--scope", "predict")
    made = [tmp_path / ".sentiment", *(tmp_path / ".sentiment").rglob("*")]
    assert tmp_path / ".sentiment" / "sentiment.db" in made
    assert [path for path in made if mode(path) & 0o077] == []


@as_root
def test_each_start_says_what_others_could_do_where_it_cannot_be_closed(tmp_path: Path) -> None:
    state = tmp_path / ".sentiment"
    state.mkdir()
    state.chmod(0o755)
    os.chown(state, 65534, 65534)
    for _ in range(2):
        told = run(tmp_path, "keys", "list")
        assert (
            "WARNING Other accounts of this machine can change .sentiment (it belongs to nobody, with the rights"
            in told
        )
        assert "with it they run code as root. Move it to a directory of this account." in told
    assert mode(state / "sentiment.db") == 0o600
