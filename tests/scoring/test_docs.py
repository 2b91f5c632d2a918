"""Each example of docs/client-and-scoring.md is run as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serving.model_repo.protocol import MODEL_NAME
from tests.lifecycle.conftest import Served, make_served, serving
from tests.pages import PROJECT, blocks
from tests.scoring.conftest import Desk, rows_of, write_rows

pytestmark = pytest.mark.full

PAGE = "docs/client-and-scoring.md"


def python(served: Served, code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code.replace("127.0.0.1:8001", f"127.0.0.1:{served.port + 1}")],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def test_client_against_the_real_triton(tmp_path: Path, bert_bundle: Path) -> None:
    with serving(make_served(tmp_path, bert_bundle)) as served:
        one, several = (python(served, code) for code in blocks(PAGE, "python"))
    label = "(Positive|Negative)"
    assert re.fullmatch(rf"1000 \['{label}', '{label}'\] 1\n", one)
    assert re.fullmatch(rf"({label} 1\n){{4}}", several)


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
