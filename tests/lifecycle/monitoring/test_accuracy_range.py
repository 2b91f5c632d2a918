"""The range of accuracy without labels: narrow where nothing has changed, and open to the truth where it has."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.special import softmax

from lifecycle.monitoring.accuracy_range import AGREEMENT, CONFIDENCE, TRANSPORT, Estimator
from lifecycle.monitoring.transport import transport_costs

THREE = ("bad", "fair", "good")

Drawn = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]


def draw(random: np.random.Generator, texts: int, overlooked: float = 0.0, favoured: float = 0.0) -> Drawn:
    """Draw a model's probabilities [texts, 3], a weaker second model's labels, and the right labels.

    For a share `overlooked` of the texts, both models see something that has nothing to do with the right label, but
    the first is as sure as ever. `favoured` is added to its logits for the first label.
    """
    targets = random.integers(3, size=texts)
    seen = np.where(random.random(texts) < overlooked, random.integers(3, size=texts), targets)
    other = np.where(random.random(texts) < overlooked, random.integers(3, size=texts), targets)
    logits = random.normal(0, 1, (texts, 3)) + 2.5 * np.eye(3)[seen]
    logits[:, 0] += favoured
    second = (random.normal(0, 1, (texts, 3)) + 1.5 * np.eye(3)[other]).argmax(axis=1)
    return softmax(2.5 * logits, axis=1), second, targets


@pytest.fixture(scope="module")
def fitted() -> Estimator:
    probabilities, second, targets = draw(np.random.default_rng(1), 1_300)
    return Estimator.fit(THREE, probabilities, targets, second)


def held(estimator: Estimator, windows: int, **changes: float) -> tuple[float, float, float]:
    """Return the share of windows whose range includes the true accuracy, the mean width, and how often they differ."""
    random = np.random.default_rng(2)
    inside, widths, differ = [], [], []
    for _ in range(windows):
        probabilities, second, targets = draw(random, 500, **changes)
        true = np.mean(probabilities.argmax(axis=1) == targets)
        found = estimator.estimate(probabilities, second)
        inside.append(found.accuracy.low <= true <= found.accuracy.high)
        widths.append(found.accuracy.high - found.accuracy.low)
        differ.append(found.disagree)
    return float(np.mean(inside)), float(np.mean(widths)), float(np.mean(differ))


def test_the_range_is_narrow_and_right_where_nothing_has_changed(fitted: Estimator) -> None:
    inside, width, differ = held(fitted, 24)
    assert inside >= 0.9
    assert width < 0.08
    assert differ <= 0.1


@pytest.mark.parametrize("changes", [{"overlooked": 0.3}, {"favoured": 1.5}], ids=["both err", "one label too often"])
def test_the_range_is_wider_and_right_where_the_model_is_too_sure(fitted: Estimator, changes: dict[str, float]) -> None:
    inside, _, differ = held(fitted, 12, **changes)
    assert inside >= 0.9
    assert differ >= 0.9
    # The first method alone would be wrong.
    probabilities, _, targets = draw(np.random.default_rng(3), 2_000, **changes)
    alone = fitted.estimate(probabilities, None).methods[CONFIDENCE]
    assert alone - np.mean(probabilities.argmax(axis=1) == targets) > 0.05


def test_macro_f1_is_as_uncertain_as_accuracy(fitted: Estimator) -> None:
    probabilities, second, _ = draw(np.random.default_rng(3), 500, overlooked=0.3)
    found = fitted.estimate(probabilities, second)
    assert found.methods.keys() == {CONFIDENCE, TRANSPORT, AGREEMENT}
    assert found.macro_f1.high - found.macro_f1.low == pytest.approx(found.accuracy.high - found.accuracy.low, abs=0.02)


def test_without_texts_there_is_no_second_model() -> None:
    probabilities, _, targets = draw(np.random.default_rng(1), 300)
    found = Estimator.fit(THREE, probabilities, targets, None).estimate(probabilities, None)
    assert found.methods.keys() == {CONFIDENCE, TRANSPORT}


def test_a_second_model_that_guesses_is_no_second_opinion() -> None:
    random = np.random.default_rng(1)
    probabilities, _, targets = draw(random, 300)
    assert Estimator.fit(THREE, probabilities, targets, random.integers(3, size=300)).agreement is None


def test_the_transport_is_the_cheapest() -> None:
    random = np.random.default_rng(5)
    probabilities = random.dirichlet(np.ones(3), 30)
    costs = 1 - probabilities[:, np.repeat([0, 1, 2], [15, 9, 6])]
    cheapest = costs[linear_sum_assignment(costs)].sum()
    assert transport_costs(probabilities, np.array([0.5, 0.3, 0.2])).sum() == pytest.approx(cheapest)
