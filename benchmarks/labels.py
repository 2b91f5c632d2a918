"""How many random labels decide whether accuracy is under a threshold, on texts of several kinds.

Run as `python -m benchmarks.labels` after a training: the deployed version predicts rated texts that are
not in its data files. Each repetition draws a window of texts of a kind, and labels it in random order until the labels
decide. Beside that, a fixed number of random labels decides by the usual 95 % interval.
"""

import argparse

import numpy as np
import numpy.typing as npt

from benchmarks.rated_texts import unknown_rows
from common.settings import load_settings
from lifecycle.monitoring.confidence_sequence import decides, intervals
from serving.backend.cpu import usable_cores
from serving.backend.engine import Engine
from serving.backend.variant_choice import Wanted, choose_variant
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from trainer.dataset import load_dataset
from trainer.sample_data import REVIEW_DOMAINS, Domain

KINDS: dict[str, tuple[Domain, ...]] = {
    "tweets": ("tweet",),
    "editorials": ("editorial",),
    "reviews": REVIEW_DOMAINS,
}
REPETITIONS = 200
WINDOW = 2_000
FIXED = (100, 200, 400)
_BATCH = 32
_DEVIATIONS = 1.96

IsRight = npt.NDArray[np.bool_]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threshold", type=float, default=0.8, help="accuracy to decide about (default: %(default)s)")
    threshold = parser.parse_args().threshold
    fixed = "".join(f" wrong, undecided with {number} |" for number in FIXED)
    print(
        f"| texts | accuracy | labels, median | 90 % | wrong |{fixed}\n|---|---:|---:|---:|---:|{'---:|' * len(FIXED)}"
    )
    for name, is_right in predictions().items():
        print(row(name, is_right, threshold), flush=True)


def row(name: str, is_right: IsRight, threshold: float) -> str:
    """Simulate all repetitions for one kind of texts, and return its row of the table."""
    draw = np.random.default_rng(0)
    labels, wrong = [], 0
    missed = dict.fromkeys(FIXED, 0)
    open_ = dict.fromkeys(FIXED, 0)
    for _ in range(REPETITIONS):
        window = draw.permutation(is_right)[:WINDOW]
        is_under = bool(window.mean() < threshold)
        number, decision = _decided([*map(bool, window)], threshold)
        labels.append(number)
        wrong += decision is not is_under
        for count in FIXED:
            share = window[:count].mean()
            margin = _DEVIATIONS * (share * (1 - share) / count) ** 0.5
            if abs(share - threshold) <= margin:
                open_[count] += 1
            else:
                missed[count] += bool(share < threshold) is not is_under
    median, most = np.quantile(labels, (0.5, 0.9))
    cells = "".join(f" {missed[count] / REPETITIONS:.1%}, {open_[count] / REPETITIONS:.0%} |" for count in FIXED)
    return f"| {name} | {is_right.mean():.1%} | {median:.0f} | {most:.0f} | {wrong / REPETITIONS:.1%} |{cells}"


def _decided(order: list[bool], threshold: float) -> tuple[int, bool | None]:
    for labels, found in enumerate(intervals(order, len(order), threshold)):
        if (is_under := decides(found, len(order), threshold)) is not None:
            return labels, is_under
    return len(order), None


def predictions() -> dict[str, IsRight]:
    """Return for each kind which of its texts the deployed version labels rightly."""
    settings = load_settings()
    repository = ModelRepository(settings.model_repository)
    directory = repository.version_directory(repository.require_deployed())
    bundle = Bundle.load(directory)
    dataset = load_dataset(settings)
    held_out = list(zip(dataset.val.texts, dataset.val.labels, strict=True))
    found = {}
    with Engine(directory, choose_variant(bundle, Wanted()).variant, usable_cores()) as engine:
        for name, domains in KINDS.items():
            rows = held_out if name == "reviews" else []
            rows += unknown_rows(dataset, domains)
            texts = [text for text, _ in rows]
            starts = range(0, len(texts), _BATCH)
            values = np.concatenate([engine.classify(texts[start : start + _BATCH]).values for start in starts])
            right = np.array([bundle.labels.index(label) for _, label in rows])
            found[name] = values.argmax(axis=1) == right
    return found


if __name__ == "__main__":
    main()
