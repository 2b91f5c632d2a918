"""`python -m benchmarks`: measures one model on this machine and writes JSON and Markdown."""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.models import MODEL_KINDS, make_model
from benchmarks.results import Results
from benchmarks.run import Run
from benchmarks.sections import stages
from benchmarks.tables import SECTIONS, markdown
from benchmarks.worker import worker
from common.errors import PipelineError

MEASURES = {section.SECTION: section.measure for section in SECTIONS}


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks and return the exit status."""
    options = _parser().parse_args(arguments)
    out = Path(options.out or f"benchmarks/results/{options.model}")
    started = time.monotonic()

    def progress(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        print(f"{minutes:02d}:{seconds:02d} {text}", flush=True)

    # Treat SIGTERM like Ctrl-C, so that every server is shut down cleanly.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="sentiment-benchmarks-") as directory:
            machine = describe_machine()
            progress(f"making the model: {options.model}")
            model = make_model(options.model, Path(directory), progress)
            choice = model.choice()
            progress(f"deployed is {choice.variant}: {choice.reason}")
            settings = {"seconds": options.seconds, "repeats": options.repeats, "sections": options.only}
            results = Results(
                options.model,
                model.description,
                machine,
                settings,
                served=str(choice.variant),
                served_because=choice.reason,
                notes=model.refusals(),
            )
            with worker("benchmarks.load_worker") as generator:
                run = Run(model, results, generator, Path(directory), options.seconds, options.repeats, progress)
                measure(run, options.only, out)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def measure(run: Run, sections: Sequence[str], out: Path) -> None:
    """Measure the sections; write all results so far to `out` after each section, even if it is interrupted."""
    for name in sections:
        try:
            MEASURES[name](run)
        finally:
            write(run.results, out)
            run.progress(f"written to {out}")


def write(results: Results, out: Path) -> None:
    """Write `results.json` and `results.md` into a directory, and a plot of the section *stages* if it was measured."""
    out.mkdir(parents=True, exist_ok=True)
    results.save(out / "results.json")
    (out / "results.md").write_text(markdown(results), encoding="utf-8")
    stages.plot(results, out / "stages.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", choices=MODEL_KINDS, default="packaged", help="default: %(default)s")
    parser.add_argument(
        "--only",
        type=_sections,
        default=list(MEASURES),
        metavar="SECTION,…",
        help=f"of {', '.join(MEASURES)} (default: all)",
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="length of one repeat (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--out", help="directory of the results (default: benchmarks/results/MODEL)")
    return parser


def _sections(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in MEASURES:
            raise argparse.ArgumentTypeError(f"there is no section {name!r}; it is one of {', '.join(MEASURES)}")
    return names


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
