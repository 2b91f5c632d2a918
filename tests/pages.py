"""What stands in the README and on the pages of docs/."""

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(PROJECT)): path.read_text(encoding="utf-8")
    for path in [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
}


def blocks(page: str, language: str = "bash") -> list[str]:
    """The blocks of code of a page, in its order."""
    return [
        code.strip() for code in re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    ]


def block(page: str, beginning: str) -> str:
    """The one block of commands that begins so."""
    (found,) = [code for code in blocks(page) if code.startswith(beginning)]
    return found
