"""Combines several calls into one whose predictions all come from one model version, even if it changes meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from serving.client.errors import TritonUnavailableError


class Versioned(Protocol):
    """A result that names its model version."""

    @property
    def version(self) -> int:
        """The model version that gave the result."""


Part = TypeVar("Part")
Answer = TypeVar("Answer", bound=Versioned)


class VersionChangesError(TritonUnavailableError):
    """The model version changed each time that the texts were sent."""


async def by_one_version(
    parts: Sequence[Part],
    call: Callable[[Sequence[Part]], Awaitable[Mapping[Part, Answer]]],
    pauses: Iterable[float],
    known: Mapping[Part, Answer] | None = None,
) -> dict[Part, Answer]:
    """Get results for all of `parts` through `call`, and return them with the `known` ones, all by one version.

    `call` must send its parts in order. Parts with results by another version are sent again, after each of `pauses`.

    Raises:
        VersionChangesError: results still differ in version after the last pause.
    """
    answers = dict(known or {})
    stale = list(parts)
    waits = iter(pauses)
    while stale:
        answers |= await call(stale)
        # The part sent last has the newest version: calls start in order, but may end in any order.
        newest = answers[stale[-1]].version
        stale = [part for part, answer in answers.items() if answer.version != newest]
        if stale:
            pause = next(waits, None)
            if pause is None:
                raise VersionChangesError("the model's version kept changing")
            if pause:
                await asyncio.sleep(pause)
    return answers
