"""The processes of one training, each of which learns from its share of every batch, as `torchrun` starts them."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed

from errors import PipelineError

Found = TypeVar("Found")

_AGAIN = "Run the same command again: the training resumes from its last checkpoint."


@dataclass(frozen=True)
class Processes:
    """How many there are, and which of them this one is; one alone unless `torchrun` started it."""

    rank: int = 0
    """Among all; the first, 0, evaluates, records and saves for all."""
    count: int = 1
    here: int = 1
    """How many of them share this machine's cores."""

    @classmethod
    def started(cls) -> "Processes":
        """Those that `torchrun`, or anything that sets the same environment variables, has started."""
        rank, count, here = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return cls(int(rank or 0), int(count or 1), int(here or 1))

    @property
    def is_first(self) -> bool:
        """Whether this one evaluates, records and saves."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """How many texts of a batch this one learns from.

        Raises:
            PipelineError: not as many as each other one.
        """
        if batch_size % self.count:
            raise PipelineError(
                f"A batch of {batch_size} texts (SENTIMENT_BATCH_SIZE) cannot be divided among {self.count} "
                f"processes; give a multiple of {self.count}, such as {-(-batch_size // self.count) * self.count}."
            )
        return batch_size // self.count

    def as_first_finds(self, find: Callable[[], Found]) -> Found:
        """What `find` returns to the first process, in all of them; only there it is called."""
        if self.count == 1:
            return find()
        found: list[Any] = [find() if self.is_first else None]
        torch.distributed.broadcast_object_list(found)
        result: Found = found[0]
        return result

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work with the others in the block; where one of them ends too early, all do.

        Raises:
            PipelineError: another one ended.
        """
        if self.count == 1:
            yield
            return
        before = signal.signal(signal.SIGTERM, _give_up)
        try:
            yield
            torch.distributed.destroy_process_group()
        except RuntimeError as error:
            # Gloo has no error of its own.
            if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
                raise PipelineError(
                    f"Process {self.rank} of the training lost another of its {self.count} processes: "
                    f"{str(error).splitlines()[0]} {_AGAIN}"
                ) from error
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def _give_up(*_: object) -> NoReturn:
    """What `torchrun` tells the processes that are left when one has ended."""
    raise PipelineError(f"The training was told to end, which it is when one of its processes has ended. {_AGAIN}")
