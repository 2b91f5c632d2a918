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


def test_an_account_that_has_them_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOGNAME", "anna")
    complete_account(tmp_path / "other")
    assert (Path.home(), getpass.getuser()) == (tmp_path, "anna")
