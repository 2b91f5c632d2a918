"""Simulates a poisoning attack: one API key sends 2,000 flipped labels for similar texts as feedback.

`python -m benchmarks.poisoning` trains a pipeline on 2,500 sample reviews. In a copy of it, each defence is tested by a
real retraining with all gates: no defence, as before sources were recorded; the cap alone; the cap and quarantine.
Accuracy is measured on reviews that no model has seen. Then it computes how often honest sources and attackers would
be quarantined. It writes `poisoning.json` and `poisoning.md`, and takes about half an hour on two cores.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.rated_texts import LABELS, Row, pipeline_settings, rated_texts, write_sample_part
from common.errors import PipelineError
from common.settings import Settings
from export.export import export
from lifecycle.gates.batch_predict import Answers
from lifecycle.jobs.retrain import retrain
from lifecycle.monitoring.quarantine import Contradictions, contradictions
from serving.backend.cpu import usable_cores
from serving.backend.engine import Engine
from serving.backend.variant_choice import Wanted, choose_variant
from serving.model_repo.bundle import Bundle
from serving.model_repo.protocol import MAX_BATCH_SIZE
from serving.model_repo.repository import ModelRepository
from storage import events, feedback_sources, jobs
from storage.database import Database
from storage.feedback import LabelledText, add_feedback, text_hash
from storage.feedback_sources import Quota
from trainer.dataset import load_dataset
from trainer.train import train

SEED = 2026
LEARNT_TEXTS = 2_500
ATTACK_ROWS = 2_000
ATTACKER = "key:attacker"
CLEAN_TEXTS = 2_000
DRAWS = 200
ROWS_OF_SOURCE = 300
LARGEST_LOSS = 0.01
_RESULTS = Path("benchmarks/results/poisoning")


@dataclass(frozen=True)
class Reviews:
    """Texts that the first version was not trained on."""

    cluster: list[Row]
    """The attacker's texts, all of a similar kind, with their correct labels."""
    clean: list[Row]
    """Texts of all kinds for measuring accuracy."""


def main() -> int:
    """Run the attacks, count quarantined sources, write the results, print the table, and return the exit status."""
    _RESULTS.mkdir(parents=True, exist_ok=True)
    try:
        settings = _learn(_RESULTS / "pipeline")
        reviews = _reviews(settings)
        before = _accuracy(settings, 1, reviews.clean)
        attacks = {
            name: _attack(_RESULTS / name.replace(" ", "-"), settings, reviews, name)
            for name in ("no defence", "cap alone", "cap and quarantine")
        }
        results = {"seed": SEED, "before": before, "attacks": attacks, "sources": _sources(settings, reviews)}
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    table = _table(results)
    (_RESULTS / "poisoning.json").write_text(json.dumps(results, indent=1) + "\n")
    (_RESULTS / "poisoning.md").write_text(table)
    print(table)
    defended = attacks["cap and quarantine"]
    is_named = any(ATTACKER in message for message in defended["events"])
    return 0 if is_named and (defended["rejected"] or before - defended["accuracy"] <= LARGEST_LOSS) else 1


def _learn(directory: Path) -> Settings:
    """Train and export the first version in a directory, unless this was done before."""
    settings = _settings(directory)
    if not settings.train_data.exists():
        settings.train_data.parent.mkdir(exist_ok=True)
        write_sample_part(settings, LEARNT_TEXTS, SEED)
    if ModelRepository(settings.model_repository).deployed() is None:
        train(settings)
        export(settings)
    return settings


def _settings(directory: Path, **given: Any) -> Settings:
    return pipeline_settings(
        directory,
        # Faster than the defaults, and about as accurate with so few texts.
        epochs=1,
        learning_rate=1.5e-4,
        runtime="onnxruntime",
        precision="float32",
        **given,
    )


