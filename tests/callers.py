"""Threads that ask something until they are told to end."""

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

Own = TypeVar("Own", bound="Callers")


class Callers:
    """Runs each of its calls in a thread during a `with` block; they return when `ended` is set, as its end does."""

    def __init__(self, calls: Iterable[Callable[[], None]]) -> None:
        self.ended = threading.Event()
        self._threads = [threading.Thread(target=call) for call in calls]

    def __enter__(self: Own) -> Own:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self._threads:
            thread.join()
