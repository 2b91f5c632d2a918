"""A job that is killed goes on where it was; what would spoil its output is refused."""

import os
import signal
import subprocess

import pytest

from tests.commands import run_command
from tests.e2e.conftest import wait_for
from tests.scoring.conftest import Desk, read_rows, rows_of, write_rows

ROWS = 9_000


@pytest.mark.full
@pytest.mark.parametrize(
    ("module", "function", "moment", "given", "done"),
    [
        ("scoring.parts", "Parts.write", "before", "csv", None),
        ("scoring.parts", "Parts.write", "after", "csv", 4096),
        ("scoring.parts", "Parts.write", "after", "csv.gz", 4096),
        ("scoring.parts", "Parts.write", "after", "parquet", 4096),
        ("scoring.parts", "Parts.write", "after", "jsonl", 4096),
        ("scoring.output", "join", "before", "parquet", ROWS),
        ("scoring.output", "_join_rejections", "after", "csv", ROWS),
        ("scoring.job", "will_replace_output", "after", "csv", ROWS),
        ("scoring.job", "remove_work", "before", "csv", ROWS),
    ],
)
def test_killed_anywhere_the_same_command_ends_it(
    desk: Desk, module: str, function: str, moment: str, given: str, done: int | None
) -> None:
    rows = rows_of(ROWS)
    write_rows(desk.folder / f"in.{given}", rows)
    command = ["score", f"in.{given}", "--out", f"out.{given}"]
    killed = run_command(command, desk.folder, desk.environment, kill_at=(module, function, moment))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    told = desk.score(*command[1:])
    assert (f"Resuming after {done:,} rows" in told) if done else ("Resuming" not in told)
    assert read_rows(desk.folder / f"out.{given}") == desk.scored(rows)


@pytest.fixture
def cut_off(desk: Desk) -> Desk:
    """A job that was ended after its first part."""
    write_rows(desk.folder / "in.csv", rows_of(20_000))
    process = subprocess.Popen(
        desk.command("in.csv", "--out", "out.csv"), cwd=desk.folder, env=desk.environment, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: bool(list(desk.folder.glob("out.csv.partial/*.parquet"))), 60, "the first part")
    process.kill()
    process.wait()
    assert not (desk.folder / "out.csv").exists()
    return desk


def test_another_job_is_not_mixed_with_one_that_was_cut_off(cut_off: Desk) -> None:
    command = ["in.csv", "--out", "out.csv"]
    assert "it used version 1, this one would use 2 (--version)" in cut_off.refused(*command, "--version", "2")
    write_rows(cut_off.folder / "more.csv", rows_of(10))
    assert "more.csv was not among its inputs" in cut_off.refused("in.csv", "more.csv", "--out", "out.csv")
    assert "its columns were" in cut_off.refused(*command, "--text-column", "note")
    write_rows(cut_off.folder / "in.csv", rows_of(10))
    assert "in.csv has changed since" in cut_off.refused(*command)
    cut_off.score(*command, "--overwrite")
    assert read_rows(cut_off.folder / "out.csv") == cut_off.scored(rows_of(10))


def test_one_process_at_a_time(cut_off: Desk) -> None:
    process = subprocess.Popen(
        cut_off.command("in.csv", "--out", "out.csv"),
        cwd=cut_off.folder,
        env=cut_off.environment,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert b"Resuming after" in process.stderr.readline()
    os.kill(process.pid, signal.SIGSTOP)
    try:
        assert "is being written by another process" in cut_off.refused("in.csv", "--out", "out.csv")
    finally:
        os.kill(process.pid, signal.SIGCONT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert [row["id"] for row in read_rows(cut_off.folder / "out.csv")] == list(range(20_000))


def test_what_exists_is_not_overwritten(desk: Desk) -> None:
    write_rows(desk.folder / "in.csv", rows_of(10))
    (desk.folder / "out.csv").write_text("mine")
    assert "exists. Name another output, or add --overwrite" in desk.refused("in.csv", "--out", "out.csv")
    assert (desk.folder / "out.csv").read_text() == "mine"
    assert not (desk.folder / "out.csv.partial").exists()
    desk.score("in.csv", "--out", "out.csv", "--overwrite")
    assert len(read_rows(desk.folder / "out.csv")) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.csv", "--out", "out.csv"], "no.csv: no such file"),
        (["*.json", "--out", "out.csv"], "*.json: matches no file whose name ends in .csv"),
        (["in.txt", "--out", "out.csv"], "in.txt: unknown file type"),
        (["in.csv", "--out", "in.csv"], "in.csv: is also the output"),
        (["in.csv", "--out", "out.xml"], "out.xml has an unknown suffix"),
        (["in.csv", "--out", "no/out.csv"], "is not a folder, so out.csv cannot be written there"),
        (["in.csv", "--out", "out.csv", "--text-column", "txt"], "did you mean 'text'?"),
        (["in.csv", "--out", "out.csv", "--version", "9"], "Version 9 is not in"),
        (["bad.parquet", "--out", "out.csv"], "bad.parquet cannot be read as Parquet"),
        (["bad.csv.gz", "--out", "out.csv"], "bad.csv.gz cannot be read to its end"),
    ],
)
def test_what_cannot_be_is_told_before_the_work(desk: Desk, arguments: list[str], message: str) -> None:
    write_rows(desk.folder / "in.csv", rows_of(2))
    for name in ("in.txt", "bad.parquet", "bad.csv.gz"):
        (desk.folder / name).write_text("neither rows nor columns")
    before = set(desk.folder.iterdir())
    assert message in desk.refused(*arguments)
    assert set(desk.folder.iterdir()) == before


def test_a_full_disk_is_told_and_the_job_goes_on_when_there_is_room(desk: Desk) -> None:
    disk = desk.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be made here")
    try:
        rows = rows_of(ROWS)
        write_rows(desk.folder / "in.jsonl", rows)
        assert "the disk is full" in desk.refused("in.jsonl", "--out", "disk/out.jsonl")
        assert not (disk / "out.jsonl").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        desk.score("in.jsonl", "--out", "disk/out.jsonl")
        assert read_rows(disk / "out.jsonl") == desk.scored(rows)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
