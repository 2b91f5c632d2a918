"""Each example of docs/client-and-scoring.md is run as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serving.model_repo.protocol import MODEL_NAME
from tests.client_package import python_with_client
from tests.lifecycle.conftest import make_served, serving
from tests.pages import PROJECT, blocks
from tests.scoring.conftest import Desk, rows_of, write_rows

pytestmark = pytest.mark.full

PAGE = "docs/client-and-scoring.md"


def run(command: list[str | Path], directory: Path) -> str:
    ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_client_against_the_real_triton(tmp_path: Path, bert_bundle: Path) -> None:
    """From a directory that has nothing of the project, in an environment that has only the client."""
    (tmp_path / "package").mkdir()
    (tmp_path / "elsewhere").mkdir()
    python = python_with_client(tmp_path / "package")
    with serving(make_served(tmp_path / "served", bert_bundle)) as served:
        one, several, plain = (
            run([python, "-c", code.replace("127.0.0.1:8001", f"127.0.0.1:{served.port + 1}")], tmp_path / "elsewhere")
            for code in blocks(PAGE, "python")
        )
    label = "(Positive|Negative)"
    assert re.fullmatch(rf"1000 \['{label}', '{label}'\] 1\n", one)
    assert re.fullmatch(rf"({label} 1\n){{4}}", several)
    assert re.fullmatch(rf"\[b'{label}' b'{label}'\] \[0\.\d+ +0\.\d+ *\] 1\n", plain)
    packages = run([python, "-m", "pip", "list", "--format=freeze"], tmp_path / "elsewhere")
    assert not re.search(r"^(torch|transformers|fastapi|mlflow|sqlalchemy)==", packages, flags=re.MULTILINE)

    program = tmp_path / "elsewhere" / "program.py"
    program.write_text("from sentiment_client import Client\n\nreveal_type(Client('').predict([]).labels)\n")
    checking: list[str | Path] = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, program]
    assert 'Revealed type is "list[str]"' in run(checking, tmp_path / "elsewhere").replace("builtins.", "")


def test_commands(desk: Desk) -> None:
    assert (desk.folder / "triton_repo" / MODEL_NAME).is_dir()
    (desk.folder / "app.py").symlink_to(PROJECT / "app.py")
    (desk.folder / "more").mkdir()
    write_rows(desk.folder / "reviews.csv", rows_of(50))
    write_rows(desk.folder / "more" / "b.jsonl", rows_of(50))
    write_rows(desk.folder / "val_sentiment_data.csv", [{"text": "good", "label": "Positive"}])
    (commands,) = blocks(PAGE)
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=desk.folder,
        env=desk.environment | {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT)},
        check=True,
        capture_output=True,
        timeout=120,
    )
    for name in ("scored.parquet", "judged.jsonl.gz", "folder/reviews.csv", "folder/b.jsonl"):
        assert (desk.folder / name).is_file()
