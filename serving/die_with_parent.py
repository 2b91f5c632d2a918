"""Runs a command that ends when the process that started it does, however that one ends.

`python die_with_parent.py PARENT COMMAND ARGUMENT…` becomes the command, so its process id stays; PARENT is the
process id that it must not outlive. Where the kernel is not Linux, the command runs on its own.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def command_dying_with_parent(command: list[str]) -> list[str]:
    """The command line that this process can run `command` with, so that it ends when this process does."""
    return [sys.executable, __file__, str(os.getpid()), *command]


def main() -> None:
    """Have the kernel send SIGTERM when the parent dies, then become the command."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # Not told of a parent that died before it asked to be told.
    if os.getppid() != int(sys.argv[1]):
        sys.exit("The parent died before the command began.")
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
