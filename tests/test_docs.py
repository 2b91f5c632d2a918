"""The README and the pages of docs/: whole, linked, true of the code, and each of their commands run by a test."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.home import HOME
from common.settings import ENV_PREFIX, Settings
from docs.generate_reference import PAGES as WRITTEN
from tests.pages import PAGES, PROJECT, blocks

RUN_BY = {
    "README.md": "tests/e2e/test_pages.py",
    "docs/access.md": "tests/gateway/auth/test_access_page.py",
    "docs/client-and-scoring.md": "tests/scoring/test_docs.py",
    "docs/deploying.md": "tests/deploy/test_docs.py",
    "docs/developing.md": "tests/test_docs.py",
    "docs/how-to-bert-base.md": "tests/trainer/test_base_model.py",
    "docs/how-to-gpu.md": "tests/deploy/test_docs.py",
    "docs/how-to-own-data.md": "tests/e2e/test_pages.py",
    "docs/how-to-own-model.md": "tests/e2e/test_own_model.py",
    "docs/how-to-postgresql.md": "tests/storage/test_postgresql_page.py",
    "docs/how-to-roll-back.md": "tests/e2e/test_pages.py",
    "docs/loop.md": "tests/e2e/test_pages.py",
    "docs/many-machines.md": "tests/lifecycle/deployment/test_many_machines.py",
    "docs/moving-to-a-newer-triton.md": "tests/deploy/test_docs.py",
    "docs/operations.md": "tests/e2e/test_pages.py",
    "docs/quality.md": "tests/lifecycle/cli/test_label_command.py",
    "docs/releases.md": "tests/lifecycle/canary/test_release.py",
    "docs/training.md": "tests/trainer/test_processes.py",
    # Its first steps are those of the fixture that test_pages.py stands on.
    "docs/tutorial.md": "tests/e2e/conftest.py",
}
"""The test that runs the commands of a page, or compares them with what they name."""


def test_each_page_with_commands_has_a_test_that_reads_it() -> None:
    assert {page for page in PAGES if blocks(page) or blocks(page, "python")} == RUN_BY.keys()
    for page, test in RUN_BY.items():
        assert Path(page).name in (PROJECT / test).read_text(encoding="utf-8"), page


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if link.startswith(("http:", "https:")):
            continue
        name, _, anchor = link.partition("#")
        target = (PROJECT / page).parent / name if name else PROJECT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


def test_index_leads_to_each_page() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)", PAGES["docs/README.md"]))
    assert linked == {Path(page).name for page in PAGES if page.startswith("docs/")} - {"README.md"}


@pytest.mark.parametrize("page", WRITTEN)
def test_reference_is_what_the_code_says(page: str) -> None:
    assert blocks("docs/developing.md")[0] == "python -m docs.generate_reference"
    assert (PROJECT / "docs" / page).read_text(encoding="utf-8") == WRITTEN[page](), (
        "run `python -m docs.generate_reference`"
    )


def test_each_setting_that_a_page_names_is_one() -> None:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | {HOME}
    for page, text in PAGES.items():
        assert set(re.findall(rf"\b{ENV_PREFIX}[A-Z][A-Z_]*[A-Z]\b", text)) <= known, page


def test_settings_say_what_they_are() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_tree_names_each_module() -> None:
    modules = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=PROJECT, check=True, capture_output=True, text=True
    ).stdout
    tree = PAGES["docs/developing.md"]
    for module in modules.splitlines():
        if not module.startswith("tests/") and not module.endswith("__init__.py"):
            assert re.search(rf"^\s*(\S+/)?{re.escape(Path(module).name)} ", tree, flags=re.MULTILINE), module


def test_make_help_describes_each_target() -> None:
    told = subprocess.run(["make", "help"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (PROJECT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert targets is not None
    assert re.findall(r"^(\S+) +\S.*\.$", told, flags=re.MULTILINE) == targets[1].split()


def _printed() -> Iterator[str]:
    """Yield each text that the code may print, with `…` for what varies, and whole files that print without Python."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    for module in listed.splitlines():
        if module.startswith(("tests/", "benchmarks/", "docs/")):
            continue
        for node in ast.walk(ast.parse((PROJECT / module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(map(_shown, node.values))
    for file in ("Makefile", "docker-compose.yml", "deploy/images/start_triton.sh"):
        yield (PROJECT / file).read_text(encoding="utf-8")


def _shown(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    is_home = isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name) and part.value.id == "HOME"
    return HOME if is_home else "…"


@pytest.mark.parametrize("page", ["docs/troubleshooting.md", "docs/machines.md"])
def test_messages_of_a_page_are_those_of_the_code(page: str) -> None:
    """Those of other programs are in italics, and are not compared."""
    cells = re.findall(r"^\| (.*?) \| ", PAGES[page], flags=re.MULTILINE)
    quoted = [message for cell in cells for message in re.findall(r"`([^`]+)`", re.sub(r"\*`.*?`\*", "", cell))]
    assert quoted
    printed = list(_printed())
    for message in quoted:
        fixed = message.split("…")
        assert max(map(len, fixed)) >= 10, f"too little of it is fixed: {message}"
        wanted = re.compile(".*".join(map(re.escape, fixed)), flags=re.DOTALL)
        assert any(map(wanted.search, printed)), f"{page} quotes {message!r}, which is in no module"


def test_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 250
