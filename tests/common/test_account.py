"""An account without a home directory or a name, as in containers: libraries find both nevertheless."""

import getpass
import os
import pwd
from pathlib import Path

import pytest

from common.account import complete_account

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


def nobody(_: int) -> None:
    raise KeyError("uid not found")


def test_an_account_without_home_and_name_gets_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", *NAMES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(RuntimeError):
        Path.home()
    monkeypatch.setenv("LOGNAME", "")  # so that pytest restores it
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    complete_account(tmp_path)
    assert Path.home() == tmp_path
    assert getpass.getuser() == f"user-{os.geteuid()}"


def test_a_home_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Docker sets it for an account that /etc/passwd does not have."""
    monkeypatch.setattr(os, "access", lambda *_: False)  # root can write everywhere
    (tmp_path / "home/.cache").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    complete_account(tmp_path)
    assert Path.home() == tmp_path / "home", "models may be in its cache"
    (tmp_path / "home/.cache").rmdir()
    complete_account(tmp_path)
    assert Path.home() == tmp_path


def test_an_account_that_has_them_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "anna")
    complete_account(tmp_path / "other")
    assert (Path.home(), getpass.getuser()) == (tmp_path, "anna")
