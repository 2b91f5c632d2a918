"""Loads a version as Triton's Python does, in a process of its own, to find out whether and why it does not load.

`python -m serving.loading DIRECTORY RUNTIME PRECISION`: ends with status 0 where it loads; else its last line says why.
"""

import os
import subprocess
import sys
from pathlib import Path

from serving.die_with_parent import command_dying_with_parent
from settings import Settings

_PROJECT = Path(__file__).resolve().parent.parent
_LOADING_TIMEOUT_S = 300.0


def why_not_loadable(settings: Settings, directory: Path) -> str:
    """Why the version in `directory` cannot be served here with these settings; empty where it can."""
    command = [sys.executable, "-m", "serving.loading", str(directory.resolve()), settings.runtime, settings.precision]
    try:
        ended = subprocess.run(
            command_dying_with_parent(command),
            cwd=_PROJECT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=_LOADING_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it does not load within {_LOADING_TIMEOUT_S:.0f} s"
    if ended.returncode == 0:
        return ""
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"loading it ended with status {ended.returncode}"


def main(directory: str, runtime: str, precision: str) -> None:
    """Load the version; raises what Triton's Python would."""
    from serving.bundle import Bundle
    from serving.choice import Wanted, choose_variant
    from serving.engine import Engine
    from serving.processor import usable_cores

    path = Path(directory)
    choice = choose_variant(Bundle.load(path), Wanted(runtime, precision))
    Engine(path, choice.variant, usable_cores()).close()


if __name__ == "__main__":
    main(*sys.argv[1:])
