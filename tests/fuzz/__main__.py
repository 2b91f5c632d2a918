"""`python -m tests.fuzz`: coverage-guided fuzzing of all targets with Atheris, one after the other.

Ends with status 1 where one failed; the bytes that made it are then in the directory that is told.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

MAX_LENGTH = 4_096


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="over all targets (default: %(default)s)")
    parser.add_argument("--target", help="one alone")
    parser.add_argument("--out", type=Path, help="directory for what is found (default: a temporary one)")
    options = parser.parse_args()
    out: Path = options.out or Path(tempfile.mkdtemp(prefix="sentiment-fuzz-"))
    if options.target and options.out:
        fuzz(options.target, options.seconds, out)  # never returns
    from tests.fuzz.targets import TARGETS

    names = [options.target] if options.target else list(TARGETS)
    failed = []
    for name in names:
        seconds = max(options.seconds // len(names), 1)
        print(f"--- {name}, {seconds} s", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", "--target", name, "--seconds", str(seconds), "--out", str(out)]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print(f"Failed: {', '.join(failed)}; see {out}." if failed else f"No failure; what was tried is in {out}.")
    return 1 if failed else 0


def fuzz(name: str, seconds: int, out: Path) -> None:
    """Fuzz one target; ends the process."""
    with atheris.instrument_imports(
        include=[
            "gateway",
            "serving.model_repo.bundle",
            "serving.model_repo.repository",
            "settings",
            "tables",
            "trainer.dataset",
            "trainer.rows",
            "tables.labels",
            "csv",
            "json",
            "dotenv",
        ]
    ):
        from tests.fuzz.targets import TARGETS
    function, seeds = TARGETS[name]
    corpus = out / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    arguments = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_LENGTH}",
        f"-artifact_prefix={out}/{name}-",
        "-timeout=10",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], function)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
