"""One client that sends live requests of new short texts over one connection: `python -m tests.e2e.attack_victim`.

It is a process of its own, so that what an attack costs the process that runs it does not show in its figures. It
prints JSON: how long each request took that was answered with 200, in milliseconds, or each where none was; and how
many were answered otherwise, by status.
"""

import http.client
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator

PAUSE_S = 0.02
WORDS = ("screen", "bright", "battery", "lasts", "plot", "makes", "no", "sense", "what", "a", "waste", "good", "of")


def texts(seed: int) -> Iterator[str]:
    """Texts of about 60 characters, each new."""
    words = random.Random(seed)
    return (" ".join((*words.choices(WORDS, k=11), str(number))) for number in itertools.count())


def main(port: int, key: str, seconds: float) -> None:
    """Send requests for so long."""
    taken: list[float] = []
    wasted: list[float] = []
    failures: Counter[str] = Counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    ends = time.monotonic() + seconds
    for text in texts(time.time_ns()):
        if time.monotonic() > ends:
            break
        started = time.perf_counter()
        try:
            connection.request("POST", "/predict/live", json.dumps({"text": text}), headers)
            response = connection.getresponse()
            response.read()
            outcome = str(response.status)
        except (OSError, http.client.HTTPException) as error:
            outcome = type(error).__name__
            connection.close()
        (taken if outcome == "200" else wasted).append(1_000 * (time.perf_counter() - started))
        if outcome != "200":
            failures[outcome] += 1
        time.sleep(PAUSE_S)
    print(json.dumps({"taken_ms": taken or wasted, "failures": failures}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
