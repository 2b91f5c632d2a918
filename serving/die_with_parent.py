"""Runs a command that ends when the process that started it does, however that one ends.

`python die_with_parent.py PARENT GROUP NICENESS COMMAND ARGUMENT…` becomes the command, so its process id stays; PARENT
is the process id that it must not outlive, and GROUP says whether it leads a process group. Where the kernel is not
Linux, the command may outlive it.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


_OWN_GROUP = "own-group"
_SAME_GROUP = "same-group"


def command_dying_with_parent(command: list[str], *, own_group: bool = False, niceness: int = 0) -> list[str]:
    """The command line that this process can run `command` with, so that it ends when this process does.

    In a process group of its own, Ctrl-C in the terminal is not for it, and what it starts can be ended with it. A
    session of its own would do that too, but Linux divides the processor among sessions first (autogroups, sched(7)):
    what takes only what others leave over would get as much in a session of its own as all that serves in another.

    With a `niceness`, the command gives way to this process where both want the processor (nice(2)).
    """
    group = _OWN_GROUP if own_group else _SAME_GROUP
    return [sys.executable, __file__, str(os.getpid()), group, str(niceness), *command]


def main() -> None:
    """Have the kernel send SIGTERM when the parent dies, then become the command."""
    parent, group, niceness, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # Not told of a parent that died before it asked to be told.
    if os.getppid() != int(parent):
        sys.exit("The parent died before the command began.")
    if group == _OWN_GROUP:
        os.setpgid(0, 0)
    os.nice(int(niceness))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
