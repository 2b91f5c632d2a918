"""Settings come from the environment and from .env, and say what is wrong with them."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from common.errors import PipelineError
from common.settings import former_names, load_settings
from common.triton_addresses import socket_address


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_environment_goes_before_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("SENTIMENT_PORT=9000\nSENTIMENT_SEED=5\n")
    monkeypatch.setenv("SENTIMENT_PORT", "9100")
    settings = load_settings()
    assert (settings.port, settings.seed) == (9100, 5)
    assert settings.triton_grpc_port == 9101


def test_unknown_names_are_told_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_TRAIN_DATE", "x.csv")
    Path(".env").write_text("SENTIMENT_POTR=9000\n")
    with pytest.raises(PipelineError) as told:
        load_settings()
    assert "SENTIMENT_TRAIN_DATE (in the environment) is not a setting; did you mean SENTIMENT_TRAIN_DATA?" in str(
        told.value
    )
    assert "SENTIMENT_POTR (in .env) is not a setting; did you mean SENTIMENT_PORT?" in str(told.value)


def test_a_setting_that_was_removed_is_passed_over_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert former_names() == []
    monkeypatch.setenv("SENTIMENT_TRITON_HTTP", "true")
    load_settings()
    (warning,) = former_names()
    assert warning.startswith("SENTIMENT_TRITON_HTTP is no longer a setting: ")


def test_a_former_name_works_and_is_told_with_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("SENTIMENT_BAKE_MINUTES=5\n")
    assert load_settings().monitor_minutes == 5
    assert former_names() == ["SENTIMENT_BAKE_MINUTES is now SENTIMENT_MONITOR_MINUTES. Rename it."]
    monkeypatch.setenv("SENTIMENT_MONITOR_MINUTES", "7")
    assert load_settings().monitor_minutes == 7
    monkeypatch.setenv("SENTIMENT_MONITOR_MINUTES", "-1")
    with pytest.raises(PipelineError, match="SENTIMENT_MONITOR_MINUTES='-1': "):
        load_settings()


def test_all_wrong_values_are_told_at_once_with_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the pipeline's own words, not in those of the library that reads them."""
    expected = [
        ("first_version", "fast", "not allowed. Allowed: `quick`, `full`."),
        ("port", "http", "not allowed. Allowed: whole number, from 1 to 65532."),
        ("docs", "maybe", "not allowed. Allowed: `true`, `false`."),
        ("caller_limit", "5/s", "not allowed. Rate limit in texts per caller, such as `100/second`; also `/minute`, "),
        ("epochs", "0", "not allowed. Allowed: whole number, from 1."),
        ("min_accuracy", "nan", "not allowed. Allowed: number, from 0 to 1."),
        ("monitor_minutes", "inf", "not allowed. Allowed: number, from 0."),
        ("release_steps", "a", "use ascending percentages, such as 5,25,50"),
    ]
    for name, value, _ in expected:
        monkeypatch.setenv(f"SENTIMENT_{name.upper()}", value)
    monkeypatch.setenv("SENTIMENT_PROT", "1")
    with pytest.raises(PipelineError) as told:
        load_settings()
    first, unknown, *lines = str(told.value).splitlines()
    assert (first, unknown.split()[0], len(lines)) == ("Invalid settings:", "SENTIMENT_PROT", len(expected))
    for name, value, fix in expected:
        assert any(line.startswith(f"  SENTIMENT_{name.upper()}={value!r}: {fix}") for line in lines), lines


@pytest.mark.parametrize("addresses", ["a@x.org; b@y.org", "Team, A <a@b.c>", "a@", "team", ",", "a@x@y"])
def test_recipients_that_are_no_addresses_are_told(monkeypatch: pytest.MonkeyPatch, addresses: str) -> None:
    monkeypatch.setenv("SENTIMENT_MAIL_TO", addresses)
    with pytest.raises(PipelineError, match=r"SENTIMENT_MAIL_TO='.*Separate addresses by commas"):
        load_settings()


@pytest.mark.parametrize("addresses", ["a@x.org,", '"Team, A" <a@b.c>', "a@x.org, B <b@localhost>", " "])
def test_recipients_are_kept_as_they_are_written(monkeypatch: pytest.MonkeyPatch, addresses: str) -> None:
    monkeypatch.setenv("SENTIMENT_MAIL_TO", addresses)
    assert load_settings().mail_to == addresses


def test_secrets_that_do_not_fit_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_TRITON_KEY", "hunter2")
    monkeypatch.setenv("SENTIMENT_OTLP_ENDPOINT", "http://me:hunter2@127.0.0.1:4318")
    with pytest.raises(PipelineError, match=r"(?s)SENTIMENT_TRITON_KEY=…: .*at least 16 ASCII characters") as told:
        load_settings()
    assert "SENTIMENT_OTLP_ENDPOINT=…: " in str(told.value)
    assert "hunter2" not in str(told.value)


def test_name_is_read_in_any_letter_case_and_is_never_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("sentiment_seed", "7")
    assert load_settings().seed == 7
    monkeypatch.setenv("sentiment_sede", "8")
    with pytest.raises(PipelineError, match=r"SENTIMENT_SEDE .*did you mean SENTIMENT_SEED\?"):
        load_settings()


def test_empty_value_of_what_may_be_unset_is_as_if_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `SENTIMENT_TRITON_URL=` in .env or in a compose file; there would be no Triton at all otherwise."""
    monkeypatch.setenv("SENTIMENT_TRITON_URL", "")
    Path(".env").write_text("SENTIMENT_MLFLOW_TRACKING_URI=\n")
    settings = load_settings()
    assert settings.triton_url is None
    assert settings.triton_address == socket_address(Path(".sentiment/triton/sockets/grpc:8001").resolve())
    assert settings.mlflow_tracking_uri is None


def test_env_file_that_is_not_utf_8_is_told() -> None:
    Path(".env").write_bytes("SENTIMENT_TRAIN_DATA=café.csv\n".encode("latin-1"))
    with pytest.raises(PipelineError, match=r"\.env.*UTF-8"):
        load_settings()


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().port = 9000  # type: ignore[misc]


def test_what_others_read_has_no_secret_of_the_settings_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_ADMIN_KEY", "the-admin-key")
    monkeypatch.setenv("SENTIMENT_DATABASE_URL", "postgresql+psycopg://me:p%40ssword-1@host/name")
    monkeypatch.setenv("SENTIMENT_MLFLOW_TRACKING_URI", "http://me:password-2@host:5000")
    monkeypatch.setenv("SENTIMENT_MAIL_PASSWORD", "password-3")
    monkeypatch.setenv("SENTIMENT_NOTIFY_URLS", "slack://token-1 mailto://token-2")
    settings = load_settings()
    secrets = ["the-admin-key", "p%40ssword-1", "p@ssword-1", "password-2", "password-3", "token-1", "token-2"]
    told = settings.without_secrets(f"{settings.database} {settings.mlflow_uri} {' '.join(secrets[:3])} password-3 ")
    told += settings.without_secrets("slack://token-1 failed; mailto://token-2 failed") + repr(settings)
    assert not [secret for secret in secrets if secret in told]
    assert "host:5000" in told
