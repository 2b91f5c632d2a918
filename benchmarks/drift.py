"""Simulates live traffic from rated texts, to see what the watch over quality notices and what it estimates.

`python -m benchmarks.drift` has the pipeline learn from some of the sample data, and judges that version with the
pipeline's own functions. Windows of texts are drawn from the film and product reviews that are left, from tweets and
from editorials, with one seed. Writes `drift.json`, `drift.md` and `drift.png`.
"""

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: there need be no screen

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt

from benchmarks.simulation import Row, keep, rated_texts
from errors import PipelineError
from lifecycle.drift import Shift, TextDrift, feedback_shift, label_shift, length_shift, text_drift
from lifecycle.estimation import Calibration, calibrate, estimate
from lifecycle.live_drift import known_texts
from serving.bundle import Bundle
from serving.choice import Wanted, choose_variant
from serving.engine import Engine
from serving.processor import usable_cores
from serving.protocol import MAX_BATCH_SIZE
from serving.repository import ModelRepository
from settings import Settings
from storage.feedback import is_held_out, text_hash
from trainer.dataset import load_dataset
from trainer.sample_data import Domain, write_sample_data

SEED = 2026
WINDOW = 500
UNCHANGED_WINDOWS = 200
CHANGES = 20
"""Times that each change is simulated."""
WINDOWS_AFTER = 3
HISTORY_WINDOWS = 10
"""Of feedback before its meaning flips."""
FLIPPED = 0.2
DOMAINS: dict[str, tuple[Domain, ...]] = {
    "reviews": ("film", "product"),
    "tweets": ("tweet",),
    "editorials": ("editorial",),
}
BOUNDS = {"reviews": 0.03, "tweets": 0.05, "editorials": 0.05}
LEARNT_TEXTS = 5_000
"""Of the sample data's training texts; the others are live traffic."""
_RESULTS = Path("benchmarks/results/drift")
_APP = Path(__file__).resolve().parent.parent / "app.py"


@dataclass(frozen=True)
class Traffic:
    """Texts of one kind with their right labels and the version's probabilities."""

    texts: list[str]
    targets: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """The labels that the version gives."""
        given: npt.NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return given

    def window(self, random: np.random.Generator, texts: int = WINDOW) -> "Traffic":
        """So many of the texts, in random order."""
        chosen = random.permutation(len(self.texts))[:texts]
        return Traffic([self.texts[place] for place in chosen], self.targets[chosen], self.probabilities[chosen])


@dataclass(frozen=True)
class Known:
    """What live texts are held against."""

    texts: list[str]
    validation: Traffic
    labels: tuple[str, ...]
    calibration: Calibration


@dataclass(frozen=True)
class EstimatedWindow:
    """What was estimated of a window, and what is true."""

    true: float
    value: float
    low: float
    high: float


def main() -> int:
    """Simulate, write the results, and print the table."""
    _RESULTS.mkdir(parents=True, exist_ok=True)
    try:
        results = simulate(*_load(_learn(_RESULTS / "pipeline")))
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _draw(results)
    keep(_RESULTS, "drift", results, _table(results))
    return 0


def simulate(known: Known, traffic: dict[str, Traffic]) -> dict[str, Any]:
    """All of the simulation; the same seed gives the same results."""
    random = np.random.default_rng(SEED)
    unchanged = [_look(known, traffic["reviews"].window(random)) for _ in range(UNCHANGED_WINDOWS)]
    stream = _feedback(traffic["reviews"], random, UNCHANGED_WINDOWS)
    quiet = [_feedback_alarm(stream, window) for window in range(UNCHANGED_WINDOWS)]
    changed = {
        name: [_look(known, traffic[name].window(random)) for _ in range(CHANGES * WINDOWS_AFTER)]
        for name in ("tweets", "editorials")
    }
    noticed: dict[str, list[int | None]] = {
        name: [
            _first([bool(window["alarms"]) for window in windows[start : start + WINDOWS_AFTER]])
            for start in range(0, len(windows), WINDOWS_AFTER)
        ]
        for name, windows in changed.items()
    }
    noticed["flipped feedback"] = []
    for _ in range(CHANGES):
        turned = _feedback(traffic["reviews"], random, HISTORY_WINDOWS + WINDOWS_AFTER, flips_from=HISTORY_WINDOWS)
        alarms = [_feedback_alarm(turned, HISTORY_WINDOWS + after) for after in range(WINDOWS_AFTER)]
        noticed["flipped feedback"].append(_first(list(map(bool, alarms))))
    estimates = {
        name: [asdict(_estimate(known, kind.window(random))) for _ in range(UNCHANGED_WINDOWS)]
        for name, kind in traffic.items()
    }
    return {
        "seed": SEED,
        "unchanged": unchanged,
        "unchanged_feedback_alarms": [alarm for alarm in quiet if alarm],
        "changed": changed,
        "noticed_in_window": noticed,
        "estimates": estimates,
    }