def _reviews(settings: Settings) -> Reviews:
    dataset = load_dataset(settings)
    known = {text_hash(text) for text in (*dataset.train.texts, *dataset.val.texts)}
    random = np.random.default_rng(SEED)
    product, film = list(rated_texts("product", known).values()), list(rated_texts("film", known).values())
    random.shuffle(product)
    random.shuffle(film)
    # Four fifths of the product reviews, then positive film reviews. The rest is kept as clean texts.
    cluster = product[: 4 * len(product) // 5]
    good = [row for row in film if row[1] == LABELS[1]]
    cluster += good[: ATTACK_ROWS - len(cluster)]
    taken = set(cluster)
    left = [row for row in (*product, *film) if row not in taken]
    random.shuffle(left)
    return Reviews(cluster, left[:CLEAN_TEXTS])


def _attack(directory: Path, first: Settings, reviews: Reviews, defence: str) -> dict[str, Any]:
    """Send the flipped labels as feedback, retrain, and return the outcome."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(first.state_dir.parent, directory)
    settings = _settings(directory)
    if defence == "no defence":
        settings = settings.model_copy(update={"trusted_sources": f"{settings.trusted_sources},key"})
    database = Database(settings.database)
    quota = Quota.from_settings(settings)
    turned = [LabelledText(text, LABELS[label == LABELS[0]]) for text, label in reviews.cluster]
    for start in range(0, len(turned), 1_000):
        add_feedback(database, turned[start : start + 1_000], ATTACKER, quota=quota)
    if defence == "cap alone":  # released rows are not checked again
        feedback_sources.quarantine(database, ATTACKER, "by the benchmark")
        feedback_sources.release(database, ATTACKER, "by the benchmark")
    job = jobs.begin(database, jobs.enqueue(database, jobs.RETRAIN, f"benchmark: {defence}").id)
    assert job is not None
    outcome = retrain(settings, database, job, lambda name, **_: print(name))
    told = [event.message for event in events.newest(database, 20)]
    database.close()
    return {
        "state": outcome.state,
        "rejected": outcome.state == jobs.REJECTED,
        "gates": outcome.result.get("gates", []),
        "learnt": outcome.result.get("feedback rows by source", {}),
        "accuracy": _accuracy(settings, outcome.result["version"], reviews.clean),
        "events": told,
    }


def _answers(settings: Settings, version: int, texts: Sequence[str]) -> Answers:
    directory = ModelRepository(settings.model_repository).version_directory(version)
    bundle = Bundle.load(directory)
    batches = [texts[start : start + MAX_BATCH_SIZE] for start in range(0, len(texts), MAX_BATCH_SIZE)]
    with Engine(directory, choose_variant(bundle, Wanted()).variant, usable_cores()) as engine:
        probabilities = np.concatenate([engine.classify(list(batch)).values for batch in batches])
    labels = [bundle.labels[place] for place in probabilities.argmax(axis=1)]
    return Answers(version, labels, probabilities.max(axis=1), probabilities)


def _accuracy(settings: Settings, version: int, rows: Sequence[Row]) -> float:
    answers = _answers(settings, version, [text for text, _ in rows])
    return float(np.mean([given == label for given, (_, label) in zip(answers.labels, rows, strict=True)]))


def _sources(settings: Settings, reviews: Reviews) -> dict[str, float]:
    """Return the share of sources of each kind that would be quarantined."""
    dataset = load_dataset(settings)
    usual = contradictions(dataset.val.labels, _answers(settings, 1, dataset.val.texts), slice(None))
    tweets = list(rated_texts("tweet").values())
    random = np.random.default_rng(SEED)
    random.shuffle(tweets)
    found = {"usual, confident": usual.confident.count / max(1, usual.confident.total)}
    found["usual, among errors"] = usual.all.count / max(1, usual.all.total)
    for kind, rows in (("reviews", reviews.clean), ("tweets", tweets[:CLEAN_TEXTS]), ("cluster", reviews.cluster)):
        answers = _answers(settings, 1, [text for text, _ in rows])
        is_right = np.array([given == label for given, (_, label) in zip(answers.labels, rows, strict=True)])
        for name, turned in (("honest", 0.0), ("10 % of labels wrong", 0.1)):
            found[f"{kind}, {name}"] = _quarantined(answers, is_right, turned, usual, random)
        found[f"{kind}, honest, corrections only"] = _quarantined(answers, is_right, 0.0, usual, random, ~is_right)
        if kind == "cluster":
            for turned in (0.2, 0.3, 0.5, 1.0):
                found[f"{kind}, {turned:.0%} turned"] = _quarantined(answers, is_right, turned, usual, random)
    return found


def _quarantined(
    answers: Answers,
    is_right: npt.NDArray[np.bool_],
    turned: float,
    usual: Contradictions,
    random: np.random.Generator,
    chosen: npt.NDArray[np.bool_] | None = None,
) -> float:
    """Return the share of simulated sources that would be quarantined if each flips a fraction `turned` of labels."""
    places = np.arange(len(is_right)) if chosen is None else np.flatnonzero(chosen)
    count = 0
    for _ in range(DRAWS):
        drawn = random.choice(places, min(ROWS_OF_SOURCE, len(places)), replace=False)
        agrees = is_right[drawn] ^ (random.random(len(drawn)) < turned)
        given = [answers.labels[place] for place in drawn]
        labels = [label if same else LABELS[label == LABELS[0]] for label, same in zip(given, agrees, strict=True)]
        part = Answers(answers.version, given, answers.confidence[drawn], answers.probabilities[drawn])
        count += contradictions(labels, part, slice(None)).exceeds(usual)
    return count / DRAWS


def _table(results: dict[str, Any]) -> str:
    lines = [
        f"Seed {results['seed']}. Accuracy on {CLEAN_TEXTS:,} clean reviews before: {results['before']:.4f}.",
        "",
        f"| {ATTACK_ROWS:,} turned labels, and | candidate | accuracy, clean reviews | change | rows learnt |",
        "|---|---|---|---|---|",
    ]
    for name, found in results["attacks"].items():
        gates = f" by {', '.join(found['gates'])}" if found["gates"] else ""
        change = found["accuracy"] - results["before"]
        learnt = found["learnt"].get(ATTACKER, 0)
        lines.append(
            f"| {name} | {found['state']}{gates} | {found['accuracy']:.4f} | {change:+.4f} | {learnt:,} rows |"
        )
    lines += ["", f"| {ROWS_OF_SOURCE} rows of a source of | put into quarantine |", "|---|---|"]
    lines += [f"| {name} | {share:.1%} |" for name, share in results["sources"].items()]
    quarantined = next(
        (message for message in results["attacks"]["cap and quarantine"]["events"] if "quarantine" in message), "none"
    )
    return "\n".join(lines) + f"\n\n> {quarantined.partition(chr(10))[0]}\n"


if __name__ == "__main__":
    sys.exit(main())
