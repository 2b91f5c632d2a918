"""Asks Triton by the client: `python -m benchmarks.client_load ADDRESS STREAMS SECONDS FILE`.

Each stream, a thread, has the client answer the next line of the file, a JSON list of texts, when its last list is
answered. All share one client, as in a program that uses it.
"""

import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.http_load import summary
from serving.client import Client, TritonTimeoutError, TritonUnavailableError


def run(address: str, streams: int, seconds: float, requests: Iterator[list[str]]) -> str:
    """Load Triton for the time given; returns the summary."""
    latencies: list[float] = []
    answered_at: list[float] = []
    refused: list[Exception] = []
    # What is answered after the end does not count.
    ending = threading.Event()

    def stream(client: Client) -> None:
        while not ending.is_set():
            sent = time.perf_counter()
            try:
                client.predict(next(requests))
            except (TritonUnavailableError, TritonTimeoutError) as error:
                refused.append(error)
            else:
                if not ending.is_set():
                    answered = time.perf_counter()
                    answered_at.append(answered)
                    latencies.append(answered - sent)

    with Client(address) as client, ThreadPoolExecutor(streams) as threads:
        started = time.perf_counter()
        ends = [threads.submit(stream, client) for _ in range(streams)]
        time.sleep(seconds)
        ending.set()
        answer = summary(latencies, sorted(answered_at), len(refused), 0, time.perf_counter() - started)
        for end in ends:
            end.result()
    return answer


def main(arguments: Sequence[str]) -> None:
    """Load Triton and tell what came of it."""
    address, streams, seconds, file = arguments
    requests = [json.loads(line) for line in Path(file).read_bytes().splitlines()]
    print(run(address, int(streams), float(seconds), itertools.cycle(requests)))


if __name__ == "__main__":
    main(sys.argv[1:])
