"""The one response to a request in Triton, which several threads may ask about before one of them sends it."""

import threading
from typing import Any


class Reply:
    """What Triton gives to respond with, asked and used by one thread at a time.

    Triton 24.10 frees what knows of a cancellation with the final response, and dies of SIGSEGV when it is asked then.
    """

    def __init__(self, sender: Any, final: int) -> None:
        """Respond by `sender`, an InferenceResponseSender, with the flag `final`."""
        self._sender = sender
        self._final = final
        self._is_sent = False
        self._lock = threading.Lock()

    def is_wanted(self) -> bool:
        """Whether the client waits still: it has not cancelled or left, and its gRPC deadline has not passed."""
        with self._lock:
            return not self._is_sent and not self._sender.is_cancelled()

    def send(self, response: Any) -> None:
        """Send it; there is no other."""
        with self._lock:
            self._is_sent = True
            self._sender.send(response, flags=self._final)
