"""Gives libraries a home directory and a user name if the account has none, as in containers and some service units.

A container's account without an entry in /etc/passwd has the home directory `/`, in which it cannot write.
"""

import getpass
import os
from pathlib import Path


def complete_account(directory: Path) -> None:
    """Set `HOME` to `directory` if this account has no home directory, and `LOGNAME` if it has no name.

    Several libraries look for both when they are imported or first used, and raise if they find none.
    """
    try:
        home = Path.home()
        has_home = home.is_dir() and (os.access(home, os.W_OK) or (home / ".cache").is_dir())
    except (RuntimeError, OSError):
        has_home = False
    if not has_home:
        os.environ["HOME"] = str(directory.absolute())
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"user-{os.geteuid()}"
