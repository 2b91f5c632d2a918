"""docs/access.md: its commands do what it says, on a database that no gateway needs to run for."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import PROJECT, blocks

pytestmark = pytest.mark.full


def test_the_commands_for_keys(tmp_path: Path) -> None:
    (block,) = blocks("docs/access.md")
    printed = []
    for command in block.splitlines():
        python, script, *arguments = command.split()
        assert (python, script) == ("python", "app.py")
        ended = subprocess.run(
            [sys.executable, PROJECT / script, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == 0, ended.stderr
        printed.append(ended.stdout)
    website, prometheus, anna, listed, revoked = printed
    assert re.fullmatch(r"sentiment_[\w-]{43}\n", website)
    assert re.fullmatch(r"sentiment_[\w-]{43}\n", prometheus)
    assert re.fullmatch(r"sentiment_[\w-]{43}\n", anna)
    assert [line.partition("  since ")[0] for line in listed.splitlines()] == [
        "website  feedback, predict",
        "prometheus  read",
        "anna  feedback, read, texts",
    ]
    assert revoked == "Revoked the key prometheus.\n"
