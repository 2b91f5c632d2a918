"""A command that ends with the process that started it."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from serving.host.die_with_parent import command_dying_with_parent


def parent_of(command: list[str], after: str) -> subprocess.Popen[str]:
    """A process that starts `command` to die with it, prints the command's process id, and then does `after`."""
    code = (
        "import os, subprocess; from serving.host.die_with_parent import command_dying_with_parent; "
        f"print(subprocess.Popen(command_dying_with_parent({command!r})).pid, flush=True); {after}"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def leftovers() -> Iterator[list[psutil.Process]]:
    """Processes that must not outlive a test."""
    processes: list[psutil.Process] = []
    yield processes
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two
        return False


def ends_within(process: psutil.Process, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while runs(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_command_keeps_its_arguments_its_process_id_and_its_exit_status() -> None:
    code = "import os, sys; print(os.getpid(), sys.argv[1:]); sys.exit(7)"
    process = subprocess.Popen(
        command_dying_with_parent([sys.executable, "-c", code, "a b", "--c"]), stdout=subprocess.PIPE, text=True
    )
    output, _ = process.communicate(timeout=30)
    assert output == f"{process.pid} ['a b', '--c']\n"
    assert process.returncode == 7


def test_command_leads_a_group_only_where_asked_and_stays_in_the_session() -> None:
    code = "import os; print(os.getpgrp() == os.getpid(), os.getsid(0))"
    for own_group in (True, False):
        command = command_dying_with_parent([sys.executable, "-c", code], own_group=own_group)
        printed = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
        assert printed == f"{own_group} {os.getsid(0)}\n"


def test_command_gives_way_where_asked() -> None:
    own = os.nice(0)
    command = command_dying_with_parent([sys.executable, "-c", "import os; print(os.nice(0))"], niceness=3)
    assert subprocess.run(command, capture_output=True, text=True, timeout=30).stdout == f"{min(own + 3, 19)}\n"


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "exits"])
def test_command_does_not_outlive_its_parent(killed: bool, leftovers: list[psutil.Process]) -> None:
    with parent_of(["sleep", "60"], "input()") as parent:
        assert parent.stdin
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        leftovers.append(child)
        deadline = time.monotonic() + 20
        while child.name() != "sleep":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert runs(child)
        if killed:
            parent.kill()
        else:
            parent.stdin.write("\n")
            parent.stdin.close()
        assert ends_within(child, 10)


def test_command_does_not_begin_after_its_parent_is_gone(leftovers: list[psutil.Process]) -> None:
    """The parent is gone before the child can ask the kernel to be told of its end."""
    with parent_of(["sleep", "60"], "os._exit(0)") as parent:
        assert parent.stdout
        with contextlib.suppress(psutil.NoSuchProcess):  # gone already, as it should be
            leftovers.append(psutil.Process(int(parent.stdout.readline())))
    assert all(ends_within(child, 5) for child in leftovers)


def test_command_outlives_the_thread_that_started_it_but_not_the_process(leftovers: list[psutil.Process]) -> None:
    """The kernel's signal follows the thread, and threads of a pool end while the pipeline runs."""
    code = (
        "import threading; from serving.host.die_with_parent import start_dying_with_parent\n"
        "def work():\n"
        "    print(start_dying_with_parent(['sleep', '60']).pid, flush=True)\n"
        "    input()\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join(); print('ended', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        leftovers.append(child)
        deadline = time.monotonic() + 60
        while child.name() != "sleep":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "ended\n"
        time.sleep(0.5)  # for a signal
        assert runs(child)
        parent.kill()
        assert ends_within(child, 10)
