"""The Tritons that a client asks in turns: which of them is worth asking, and how long to wait for the next try."""

import itertools
import random
from collections.abc import Iterator, Sequence

from serving.triton_client import TritonClient

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_FIRST_REST_S = 0.5
_LONGEST_REST_S = 30.0


class Endpoint:
    """One Triton, and whether it is worth asking."""

    def __init__(self, address: str) -> None:
        """Ask the Triton whose gRPC is at `address`, a `host:port`."""
        self.triton = TritonClient(address)
        self.rests_until = 0.0
        """Until this time of the event loop's clock it is not asked while another can be."""
        self._failures = 0

    def failed(self, now: float) -> None:
        """Leave it alone for a while; requests that were under way together count as one failure."""
        if now >= self.rests_until:
            self._failures += 1
            rest_s = _FIRST_REST_S * 2.0 ** min(self._failures - 1, 16)
            self.rests_until = now + min(_LONGEST_REST_S, rest_s)

    def answered(self) -> None:
        """Ask it as any other."""
        self._failures = 0
        self.rests_until = 0.0

    def taken(self, now: float) -> None:
        """After a rest, one request tries whether it is well; until that is known, it counts as failed again."""
        if self._failures:
            self.failed(now)


class Endpoints:
    """All of them, asked in turns."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        """Begin with the first."""
        self.all = endpoints
        self._turns = itertools.cycle(endpoints)

    def next(self, now: float) -> Endpoint:
        """The next that does not rest; where all do, the one whose rest ends first."""
        for endpoint in itertools.islice(self._turns, len(self.all)):
            if endpoint.rests_until <= now:
                endpoint.taken(now)
                return endpoint
        return min(self.all, key=lambda endpoint: endpoint.rests_until)

    def all_rest(self, now: float) -> bool:
        """Whether none is worth asking at once."""
        return all(endpoint.rests_until > now for endpoint in self.all)


def pauses() -> Iterator[float]:
    """Seconds to wait before each further try.

    Full jitter, so that clients who failed together do not come back together:
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    for number in itertools.count():
        yield random.uniform(0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(number, 16)))
