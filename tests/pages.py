"""What stands in the README and on the pages of docs/."""

import re
from pathlib import Path

ORDERED = "tests/e2e/test_pages.py", "tests/e2e/test_running.py"
"""Modules whose tests build on the ones before, on one pipeline; the last test of the second ends it."""
PROJECT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(PROJECT)): path.read_text(encoding="utf-8")
    for path in [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
}


def blocks(page: str, language: str = "bash") -> list[str]:
    """The blocks of a page in a language, or in none, in its order."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    return [code.strip() for found, code in fenced if found == language]


def block(page: str, beginning: str) -> str:
    """The one block of commands that begins so."""
    (found,) = [code for code in blocks(page) if code.startswith(beginning)]
    return found


def check_excerpt(page: str, beginning: str, printed: str) -> None:
    """Hold what the page shows below a block of commands against what they print; numbers may differ.

    Raises:
        AssertionError: a line that is shown was not printed.
    """
    _, _, below = PAGES[page].partition(f"```bash\n{block(page, beginning)}\n```\n")
    shown = re.match(r"\n```\n(.*?)^```", below, flags=re.MULTILINE | re.DOTALL)
    assert shown, f"{page} shows nothing below {beginning}"
    for line in filter(None, map(str.strip, shown[1].splitlines())):
        # What is left out, in the middle of a line too, is told by dots.
        parts = [re.sub(r"\d+", r"\\d+", re.sub(r"(\\ )+", " +", re.escape(part))) for part in line.split("…")]
        assert re.search(".*".join(parts), printed), f"{page} shows {line!r}, and this was printed:\n{printed}"
