"""The page about the architecture is true of the code."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PAGE = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
TOLD = {
    folder: set(re.findall(r"`(\w+)`", others))
    for folder, others in re.findall(r"^\| `(\w+)/` \| (.+) \|$", PAGE, flags=re.MULTILINE)
}


def imported(module: Path) -> set[str]:
    """First parts of the names of all modules that one imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("folder", sorted(TOLD))
def test_folders_import_of_each_other_what_is_told(folder: str) -> None:
    modules = sorted((PROJECT / folder).rglob("*.py"))
    assert modules
    others = set().union(*map(imported, modules)) & TOLD.keys() - {folder}
    assert others == TOLD[folder]


def test_every_folder_of_the_product_is_told() -> None:
    listed = subprocess.run(["git", "ls-files", "*/*.py"], cwd=PROJECT, check=True, capture_output=True, text=True)
    folders = {name.partition("/")[0] for name in listed.stdout.split()}
    assert folders - {"benchmarks", "deploy", "tests"} == TOLD.keys()


def test_each_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (PROJECT / name).is_file()] == []
