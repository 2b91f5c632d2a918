"""Runs a function of the pipeline in a process of its own, and kills that process at a chosen point.

`python killing.py MODULE FUNCTION before|after COMMAND…`: runs app.py's COMMAND, and SIGKILLs the process before or
after the first call of the function.
"""

import importlib
import os
import signal
import sys
from typing import Any


def main() -> None:
    module, path, moment, *command = sys.argv[1:]
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for step in owners:
        owner = getattr(owner, step)
    function = getattr(owner, name)

    def killing(*arguments: Any, **named: Any) -> None:
        if moment == "after":
            function(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, killing)
    import app

    sys.exit(app.main(command))


if __name__ == "__main__":
    main()
