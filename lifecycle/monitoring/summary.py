"""How a version stands, in a sentence that needs no knowledge of the figures behind it."""

from collections.abc import Collection, Mapping, Sequence

from lifecycle.monitoring.first_stage import FirstStage
from lifecycle.monitoring.labelling import Standing
from lifecycle.monitoring.live_quality import LiveQuality
from trainer.evaluation import Evaluation


def summary(
    version: int,
    problems: Sequence[str],
    evaluations: Mapping[str, Evaluation],
    live: LiveQuality | None,
    foreseen: Sequence[str],
    drifted: Collection[str] | None,
    labelled: Standing | None,
    stage: FirstStage | None = None,
) -> str:
    """Return how `version` stands: its `problems`, or its accuracy, then what its live texts look like.

    `foreseen` are problems that the estimate `live` finds; `drifted` are the kinds of drift, or None if there are too
    few texts to tell. `labelled` is what labels of random live texts say. `stage` is the first of two stages, if any.
    """
    if problems:
        parts = [f"Version {version} is under a threshold: {'; '.join(problems)}"]
    else:
        found = [f"{evaluation.accuracy:.1%} on {name}" for name, evaluation in evaluations.items()]
        parts = [f"Version {version} is fine: accuracy {' and '.join(found)}"]
    if labelled is not None and labelled.labels and not labelled.problem:
        parts.append(f"accuracy on live texts by random labels: {labelled}")
    if live is None:
        parts.append("too few live texts to estimate how it does on them")
    else:
        low, high = live.all.accuracy.low, live.all.accuracy.high
        parts.append(f"its accuracy on live texts looks like {low:.0%} to {high:.0%}")
        if live.all.disagree:
            parts[-1] += " (the estimates differ; labels for some live texts would settle it)"
        elif drifted and "texts" in drifted:
            parts[-1] += ", but they are unlike the known texts, so it may be lower"
        elif foreseen:
            parts[-1] += ", less than required"
    if drifted is not None:
        parts.append(f"drift of {' and '.join(drifted)}" if drifted else "no drift")
    if stage is not None:
        parts.append(str(stage))
    return "; ".join(parts) + "."
