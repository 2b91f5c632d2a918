"""The whole loop on a running pipeline: tweets come in as feedback, and a better model serves, while requests flow.

`python -m tests.e2e.closing_the_loop` starts one in a directory of its own, on the whole sample data, prints what
happens, and fails where something does not happen as it should. It takes about half an hour on two cores.
"""

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
from tests.e2e.conftest import Pipeline, copy_checkout, running_pipeline, wait_for
from trainer.sample_data import read_ratings

FEEDBACK = 600
WRONG_SHARE = 0.4
"""Of the tweets that are told as feedback, as a team would whose users complain."""
LEAST_GAIN = 0.08
LARGEST_LOSS = 0.01
CONNECTIONS = 32
REQUESTS_PER_S = 1.0
"""Of each connection."""
TIMEOUT_S = 2_400.0
TOLD = ("stale", "Retraining started", "was promoted")
"""In the subjects of mails, in this order."""


@dataclass(frozen=True)
class Tweet:
    text: str
    label: str


class PacedLoad(Callers):
    """Many connections that each ask something new at a steady pace; nothing is asked twice when it fails."""

    def __init__(self, url: str) -> None:
        self.statuses: Counter[str] = Counter()
        self.milliseconds: list[float] = []
        self._url = url
        # So that no answer is known from another load.
        self._name = time.monotonic_ns()
        super().__init__(partial(self._ask, number) for number in range(CONNECTIONS))

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
        self._url = url
        self._headers = {"X-API-Key": key}

    def ask(self, method: str, path: str, **named: Any) -> Any:
        headers = self._headers | named.pop("headers", {})
        answer = httpx.request(method, self._url + path, headers=headers, timeout=120, **named)
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


def clear_tweets() -> list[Tweet]:
    """Tweets whose raters agree, each once."""
    found = {
        text_hash(text): Tweet(text, "Positive" if r > 0 else "Negative")
        for text, r in read_ratings("tweet")
        if abs(r) >= 0.5
    }
    return list(found.values())


def close_the_loop(
    pipeline: Pipeline, least_gain: float = LEAST_GAIN, largest_loss: float = LARGEST_LOSS
) -> dict[str, Any]:
    """Do it all; returns the figures."""
    api = Api(pipeline.url, (pipeline.checkout / ".sentiment" / "admin_key").read_text())
    first = api.version()
    tweets = clear_tweets()
    labels = api.labels([tweet.text for tweet in tweets])
    right = [tweet for tweet, label in zip(tweets, labels, strict=True) if label == tweet.label]
    wrong = [tweet for tweet, label in zip(tweets, labels, strict=True) if label != tweet.label]
    draw = random.Random(0)
    complaints = round(FEEDBACK * WRONG_SHARE)
    chosen = draw.sample(wrong, complaints) + draw.sample(right, FEEDBACK - complaints)
    draw.shuffle(chosen)
    others = sorted(set(tweets) - set(chosen), key=lambda tweet: tweet.text)
    print(f"Version {first} serves; of {len(tweets)} tweets it has {len(right) / len(tweets):.4f} right.")
    with PacedLoad(pipeline.url) as load:
        for start in range(0, FEEDBACK, 100):
            rows = [{"text": tweet.text, "label": tweet.label} for tweet in chosen[start : start + 100]]
            api.ask("POST", "/feedback", json={"feedback": rows}, headers={"Idempotency-Key": f"tweets {start}"})
        before, untold_before = api.accuracy(_held_out(chosen)), api.accuracy(others)
        found = api.ask("POST", "/check")
        assert found["state"] == "succeeded", found
        assert found["result"]["stale"], found
        reviews = found["result"]["validation"]["accuracy"]
        print(f"The check: {found['result']['problems']}; {found['result']['decision']}")
        started = time.monotonic()
        job = next(event["job_id"] for event in _wait_for_event(api, "retraining-started", started))
        ended = _wait_for_job(api, job, started)
        assert ended["state"] == "succeeded", ended
        second = ended["result"]["version"]
        assert api.version() == second
        minutes = (time.monotonic() - started) / 60
        after, untold_after = api.accuracy(_held_out(chosen)), api.accuracy(others)
        again = api.ask("POST", "/check")["result"]
    figures = {
        "versions": [first, second],
        "held-out tweets": [before, after],
        "tweets not told": [untold_before, untold_after],
        "reviews": [reviews, again["validation"]["accuracy"]],
        "minutes": minutes,
        "requests": dict(load.statuses),
        "p99 ms": sorted(load.milliseconds)[int(0.99 * len(load.milliseconds))],
    }
    print(figures)
    assert set(load.statuses) == {"200"}, load.statuses
    assert after - before >= least_gain
    assert reviews - again["validation"]["accuracy"] <= largest_loss
    told = {event["kind"] for event in api.ask("GET", "/events")}
    assert {"checked", "stale", "retraining-started", "promoted"} <= told
    mails = pipeline.mail_server.received

    def all_are_told() -> bool:
        # Others may come between, such as that tweets are unlike reviews.
        subjects = iter(str(mail["Subject"]) for mail in mails)
        return all(any(words in subject for subject in subjects) for words in TOLD)

    wait_for(all_are_told, 30, "the mails")
    print("\n".join(str(mail["Subject"]) for mail in mails))
    return figures


def _held_out(tweets: Sequence[Tweet]) -> list[Tweet]:
    return [tweet for tweet in tweets if is_held_out(text_hash(tweet.text))]


def _wait_for_event(api: Api, kind: str, started: float) -> list[Any]:
    while True:
        found: list[Any] = api.ask("GET", "/events", params={"kind": kind})
        if found:
            return found
        assert time.monotonic() - started < TIMEOUT_S, f"no event {kind}"
        time.sleep(1)


def _wait_for_job(api: Api, number: int, started: float) -> Any:
    step = ""
    while True:
        job = api.ask("GET", f"/jobs/{number}")
        if job["step"] != step:
            step = job["step"]
            print(f"{time.monotonic() - started:6.0f} s: {step}")
        if job["ended_at"] is not None:
            return job
        assert time.monotonic() - started < TIMEOUT_S, f"job {number} takes too long"
        time.sleep(1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        copy_checkout(Path(directory))
        with running_pipeline(Path(directory), TIMEOUT_S) as running:
            close_the_loop(running)
