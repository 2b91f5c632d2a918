"""Runs a command that ends with its parent process, and whose files other accounts cannot read.

`python die_with_parent.py PARENT GROUP NICENESS FILES COMMAND ARGUMENT…` becomes the command, with the same process id.
PARENT is the parent's process id. GROUP says whether the command leads a process group, and FILES whether it may give
other accounts access to its files. On systems other than Linux, the command may outlive its parent.
"""

import ctypes
import functools
import os
import platform
import signal
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS = 38
_SYS_SECCOMP = 317  # on x86_64
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4  # without it, older kernels slow the command down


_OWN_GROUP = "own-group"
_SAME_GROUP = "same-group"
_PRIVATE_FILES = "private-files"
_OWN_MODES = "own-modes"


def command_dying_with_parent(
    command: list[str], *, own_group: bool = False, niceness: int = 0, private_files: bool = False
) -> list[str]:
    """Return a command line that runs `command` so that it ends when this process ends.

    With `own_group`, the command leads a process group: Ctrl-C in the terminal does not reach it, and its child
    processes can be killed with it. A new session would do that too, but Linux divides CPU time among sessions first
    (autogroups, sched(7)). A low-priority command in its own session would get as much as the whole serving session.

    With a `niceness`, the command yields the CPU to this process if both need it (nice(2)).

    The umask is always 077. With `private_files`, the command cannot give other accounts access to a file later either.

    Linux ends the command when the *thread* that started it ends (prctl(2), PR_SET_PDEATHSIG). Start it from the main
    thread or from one that waits for the command, or else with `start_dying_with_parent`.
    """
    group = _OWN_GROUP if own_group else _SAME_GROUP
    files = _PRIVATE_FILES if private_files else _OWN_MODES
    return [sys.executable, __file__, str(os.getpid()), group, str(niceness), files, *command]


def start_dying_with_parent(command: list[str], *, own_group: bool = False) -> "subprocess.Popen[bytes]":
    """Start `command`, without standard input, so that it ends when this process ends, whatever thread calls this.

    Raises:
        OSError: the process cannot be started.
    """
    line = command_dying_with_parent(command, own_group=own_group)
    return _starter().submit(subprocess.Popen, line, stdin=subprocess.DEVNULL).result()


@functools.cache
def _starter() -> ThreadPoolExecutor:
    """Return the one thread that starts commands; it lives as long as this process."""
    return ThreadPoolExecutor(1, thread_name_prefix="process starter")


def main() -> None:
    """Have the kernel send SIGTERM when the parent dies, then become the command."""
    parent, group, niceness, files, *command = sys.argv[1:]
    os.umask(0o077)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if files == _PRIVATE_FILES and platform.machine() == "x86_64":
            _keep_files_private(libc)
    # The kernel sends no signal if the parent died before prctl was called.
    if os.getppid() != int(parent):
        sys.exit("The parent died before the command began.")
    if group == _OWN_GROUP:
        os.setpgid(0, 0)
    os.nice(int(niceness))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]} cannot be run: {error.strerror}")


def _keep_files_private(libc: ctypes.CDLL) -> None:
    """Make fchmod(2) do nothing, but report success, if it would give other accounts access to a file.

    The umask alone is not enough. Triton's Python backend creates its shared memory with Boost, which sets the mode to
    0644 afterwards, and the segment contains all texts. Without seccomp filters in the kernel this has no effect, so
    the supervisor checks the segments too.
    """

    def step(code: int, if_true: int, if_false: int, value: int) -> bytes:
        return struct.pack("<HBBI", code, if_true, if_false, value)

    load, equal, any_bit, end = 0x20, 0x15, 0x45, 0x06  # linux/bpf_common.h
    program = b"".join(
        [
            step(load, 0, 0, 4),  # seccomp_data.arch
            step(equal, 0, 5, 0xC000003E),  # AUDIT_ARCH_X86_64
            step(load, 0, 0, 0),  # seccomp_data.nr
            step(equal, 0, 3, 91),  # fchmod
            step(load, 0, 0, 24),  # the low half of args[1], the mode
            step(any_bit, 0, 1, 0o077),
            step(end, 0, 0, 0x00050000),  # SECCOMP_RET_ERRNO, with the errno 0
            step(end, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        ]
    )
    steps = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(steps))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        libc.syscall(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_SPEC_ALLOW, described)


if __name__ == "__main__":
    main()
