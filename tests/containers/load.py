"""Asks a gateway for predictions until its input ends, then prints how many responses each status and version had.

`python -m tests.containers.load ADDRESS KEY`: four callers, each text once.
"""

import json
import sys
import threading
import time
from collections import Counter

import httpx

_CALLERS = 4
_PAUSE_S = 0.1
"""Of each caller, so that the work beside them has a processor."""


def main(address: str, key: str) -> None:
    """Print a JSON object with counts such as `200 by 1`; a request without a response counts as `lost`."""
    ended = threading.Event()
    seen: Counter[str] = Counter()

    def ask() -> None:
        with httpx.Client(base_url=address, headers={"X-API-Key": key}, timeout=30) as client:
            while not ended.wait(_PAUSE_S):
                try:
                    answer = client.post("/predict/live", json={"text": f"a good screen {time.monotonic_ns()}"})
                    seen[f"{answer.status_code} by {answer.headers.get('X-Model-Version', 'none')}"] += 1
                except httpx.TransportError:
                    seen["lost"] += 1

    callers = [threading.Thread(target=ask) for _ in range(_CALLERS)]
    for caller in callers:
        caller.start()
    sys.stdin.read()
    ended.set()
    for caller in callers:
        caller.join()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