def _learn(directory: Path) -> Settings:
    """Have the pipeline learn in a directory, if it has not."""
    settings = Settings(
        train_data=directory / "train.csv",
        val_data=directory / "val.csv",
        state_dir=directory / "state",
        model_dir=directory / "model",
        model_repository=directory / "triton_repo",
    )
    if not settings.train_data.exists():
        directory.mkdir(exist_ok=True)
        write_sample_data(directory / "all.csv", settings.val_data, SEED)
        with (directory / "all.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[: 1 + LEARNT_TEXTS]
        with settings.train_data.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    if ModelRepository(settings.model_repository).deployed() is None:
        names = ("train_data", "val_data", "state_dir", "model_dir", "model_repository")
        environment = {f"SENTIMENT_{name.upper()}": str(getattr(settings, name)) for name in names}
        subprocess.run([sys.executable, str(_APP), "prepare"], env=os.environ | environment, check=True)
    return settings


def _load(settings: Settings) -> tuple[Known, dict[str, Traffic]]:
    repository = ModelRepository(settings.model_repository)
    version = repository.deployed()
    assert version is not None  # it has just been deployed
    directory = repository.version_directory(version)
    bundle = Bundle.load(directory)
    dataset = load_dataset(settings.train_data, settings.val_data)
    learnt = {text_hash(text) for text in (*dataset.train.texts, *dataset.val.texts)}
    with Engine(directory, choose_variant(bundle, Wanted()).variant, usable_cores()) as engine:
        validation = _answered(engine, bundle, list(zip(dataset.val.texts, dataset.val.labels, strict=True)))
        traffic = {
            name: _answered(engine, bundle, list(rated_texts(domains, learnt).values()))
            for name, domains in DOMAINS.items()
        }
    calibration = calibrate(validation.probabilities, validation.targets)
    return Known(known_texts(dataset), validation, bundle.labels, calibration), traffic


def _answered(engine: Engine, bundle: Bundle, rows: Sequence[Row]) -> Traffic:
    texts = [text for text, _ in rows]
    batches = [texts[start : start + MAX_BATCH_SIZE] for start in range(0, len(texts), MAX_BATCH_SIZE)]
    probabilities = np.concatenate([engine.classify(batch).values for batch in batches])
    return Traffic(texts, np.array([bundle.labels.index(label) for _, label in rows]), probabilities)


def _look(known: Known, window: Traffic) -> dict[str, Any]:
    """What a check would find of drift in a window."""
    found: dict[str, TextDrift | Shift | None] = {
        "texts": text_drift(known.texts, window.texts),
        "labels": label_shift(
            [known.labels[label] for label in known.validation.predicted],
            [known.labels[label] for label in window.predicted],
        ),
        "lengths": length_shift(
            [len(text.split()) for text in known.validation.texts], [len(text.split()) for text in window.texts]
        ),
    }
    texts = found["texts"]
    return {
        "auc": [texts.auc, texts.low, texts.high] if isinstance(texts, TextDrift) else None,
        "words": texts.live_words if isinstance(texts, TextDrift) else [],
        "alarms": {kind: item.alarm for kind, item in found.items() if item and item.alarm},
    }


def _feedback(
    reviews: Traffic, random: np.random.Generator, windows: int, flips_from: int | None = None
) -> list[npt.NDArray[np.bool_]]:
    """Windows of feedback: whether the version errs on those texts that are held out."""
    stream = []
    for number in range(windows):
        window = reviews.window(random)
        held_out = np.array([is_held_out(text_hash(text)) for text in window.texts])
        is_wrong = window.predicted != window.targets
        if flips_from is not None and number >= flips_from:
            is_wrong ^= random.random(len(is_wrong)) < FLIPPED
        stream.append(is_wrong[held_out])
    return stream


def _feedback_alarm(stream: Sequence[npt.NDArray[np.bool_]], window: int) -> str:
    """What a check after a window would say, from it and those before."""
    found = feedback_shift(np.concatenate(stream[max(0, window - HISTORY_WINDOWS) : window + 1]))
    return found.alarm if found else ""


def _first(alarms: Sequence[bool]) -> int | None:
    return alarms.index(True) + 1 if True in alarms else None


def _estimate(known: Known, window: Traffic) -> EstimatedWindow:
    found = estimate(window.probabilities, known.labels, known.calibration).accuracy
    return EstimatedWindow(float(np.mean(window.predicted == window.targets)), found.value, found.low, found.high)


def _table(results: dict[str, Any]) -> str:
    """What was found beside what is wanted, in Markdown."""
    false_alarms = sum(bool(window["alarms"]) for window in results["unchanged"])
    rows = [
        (f"{UNCHANGED_WINDOWS} windows of {WINDOW} unchanged texts", "at most 2 false alarms", str(false_alarms)),
        (
            f"{UNCHANGED_WINDOWS} windows of {WINDOW} unchanged texts of feedback",
            "at most 2 false alarms",
            str(len(results["unchanged_feedback_alarms"])),
        ),
    ]
    for name, windows in results["noticed_in_window"].items():
        seen = [window for window in windows if window is not None]
        told = f"{len(seen)} of {len(windows)} times, after {max(seen, default=0)} windows at most"
        rows.append(
            (f"{name} instead of reviews" if name in DOMAINS else name, f"within {WINDOWS_AFTER} windows", told)
        )
    for name, windows in results["estimates"].items():
        errors = np.array([window["value"] - window["true"] for window in windows])
        held = np.mean([window["low"] <= window["true"] <= window["high"] for window in windows])
        true = np.mean([window["true"] for window in windows])
        bound = BOUNDS[name]
        rows += [
            (
                f"estimated accuracy of {name} (true {true:.1%})",
                f"within {bound:.0%}",
                f"{errors.mean():+.1%} on average, {np.mean(np.abs(errors) <= bound):.0%} of windows within",
            ),
            (f"its interval on {name}", "holds the truth in 90 % of windows", f"{held:.0%}"),
        ]
    lines = ["| what | wanted | found |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return f"Seed {results['seed']}.\n\n" + "\n".join(lines) + "\n"


def _draw(results: dict[str, Any]) -> None:
    """Left, how well each window of texts can be told from known ones; right, estimated against true accuracy."""
    bins = list(np.linspace(0.4, 1, 61))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name, windows in {"reviews": results["unchanged"], **results["changed"]}.items():
        left.hist([window["auc"][0] for window in windows if window["auc"]], bins=bins, alpha=0.7, label=name)
    left.set(xlabel="ROC AUC of live against known texts", ylabel=f"windows of {WINDOW} texts", xlim=(0.4, 1))
    for name, windows in results["estimates"].items():
        true, value = ([window[key] for window in windows] for key in ("true", "value"))
        right.scatter(true, value, s=8, alpha=0.5, label=name)
    ends = (0.6, 1.0)
    right.plot(ends, ends, color="black", linewidth=1)
    right.set(xlabel="true accuracy of a window", ylabel="estimated without labels", xlim=ends, ylim=ends)
    for axes in (left, right):
        axes.legend(frameon=False)
    figure.savefig(_RESULTS / "drift.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
