"""Runs a command that ends when the process that started it does, however that one ends.

`python die_with_parent.py COMMAND ARGUMENT…` becomes the command, so its process id stays. Where the
kernel is not Linux, the command runs on its own.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def command_dying_with_parent(command: list[str]) -> list[str]:
    """The command line that runs `command` so."""
    return [sys.executable, __file__, *command]


def main() -> None:
    """Have the kernel send SIGTERM when the parent dies, then become the command."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("The parent died before the command began.")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
