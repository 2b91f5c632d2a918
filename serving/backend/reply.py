"""The response to a request in Triton: several threads may check for cancellation before one sends the response."""

import threading
from typing import Any


class Reply:
    """A lock around Triton's response sender, so that only one thread uses it at a time.

    Triton 24.10 frees the cancellation state with the final response. A later `is_cancelled` crashes Triton (SIGSEGV).
    """

    def __init__(self, sender: Any, final: int) -> None:
        """Wrap `sender`, an InferenceResponseSender; `final` is the flag of the final response."""
        self._sender = sender
        self._final = final
        self._is_sent = False
        self._is_abandoned = False
        self._lock = threading.Lock()

    def is_wanted(self) -> bool:
        """Return whether the client still waits: no response was sent, no cancellation, and no gRPC deadline passed."""
        with self._lock:
            return not self._is_sent and not self._is_abandoned and not self._sender.is_cancelled()

    def abandon(self) -> None:
        """Mark the request as abandoned, as the client has reported in another request."""
        self._is_abandoned = True

    def send(self, response: Any) -> None:
        """Send the final response. Call this once."""
        with self._lock:
            self._is_sent = True
            self._sender.send(response, flags=self._final)
