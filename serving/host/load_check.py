"""Loads a version as Triton's Python backend does, but in a separate process, to find out why it fails to load.

`python -m serving.host.load_check DIRECTORY RUNTIME PRECISION` exits with status 0 if the version loads. Otherwise the
last line on stderr gives the reason.
"""

import os
import subprocess
import sys
from pathlib import Path

from common.settings import Settings
from serving.host.die_with_parent import command_dying_with_parent

_PROJECT = Path(__file__).resolve().parents[2]
_LOADING_TIMEOUT_S = 300.0


def why_not_loadable(settings: Settings, directory: Path) -> str:
    """Return why the version in `directory` cannot be loaded on this machine with these settings; empty if it can."""
    command = [
        sys.executable,
        "-m",
        "serving.host.load_check",
        str(directory.resolve()),
        settings.runtime,
        settings.precision,
    ]
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
    """Load the version; raises the same errors as in Triton's Python backend."""
    from serving.backend.cpu import usable_cores
    from serving.backend.engine import Engine
    from serving.backend.variant_choice import Wanted, choose_variant
    from serving.model_repo.bundle import Bundle

    path = Path(directory)
    choice = choose_variant(Bundle.load(path), Wanted(runtime, precision))
    Engine(path, choice.variant, usable_cores()).close()


if __name__ == "__main__":
    main(*sys.argv[1:])
