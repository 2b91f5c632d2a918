"""Where `.env` is, and where relative paths start: in the home directory, wherever the process was started."""

from pathlib import Path

import pytest

from common.errors import PipelineError
from common.home import HOME, home
from common.settings import load_settings
from common.sqlite_url import sqlite_url
from tests.pages import PROJECT

ELSEWHERE = Path("/")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, and a process that runs elsewhere."""
    monkeypatch.chdir(ELSEWHERE)
    monkeypatch.setenv(HOME, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_it_is_the_checkout_by_default(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ELSEWHERE)
    monkeypatch.delenv(HOME)
    if value is not None:
        monkeypatch.setenv(HOME, value)
    assert home() == PROJECT
    assert load_settings().model_dir == PROJECT / "model"


def test_paths_and_the_env_file_count_from_it(directory: Path) -> None:
    (directory / "encoder").mkdir()
    (directory / ".env").write_text(
        "SENTIMENT_TRAIN_DATA=data/train.csv\nSENTIMENT_VAL_DATA=/srv/val.csv\nSENTIMENT_TLS_KEY=key.pem\n"
        "SENTIMENT_BASE_MODEL=encoder\nSENTIMENT_DATABASE_URL=sqlite:///feedback.db?timeout=5\n"
        "SENTIMENT_MLFLOW_TRACKING_URI=sqlite+pysqlite:///runs.db\n"
    )
    settings = load_settings()
    assert settings.train_data == directory / "data" / "train.csv"
    assert settings.val_data == Path("/srv/val.csv")
    assert (settings.tls_key, settings.tls_certificate) == (directory / "key.pem", None)
    assert settings.state_dir == directory / ".sentiment"
    assert settings.model_repository == directory / "triton_repo"
    assert settings.base_model_source == str(directory / "encoder")
    assert settings.database == f"{sqlite_url(directory / 'feedback.db')}?timeout=5"
    assert settings.mlflow_uri == sqlite_url(directory / "runs.db")


def test_a_tilde_is_the_accounts_directory_which_no_shell_puts_in(
    directory: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = tmp_path_factory.mktemp("account")
    (account / "encoder").mkdir()
    monkeypatch.setenv("HOME", str(account))
    (directory / ".env").write_text(
        "SENTIMENT_TRAIN_DATA=~/train.csv\nSENTIMENT_STATE_DIR=~\nSENTIMENT_BASE_MODEL=~/encoder\n"
        "SENTIMENT_DATABASE_URL=sqlite:///~/feedback.db\nSENTIMENT_MODEL_DIR=model~\n"
    )
    settings = load_settings()
    assert settings.train_data == account / "train.csv"
    assert settings.state_dir == account
    assert settings.base_model_source == str(account / "encoder")
    assert settings.database == sqlite_url(account / "feedback.db")
    assert settings.model_dir == directory / "model~"
    (account / "pipeline").mkdir()
    monkeypatch.setenv(HOME, "~/pipeline")
    assert load_settings().model_repository == account / "pipeline" / "triton_repo"


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "~/mlruns", "file:mlruns", "file:./mlruns"])
def test_a_directory_of_runs_that_would_count_from_anywhere_is_refused(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENTIMENT_MLFLOW_TRACKING_URI", uri)
    with pytest.raises(PipelineError, match=r"MLFLOW_TRACKING_URI=…: .*relative directory is no store; use sqlite:///"):
        load_settings()


@pytest.mark.usefixtures("directory")
@pytest.mark.parametrize("uri", ["/srv/mlruns", "file:///srv/mlruns", "http://mlflow:5000", "databricks"])
def test_other_stores_of_runs_are_for_mlflow_to_judge(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_MLFLOW_TRACKING_URI", uri)
    assert load_settings().mlflow_uri == uri


def test_paths_are_short_for_those_who_work_there(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    assert load_settings().model_repository == Path("triton_repo")


def test_a_current_directory_that_was_deleted_is_no_fault(
    directory: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted = tmp_path_factory.mktemp("deleted")
    monkeypatch.chdir(deleted)
    deleted.rmdir()
    assert load_settings().state_dir == directory / ".sentiment"


@pytest.mark.usefixtures("directory")
def test_names_of_the_hub_and_urls_of_servers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_DATABASE_URL", "postgresql+psycopg://me:secret@host/name")
    monkeypatch.setenv("SENTIMENT_MLFLOW_TRACKING_URI", "http://mlflow:5000")
    settings = load_settings()
    assert settings.base_model_source == "bert-base-uncased"
    assert settings.database == "postgresql+psycopg://me:secret@host/name"
    assert settings.mlflow_uri == "http://mlflow:5000"


def test_the_env_file_cannot_name_it(directory: Path) -> None:
    (directory / ".env").write_text(f"{HOME}=/srv\n")
    with pytest.raises(PipelineError, match=rf"{HOME} names the directory of {directory}/\.env, so set it in the env"):
        load_settings()


def test_the_state_that_an_earlier_version_left_elsewhere_is_told_and_not_begun_anew(
    directory: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = tmp_path_factory.mktemp("earlier")
    (earlier / ".sentiment").mkdir()
    monkeypatch.chdir(earlier)
    assert load_settings().state_dir == directory / ".sentiment"  # whoever names the home directory has chosen it
    monkeypatch.delenv(HOME)
    monkeypatch.setattr("common.home._CHECKOUT", directory)
    with pytest.raises(PipelineError, match=rf"To go on with that state, set {HOME}={earlier}\."):
        load_settings()
    (earlier / "state").mkdir()
    monkeypatch.setenv("SENTIMENT_STATE_DIR", "state")
    with pytest.raises(PipelineError, match=rf"{earlier}/state is the state of an earlier version"):
        load_settings()
    monkeypatch.setenv("SENTIMENT_STATE_DIR", str(directory / "another"))
    load_settings()
    monkeypatch.delenv("SENTIMENT_STATE_DIR")
    (directory / ".sentiment").mkdir()
    assert load_settings().state_dir == directory / ".sentiment"


def test_settings_that_an_earlier_version_read_elsewhere_are_told_and_not_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(HOME)
    (tmp_path / ".env").write_text("PORT=1\n")
    load_settings()
    (tmp_path / ".env").write_text("PORT=1\nSENTIMENT_PORT=9000\n")
    with pytest.raises(PipelineError, match=rf"{tmp_path}/\.env has settings, such as SENTIMENT_PORT, but {PROJECT}/"):
        load_settings()
    monkeypatch.setenv(HOME, str(PROJECT))
    assert load_settings().port == 8000
    monkeypatch.setenv(HOME, str(tmp_path))
    assert load_settings().port == 9000


def test_a_home_that_does_not_exist_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME, str(tmp_path / "none"))
    with pytest.raises(PipelineError, match=rf"{HOME}={tmp_path}/none: there is no such directory"):
        load_settings()
