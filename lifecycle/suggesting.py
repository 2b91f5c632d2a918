"""Chooses what to label next in a process of its own, for a process that has requests to answer.

It takes seconds of a core and some hundred megabytes, and holds Python's lock most of that time.
"""

import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

from errors import PipelineError
from serving.die_with_parent import command_dying_with_parent
from settings import Settings
from storage.tables import Figures

MOST_SUGGESTIONS = 300
"""An hour or two of labelling."""
LONGEST_S = 120.0
"""Beside a gateway that needs all cores it gets little of them."""
_NICENESS = 10
"""Not idle priority: somebody waits for it, and where all cores are busy for long it would never end."""
_LOOK_S = 0.5
_PROJECT = Path(__file__).resolve().parent.parent


def suggest_apart(settings: Settings, ended: threading.Event) -> Figures:
    """What `suggestions.suggest` finds, as figures.

    Raises:
        PipelineError: it cannot be found out, and the log says why; or `ended` was set.
    """
    # The settings hold secrets, which are so in no command line and no environment.
    given: bytes | None = pickle.dumps(settings)
    until = time.monotonic() + LONGEST_S
    with subprocess.Popen(
        command_dying_with_parent([sys.executable, "-m", "lifecycle.suggesting"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(_PROJECT)},
    ) as process:
        while True:
            if ended.is_set() or time.monotonic() > until:
                process.kill()
            try:
                output, _ = process.communicate(given, timeout=_LOOK_S)
                break
            except subprocess.TimeoutExpired:
                given = None  # the rest of it goes on
    if process.returncode:
        raise PipelineError("What to label next could not be found out; the log says why.")
    found: Figures = pickle.loads(output)
    return found


def _main() -> int:
    os.nice(_NICENESS)
    settings: Settings = pickle.load(sys.stdin.buffer)

    from lifecycle.suggestions import suggest
    from logs import set_up_logging
    from storage.database import Database

    set_up_logging(settings)
    try:
        database = Database(settings.database)
        found = suggest(settings, database)
    except PipelineError as error:
        print(f"error: {settings.without_secrets(str(error))}", file=sys.stderr)
        return 1
    database.close()
    sys.stdout.buffer.write(pickle.dumps(found.figures()))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
