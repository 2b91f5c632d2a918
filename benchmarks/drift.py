"""Simulates live traffic from rated texts, to see what the checks notice and what they estimate without labels.

`python -m benchmarks.drift` trains the packaged encoder on the sample reviews but the last LIVE_REVIEWS, which become
live traffic, beside tweets, editorials and parts of the reviews. Windows are drawn from each kind with a fixed seed and
evaluated by the pipeline's own functions. It writes `drift.json` and `drift.md`, and takes about half an hour on two
cores; a second run reuses the model.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.rated_texts import LABELS, Row, pipeline_settings, rated_texts, train_once, unknown_rows
from common.errors import PipelineError
from common.settings import Settings
from lifecycle.monitoring.accuracy_range import Estimator
from lifecycle.monitoring.drift import feedback_shift, label_shift, length_shift, text_drift
from lifecycle.monitoring.live_drift import known_texts
from serving.backend.cpu import usable_cores
from serving.backend.engine import Engine
from serving.backend.variant_choice import Wanted, choose_variant
from serving.model_repo.bundle import Bundle
from serving.model_repo.protocol import MAX_BATCH_SIZE
from serving.model_repo.repository import ModelRepository
from storage.feedback import is_held_out, text_hash
from trainer.baseline import second_opinion
from trainer.dataset import load_dataset
from trainer.sample_data import REVIEW_DOMAINS

SEED = 2026
LEARNT_REVIEWS = 9_741
"""Training texts. The sample data have 11,741; the other 2,000 are live traffic."""
WINDOW = 500
WINDOWS = 200
FEEDBACK_WINDOWS_BEFORE = 10
WINDOWS_AFTER = 3
FLIPPED = 0.2
_MILD, _FAINT = 1.2, 0.5
_RESULTS = Path("benchmarks/results/drift")


@dataclass(frozen=True)
class Traffic:
    """Texts of one kind, their right labels, the version's probabilities, and the baseline's labels."""

    texts: npt.NDArray[np.str_]
    targets: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    second: npt.NDArray[np.int64]

    def at(self, places: npt.NDArray[np.integer] | slice) -> "Traffic":
        """Return the texts at some places."""
        return Traffic(self.texts[places], self.targets[places], self.probabilities[places], self.second[places])

    def window(self, random: np.random.Generator) -> "Traffic":
        """Return WINDOW of the texts, or all if there are fewer, in random order."""
        return self.at(random.permutation(len(self.texts))[:WINDOW])

    @property
    def is_right(self) -> npt.NDArray[np.bool_]:
        """[texts], True where the version predicts the right label."""
        right: npt.NDArray[np.bool_] = self.probabilities.argmax(axis=1) == self.targets
        return right


def main() -> int:
    """Train if needed, simulate, write the results, print the table, and return the exit status."""
    _RESULTS.mkdir(parents=True, exist_ok=True)
    try:
        train_once(settings := pipeline_settings(_RESULTS / "pipeline"), LEARNT_REVIEWS, SEED)
        validation, kinds = _traffic(settings)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    estimator = Estimator.fit(LABELS, validation.probabilities, validation.targets, validation.second)
    random = np.random.default_rng(SEED)
    results = {
        "kinds": {name: _estimates(estimator, kind, random) for name, kind in kinds.items()},
        "drift": _drift_alarms(known_texts(load_dataset(settings)), validation, kinds, random),
        "feedback": _feedback_alarms(kinds["reviews"], random),
    }
    (_RESULTS / "drift.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = _table(results)
    (_RESULTS / "drift.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


def _traffic(settings: Settings) -> tuple[Traffic, dict[str, Traffic]]:
    """Return predictions for the validation texts, and for each kind of live texts."""
    dataset = load_dataset(settings)
    reviews = unknown_rows(dataset, REVIEW_DOMAINS)
    negative = [row for row in reviews if row[1] == LABELS[0]]
    positive = [row for row in reviews if row[1] == LABELS[1]]
    kinds: dict[str, list[Row]] = {
        "reviews": reviews,
        "editorials": list(rated_texts("editorial").values()),
        "tweets": list(rated_texts("tweet").values()),
        "mild reviews": unknown_rows(dataset, REVIEW_DOMAINS, below=_MILD),
        "reviews, 80 % negative": [*negative, *positive[: len(negative) // 4]],
        "faint reviews": unknown_rows(dataset, REVIEW_DOMAINS, 0.1, _FAINT),
    }
    validation = list(zip(dataset.val.texts, dataset.val.labels, strict=True))
    repository = ModelRepository(settings.model_repository)
    directory = repository.version_directory(repository.require_deployed())
    bundle = Bundle.load(directory)
    rows = [row for part in (validation, *kinds.values()) for row in part]
    texts = [text for text, _ in rows]
    with Engine(directory, choose_variant(bundle, Wanted()).variant, usable_cores()) as engine:
        batches = [texts[start : start + MAX_BATCH_SIZE] for start in range(0, len(texts), MAX_BATCH_SIZE)]
        probabilities = np.concatenate([engine.classify(batch).values for batch in batches])
    everything = Traffic(
        np.array(texts),
        np.array([LABELS.index(label) for _, label in rows]),
        probabilities,
        second_opinion(dataset.train, texts, LABELS),
    )
    ends = np.cumsum([len(validation), *map(len, kinds.values())])
    parts = [everything.at(slice(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return parts[0], dict(zip(kinds, parts[1:], strict=True))


def _estimates(estimator: Estimator, kind: Traffic, random: np.random.Generator) -> dict[str, Any]:
    """Return true and estimated accuracies of windows, and how often the range holds the truth."""
    windows = [kind.window(random) for _ in range(WINDOWS)]
    found = [estimator.estimate(window.probabilities, window.second) for window in windows]
    true = np.array([window.is_right.mean() for window in windows])
    low, high = np.array([[each.accuracy.low, each.accuracy.high] for each in found]).T
    return {
        "texts": len(kind.texts),
        "true": float(true.mean()),
        "methods": {name: float(np.mean([each.methods[name] for each in found])) for name in found[0].methods},
        "low": float(low.mean()),
        "high": float(high.mean()),
        "width": [float(value) for value in np.quantile(high - low, (0.5, 0.9))],
        "holds": float(np.mean((low <= true) & (true <= high))),
    }


def _drift_alarms(
    known: list[str], validation: Traffic, kinds: dict[str, Traffic], random: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Return the share of windows with an alarm by kind of texts and of drift: 200 of reviews, 20 of each other."""

    def labels(part: Traffic) -> list[str]:
        return [LABELS[place] for place in part.probabilities.argmax(axis=1)]

    def lengths(part: Traffic) -> list[int]:
        return [len(text.split()) for text in part.texts]

    alarms: dict[str, dict[str, float]] = {}
    for name, kind in kinds.items():
        windows = [kind.window(random) for _ in range(WINDOWS if name == "reviews" else WINDOWS // 10)]
        found = [
            {
                "texts": bool((drift := text_drift(known, list(window.texts))) and drift.alarm),
                "labels": bool(label_shift(labels(validation), labels(window)).alarm),
                "lengths": bool(length_shift(lengths(validation), lengths(window)).alarm),
            }
            for window in windows
        ]
        alarms[name] = {
            "any": float(np.mean([any(each.values()) for each in found])),
            **{drift: float(np.mean([each[drift] for each in found])) for drift in ("texts", "labels", "lengths")},
        }
    return alarms


def _feedback_alarms(reviews: Traffic, random: np.random.Generator) -> dict[str, float]:
    """Return the share of windows of unchanged feedback with an alarm, and of flips found within WINDOWS_AFTER."""

    def is_wrong(windows: int, flips_from: int) -> list[npt.NDArray[np.bool_]]:
        stream = []
        for number in range(windows):
            window = reviews.window(random)
            held_out = np.array([is_held_out(text_hash(text)) for text in window.texts])
            wrong = ~window.is_right
            if number >= flips_from:
                wrong ^= random.random(len(wrong)) < FLIPPED
            stream.append(wrong[held_out])
        return stream

    def alarm(stream: list[npt.NDArray[np.bool_]], number: int) -> bool:
        found = feedback_shift(np.concatenate(stream[max(0, number - FEEDBACK_WINDOWS_BEFORE) : number + 1]))
        return bool(found and found.alarm)

    quiet = is_wrong(WINDOWS, WINDOWS)
    last = FEEDBACK_WINDOWS_BEFORE + WINDOWS_AFTER
    flipped = [is_wrong(last, FEEDBACK_WINDOWS_BEFORE) for _ in range(WINDOWS // 2)]
    return {
        "false alarms": float(np.mean([alarm(quiet, number) for number in range(WINDOWS)])),
        "found": float(
            np.mean([any(alarm(each, n) for n in range(FEEDBACK_WINDOWS_BEFORE, last)) for each in flipped])
        ),
    }


def _table(results: dict[str, Any]) -> str:
    kinds: dict[str, Any] = results["kinds"]
    methods = list(kinds["reviews"]["methods"])
    lines = [
        f"Seed {SEED}, {WINDOWS} windows of {WINDOW} texts of each kind.",
        "",
        f"| texts | number | true | {' | '.join(methods)} | range | width: median, 90 % | range holds the truth |",
        f"|{'---|' * (6 + len(methods))}",
    ]
    for name, found in kinds.items():
        values = " | ".join(f"{found['methods'][method]:.1%}" for method in methods)
        lines.append(
            f"| {name} | {found['texts']:,} | {found['true']:.1%} | {values} "
            f"| {found['low']:.1%} to {found['high']:.1%} | {found['width'][0]:.1%}, {found['width'][1]:.1%} "
            f"| {found['holds']:.0%} |"
        )
    lines += ["", "| texts | any alarm of drift | of texts | of labels | of lengths |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {' | '.join(f'{share:.1%}' for share in a.values())} |" for name, a in results["drift"].items()
    ]
    feedback = results["feedback"]
    lines += [
        "",
        f"Feedback: alarm in {feedback['false alarms']:.1%} of {WINDOWS} unchanged windows; {FLIPPED:.0%} flipped "
        f"labels found within {WINDOWS_AFTER} windows in {feedback['found']:.0%} of {WINDOWS // 2} tries.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
