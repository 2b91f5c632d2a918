"""The tutorial's loop on a running pipeline: tweets come in as feedback, a better model serves, and requests flow.

`python -m tests.e2e.closing_the_loop` starts one in a directory of its own, on the whole sample data, prints what
happens, and fails where something does not happen as it should. It takes about half an hour on two cores.
"""

import csv
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from storage.feedback import is_held_out, text_hash
from tests.callers import Callers
from tests.e2e.conftest import TUTORIAL, Pipeline, copy_checkout, running_pipeline, wait_for
from tests.pages import blocks, check_excerpt

STEPS = ("--out judged.csv", "python app.py feedback feedback.csv", "python app.py check")
"""In the tutorial's blocks, in this order: what it is wrong about, what is right, and the retraining."""
LEAST_GAIN = 0.08
LARGEST_LOSS = 0.01
CONNECTIONS = 32
REQUESTS_PER_S = 1.0
"""Of each connection."""
TIMEOUT_S = 2_400.0
TOLD = ("under", "Retraining started", "was promoted")
"""In the subjects of mails, in this order."""


@dataclass(frozen=True)
class Tweet:
    text: str
    label: str


class PacedLoad(Callers):
    """Many connections that each ask something new at a steady pace; nothing is asked twice when it fails."""

    def __init__(self, url: str, connections: int) -> None:
        self.statuses: Counter[str] = Counter()
        self.milliseconds: list[float] = []
        self._url = url
        # So that no answer is known from another load.
        self._name = time.monotonic_ns()
        super().__init__(partial(self._ask, number) for number in range(connections))

    def _ask(self, number: int) -> None:
        pace = random.Random(number)
        with httpx.Client(timeout=30) as client:
            count = 0
            while not self.ended.wait(pace.expovariate(REQUESTS_PER_S)):
                count += 1
                started = time.perf_counter()
                try:
                    text = f"This is sentence {count} of caller {number} in load {self._name}, and it is rather good."
                    status = str(client.post(f"{self._url}/predict/live", json={"text": text}).status_code)
                except httpx.TransportError as error:
                    status = type(error).__name__
                self.milliseconds.append(1_000 * (time.perf_counter() - started))
                self.statuses[status] += 1


class Api:
    """What an operator's program asks."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self._headers = {"X-API-Key": key}

    def ask(self, method: str, path: str, **named: Any) -> Any:
        headers = self._headers | named.pop("headers", {})
        answer = httpx.request(method, self.url + path, headers=headers, timeout=120, **named)
        assert answer.is_success, answer.text
        return answer.json()

    def labels(self, texts: Sequence[str]) -> list[str]:
        found: list[str] = []
        for start in range(0, len(texts), 500):
            answer = self.ask("POST", "/predict/batch", json={"texts": texts[start : start + 500]})
            found += answer["predictions"]["label"].values()
        return found

    def accuracy(self, tweets: Sequence[Tweet]) -> float:
        labels = self.labels([tweet.text for tweet in tweets])
        return sum(label == tweet.label for label, tweet in zip(labels, tweets, strict=True)) / len(tweets)

    def version(self) -> int:
        return next(int(model["version"]) for model in self.ask("GET", "/models") if "champion" in model["aliases"])


def close_the_loop(
    pipeline: Pipeline,
    least_gain: float = LEAST_GAIN,
    largest_loss: float = LARGEST_LOSS,
    connections: int = CONNECTIONS,
) -> dict[str, Any]:
    """Do what the tutorial says, and see that it becomes what the tutorial shows; returns the figures."""
    api = Api(pipeline.url, (pipeline.checkout / ".sentiment" / "admin_key").read_text())
    first = api.version()
    started = time.monotonic()
    with PacedLoad(pipeline.url, connections) as load:
        for step in STEPS:
            (commands,) = [commands for commands in blocks(TUTORIAL) if step in commands]
            printed = pipeline.shell(commands, timeout_s=TIMEOUT_S)
            print(printed)
            check_excerpt(TUTORIAL, commands, printed)
        minutes = (time.monotonic() - started) / 60
        second = api.version()
        assert second != first
        reviews = _found_on_reviews(api)
        tweets, told = (read_tweets(pipeline.checkout / name) for name in ("tweets.csv", "feedback.csv"))
        held_out = [tweet for tweet in told if is_held_out(text_hash(tweet.text))]
        untold = sorted(set(tweets) - set(told), key=lambda tweet: tweet.text)
        judged = read_tweets(pipeline.checkout / "judged.csv", "predicted_label")
        before, untold_before = (_agreement(some, judged) for some in (held_out, untold))
        after, untold_after = (api.accuracy(some) for some in (held_out, untold))
        pipeline.shell("python app.py check", timeout_s=TIMEOUT_S)
        again = _found_on_reviews(api)
    figures = {
        "versions": [first, second],
        "held-out tweets": [before, after],
        "tweets not told": [untold_before, untold_after],
        "reviews": [reviews, again],
        "minutes": minutes,
        "requests": dict(load.statuses),
        "p99 ms": sorted(load.milliseconds)[int(0.99 * len(load.milliseconds))],
    }
    print(figures)
    assert set(load.statuses) == {"200"}, load.statuses
    assert after - before >= least_gain
    assert reviews - again <= largest_loss
    kinds = {event["kind"] for event in api.ask("GET", "/events")}
    assert {"checked", "stale", "retraining-started", "promoted"} <= kinds
    mails = pipeline.mail_server.received

    def all_are_told() -> bool:
        # Others may come between, such as that tweets are unlike reviews.
        subjects = iter(str(mail["Subject"]) for mail in mails)
        return all(any(words in subject for subject in subjects) for words in TOLD)

    wait_for(all_are_told, 60, "the mails")
    print("\n".join(str(mail["Subject"]) for mail in mails))
    return figures


def _found_on_reviews(api: Api) -> float:
    """Accuracy on the validation file, by the last check."""
    return float(api.ask("GET", "/events", params={"kind": "checked"})[0]["figures"]["validation"]["accuracy"])


def read_tweets(path: Path, label: str = "label") -> list[Tweet]:
    """Texts of a CSV file with the labels of one of its columns."""
    with path.open(encoding="utf-8", newline="") as file:
        return [Tweet(row["text"], row[label]) for row in csv.DictReader(file)]


def _agreement(tweets: Sequence[Tweet], judged: Sequence[Tweet]) -> float:
    return len(set(tweets) & set(judged)) / len(tweets)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        copy_checkout(Path(directory))
        with running_pipeline(Path(directory), TIMEOUT_S) as running:
            close_the_loop(running)
