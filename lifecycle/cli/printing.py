"""Output of commands: tables for people, JSON for programs."""

import json
import shutil
import textwrap
from collections.abc import Sequence


def print_json(value: object) -> None:
    """Print a value as JSON, for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str = "Nothing yet.") -> None:
    """Print columns as wide as their content; the last column is wrapped to the rest of the terminal's width.

    Without rows, print `empty`.
    """
    if not rows:
        print(empty)
        return
    widths = [max(len(row[column]) for row in [columns, *rows]) for column in range(len(columns) - 1)]
    left = max(shutil.get_terminal_size((120, 40)).columns - sum(widths) - 2 * len(widths), 30)
    for row in [columns, *rows]:
        lines = textwrap.wrap(row[-1], left) or [""]
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))
        print(start + lines[0])
        for line in lines[1:]:
            print(" " * len(start) + line)
