"""The page about the architecture is true of the code, and folders import each other in one direction."""

import ast
import graphlib
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PAGE = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
TABLE = {
    folder: set(re.findall(r"`([\w/]+)`", imported))
    for folder, imported in re.findall(r"^\| `([\w/]+)/` \| (.+) \|$", PAGE, flags=re.MULTILINE)
}
"""By folder, the other folders that it imports: of a sub-folder, those of the same folder."""
NOT_THE_PRODUCT = {"benchmarks", "client", "deploy", "docs", "tests"}


def product() -> list[Path]:
    """All modules of the product, from the root of the project."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=PROJECT, check=True, capture_output=True, text=True)
    paths = [Path(name) for name in listed.stdout.split() if (PROJECT / name).is_file()]
    return [path for path in paths if path.parts[0] not in NOT_THE_PRODUCT]


def folder_of(module: Path) -> str:
    """Where a module lies; one that lies in no folder is named itself."""
    return module.parent.as_posix() if len(module.parts) > 1 else module.name


def imported_names(module: Path) -> Iterator[str]:
    """The full names that a module imports, wherever it does, each `package.module` or `package.module.name`."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module} has a relative import"
            assert not node.level, f"{module} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder_graph(root: Path, modules: Iterable[Path]) -> dict[str, set[str]]:
    """By folder of `modules`, the other folders whose modules it imports."""
    known: dict[str, str] = {}
    for module in modules:
        name = ".".join(module.with_suffix("").parts)
        known[name.removesuffix(".__init__")] = folder_of(module)
    graph: dict[str, set[str]] = {folder: set() for folder in known.values()}
    for module in modules:
        for name in imported_names(root / module):
            target = known.get(name) or known.get(name.rpartition(".")[0])
            if target is not None:
                graph[folder_of(module)].add(target)
    return {folder: targets - {folder} for folder, targets in graph.items()}


GRAPH = folder_graph(PROJECT, product())
TOP = {folder for folder in GRAPH if "/" not in folder and not folder.endswith(".py")} | {
    folder.partition("/")[0] for folder in GRAPH if "/" in folder
}


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Folders that import each other in a circle; empty where there are none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found: list[str] = error.args[1]
        return found[::-1]
    return []


def test_no_folders_import_each_other_in_a_circle() -> None:
    assert cycle(GRAPH) == []


def test_a_circle_is_found(tmp_path: Path) -> None:
    sources = {
        "first/deep/one.py": "from second import two",
        "second/two.py": "def late() -> None:\n    import third.three",
        "third/three.py": "from first.deep.one import name",
        "main.py": "import first.deep.one",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    graph = folder_graph(tmp_path, [Path(name) for name in sources])
    assert graph == {"first/deep": {"second"}, "second": {"third"}, "third": {"first/deep"}, "main.py": {"first/deep"}}
    assert set(cycle(graph)) == {"first/deep", "second", "third"}


@pytest.mark.parametrize("top", sorted(TOP))
def test_a_folder_imports_of_others_what_the_page_says(top: str) -> None:
    folders = [folder for folder in GRAPH if folder.partition("/")[0] == top]
    others = {target.partition("/")[0] for folder in folders for target in GRAPH[folder]} - {top}
    assert others == TABLE[top]


@pytest.mark.parametrize("folder", sorted(folder for folder in GRAPH if "/" in folder))
def test_a_sub_folder_imports_of_its_folder_what_the_page_says(folder: str) -> None:
    top = folder.partition("/")[0]
    others = {target.removeprefix(f"{top}/") for target in GRAPH[folder] if target.partition("/")[0] == top}
    assert others == TABLE[folder]


def test_the_page_has_no_other_folder() -> None:
    assert TABLE.keys() == TOP | {folder for folder in GRAPH if "/" in folder}


def test_the_page_has_each_folder_below_those_that_it_imports() -> None:
    above: set[str] = set()
    for folder, imported in TABLE.items():
        top, is_deeper, _ = folder.partition("/")
        assert {f"{top}/{name}" if is_deeper and name != top else name for name in imported} <= above
        above.add(folder)


def test_each_file_that_is_named_is_there() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    assert len(named) > 15
    assert [name for name in sorted(named) if not (PROJECT / name).is_file()] == []
