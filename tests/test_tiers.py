"""The fast tier stays fast: what starts a pipeline is in the full tier, but for one story."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.pages import PROJECT

STORY = "tests/e2e/test_story.py"
STARTS_A_PIPELINE = re.compile(r"(?<![.\w])(serving|running_pipeline|tutorial_pipeline)\(")
FULL = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.full\b", re.MULTILINE)


def test_each_module_that_starts_a_pipeline_is_in_the_full_tier() -> None:
    starting = {
        str(path.relative_to(PROJECT)): FULL.search(content) is not None
        for path in (PROJECT / "tests").rglob("test_*.py")
        if STARTS_A_PIPELINE.search(content := path.read_text(encoding="utf-8"))
    }
    assert [module for module, full in starting.items() if not full] == [STORY]


def test_a_run_leaves_no_process_behind(tmp_path: Path) -> None:
    """A test that starts a process in a session of its own, and forgets it."""
    (tmp_path / "test_forgets.py").write_text(
        "import subprocess\n\ndef test_forgets():\n"
        "    process = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"    open({str(tmp_path / 'started')!r}, 'w').write(str(process.pid))\n"
        "    process.returncode = 0\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "tests.run", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    forgotten = int((tmp_path / "started").read_text())
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 passed" in ended.stdout
    assert f"Left running by the tests: {forgotten} sleep 600" in ended.stderr
    assert not psutil.pid_exists(forgotten)


@pytest.mark.parametrize(("failures", "status"), [(1, 0), (2, 1)])
def test_a_failed_test_is_run_once_more(tmp_path: Path, failures: int, status: int) -> None:
    """It fails its first times, and a file counts them."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_fails.py").write_text(
        "from pathlib import Path\n\ndef test_fails():\n"
        "    with open(Path(__file__).with_name('times'), 'a+') as times:\n"
        "        times.write('.')\n        times.seek(0)\n"
        f"        assert len(times.read()) > {failures}\n\ndef test_passes():\n    pass\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "tests.run", "--again", "-q"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert (tmp_path / "times").read_text() == ".."
    assert ("passed by themselves:\n  test_fails.py::test_fails" in ended.stdout) == (status == 0)


def test_a_process_of_tests_that_dies_fails_its_test_and_no_other(tmp_path: Path) -> None:
    """It dies in its last module, once, when the other process of tests is about to end."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for module in "abcdef":
        (tmp_path / f"test_{module}.py").write_text(
            "import os\nfrom pathlib import Path\n\n"
            + "".join(f"def test_{number}():\n    pass\n\n" for number in range(3))
            + "def test_dies():\n"
            f"    if {module == 'f'} and not Path('died').exists():\n"
            "        Path('died').touch()\n        os._exit(7)\n\ndef test_last():\n    pass\n"
        )
    ended = subprocess.run(
        [sys.executable, "-m", "tests.run", "--again", "-n", "2", "-p", "tests.schedule", "-v"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "crashed while running 'test_f.py::test_dies'" in ended.stdout
    assert "of the tests ended with the status 7." in ended.stdout
    assert "1 failed, 29 passed" in ended.stdout
    assert "passed by themselves:\n  test_f.py::test_dies" in ended.stdout
