"""What SECURITY.md says, for its test and for `make strangers`.

`python -m tests.security_page` prints the tests that the page names, as pytest takes them.
"""

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "SECURITY.md"
_TEST = re.compile(r"`([\w/]+\.py(?:::\w+)?)`")


def table(heading: str, first: str) -> list[list[str]]:
    """The rows of the table below `heading` whose first column is called `first`; an empty cell means the one above."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = section.partition(f"\n| {first} |")[2].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def named_in(cell: str) -> list[str]:
    """The tests that a cell names, from the root of the project."""
    return [f"tests/{name}" for name in _TEST.findall(cell)]


def all_tests() -> list[str]:
    """Every test that the page names."""
    rows = [*table("Threat model", "who"), *table("Known weaknesses of the bundled Triton", "key")]
    return sorted({name for row in rows for name in named_in(row[-1])})


if __name__ == "__main__":
    print(*all_tests())
