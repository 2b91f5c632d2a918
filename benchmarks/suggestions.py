"""Whether labelling what is suggested teaches more than labelling as many texts by chance.

`python -m benchmarks.suggestions` has a model learn from reviews. Then tweets come in, of which the held-out ones are
what is judged by. For each seed it draws a sample of the others, has 300 of them labelled, once as
`lifecycle/suggestions.py` chooses and once by chance, and has a model learn from the reviews and these. Writes
`suggestions.json` and `suggestions.md`.
"""

import csv
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.simulation import LABELS, Row, keep, rated_texts
from errors import PipelineError
from lifecycle.drift import live_likeness
from lifecycle.suggestions import choose, uncertainty_of, weigh
from settings import Settings
from storage.feedback import is_held_out, text_hash
from trainer.dataset import Dataset, LabelledTexts, fingerprint
from trainer.evaluation import fit_temperature
from trainer.fine_tune import FineTuned, fine_tune
from trainer.sample_data import write_sample_data

SEED = 2026
"""Of the sample data, and of the model that is asked first."""
SEEDS = (101, 102, 103, 104, 105)
"""Of what is drawn, and of the trainings that follow."""
LEARNT_TEXTS = 2_000
VALIDATION_TEXTS = 1_305
"""All that the sample data have: by 300, it was chance which state of a training was kept."""
SAMPLED = 2_000
LABELLED = 300
WANTED_GAIN = 0.01
_RESULTS = Path("benchmarks/results/suggestions")


@dataclass(frozen=True)
class Tweets:
    """Rated tweets: those that could be labelled, and those that are held out."""

    pool: list[Row]
    judged: list[Row]


def main() -> int:
    """Compare, write the results, and print the table."""
    _RESULTS.mkdir(parents=True, exist_ok=True)
    try:
        results = compare()
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    keep(_RESULTS, "suggestions", results, told(results))
    return 0


def compare() -> dict[str, Any]:
    """Both ways for each seed; the same machine gives the same results."""
    train, val = _reviews()
    tweets = _tweets({text_hash(text) for text, _ in (*train, *val)})
    first = _learn(train, val, SEED)
    # Calibrated, as what is served is.
    probabilities = _classify(first, tweets.pool, fit_temperature(first.val_logits, first.val_targets))
    known = [text for text, _ in (*train, *val)]
    runs = []
    for seed in SEEDS:
        sampled = np.random.default_rng(seed).permutation(len(tweets.pool))[:SAMPLED]
        sample = [tweets.pool[place] for place in sampled]
        chosen = _suggested(known, [text for text, _ in sample], probabilities[sampled])
        for way, labelled in (("random", sample[:LABELLED]), ("suggested", [sample[place] for place in chosen])):
            accuracy = _accuracy(_learn([*train, *labelled], val, seed), tweets.judged)
            runs.append({"seed": seed, "way": way, "texts": len(labelled), "accuracy": accuracy})
            print(f"seed {seed}, {way}: accuracy {accuracy:.4f}", flush=True)
    return {"judged": len(tweets.judged), "before": _accuracy(first, tweets.judged), "runs": runs}


def told(results: dict[str, Any]) -> str:
    """The results as a table in Markdown."""
    by_way = {
        way: np.array([run["accuracy"] for run in results["runs"] if run["way"] == way])
        for way in ("random", "suggested")
    }
    gains = by_way["suggested"] - by_way["random"]
    seeds = list(dict.fromkeys(run["seed"] for run in results["runs"]))
    rows = [
        (str(seed), f"{by_way['random'][place]:.2%}", f"{by_way['suggested'][place]:.2%}", f"{100 * gains[place]:+.2f}")
        for place, seed in enumerate(seeds)
    ]
    random, suggested = (f"{values.mean():.2%} ({100 * values.std(ddof=1):.2f})" for values in by_way.values())
    spread = f"{100 * gains.mean():+.2f} ({100 * gains.std(ddof=1):.2f})"
    rows.append(("mean (standard deviation)", random, suggested, spread))
    lines = [
        f"Accuracy on {results['judged']:,} held-out tweets; before, {results['before']:.2%}.",
        "",
        f"| seed | {LABELLED} random | {LABELLED} suggested | points more |",
        "|---|---:|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Wanted: {100 * WANTED_GAIN:.0f} point more on average.",
    ]
    return "\n".join(lines) + "\n"


def _suggested(known: Sequence[str], texts: Sequence[str], probabilities: npt.NDArray[np.float64]) -> list[int]:
    """What the pipeline would suggest of a sample."""
    return choose(texts, weigh(uncertainty_of(probabilities.tolist()), live_likeness(known, texts)), LABELLED)


def _reviews() -> tuple[list[Row], list[Row]]:
    with tempfile.TemporaryDirectory() as directory:
        files = Path(directory) / "train.csv", Path(directory) / "val.csv"
        write_sample_data(*files, SEED)
        parts = []
        for path, texts in zip(files, (LEARNT_TEXTS, VALIDATION_TEXTS), strict=True):
            with path.open(newline="", encoding="utf-8") as file:
                parts.append([(text, label) for text, label in list(csv.reader(file))[1 : 1 + texts]])
    return parts[0], parts[1]


def _tweets(known: set[str]) -> Tweets:
    rows = rated_texts(("tweet",), known)
    return Tweets(
        [row for hash_, row in rows.items() if not is_held_out(hash_)],
        [row for hash_, row in rows.items() if is_held_out(hash_)],
    )


def _learn(train: Sequence[Row], val: Sequence[Row], seed: int) -> FineTuned:
    texts, judged = (LabelledTexts([text for text, _ in rows], [label for _, label in rows]) for rows in (train, val))
    dataset = Dataset(texts, judged, LABELS, fingerprint(texts, judged), [])
    state = Path(tempfile.mkdtemp(prefix="sentiment-suggestions-"))
    try:
        return fine_tune(Settings(state_dir=state, seed=seed), dataset)
    finally:
        shutil.rmtree(state)


def _classify(tuned: FineTuned, rows: Sequence[Row], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Probabilities [texts, labels]."""
    found = []
    tuned.model.train(False)
    for start in range(0, len(rows), 64):
        texts = [text for text, _ in rows[start : start + 64]]
        inputs = tuned.tokenizer(texts, truncation=True, max_length=tuned.max_length, padding=True, return_tensors="pt")
        with torch.inference_mode():
            found.append(torch.softmax(tuned.model(**inputs).logits.double() / temperature, dim=1).numpy())
    return np.concatenate(found)


def _accuracy(tuned: FineTuned, rows: Sequence[Row]) -> float:
    targets = np.array([LABELS.index(label) for _, label in rows])
    return float(np.mean(_classify(tuned, rows).argmax(axis=1) == targets))


if __name__ == "__main__":
    sys.exit(main())
