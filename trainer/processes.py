"""The processes of one training, started by `torchrun`. Each trains on its share of every batch."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed

from common.errors import PipelineError

Found = TypeVar("Found")

_AGAIN = "Run the same command again: the training resumes from its last checkpoint."


@dataclass(frozen=True)
class Processes:
    """Number of processes, and the position of this one. Without `torchrun` there is one."""

    rank: int = 0
    """Position of this process. The first one, 0, evaluates, records and saves."""
    count: int = 1
    here: int = 1
    """Number of processes that share this machine's cores."""

    @classmethod
    def started(cls) -> "Processes":
        """Read the environment variables that `torchrun` sets."""
        rank, count, here = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return cls(int(rank or 0), int(count or 1), int(here or 1))

    @property
    def is_first(self) -> bool:
        """This process evaluates, records and saves."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """Number of texts of a batch for this process.

        Raises:
            PipelineError: the batch cannot be divided into equal shares.
        """
        if batch_size % self.count:
            raise PipelineError(
                f"A batch of {batch_size} texts (SENTIMENT_BATCH_SIZE) cannot be divided among {self.count} "
                f"processes. Use a multiple of {self.count}, such as {-(-batch_size // self.count) * self.count}."
            )
        return batch_size // self.count

    def as_first_finds(self, find: Callable[[], Found]) -> Found:
        """Call `find` in the first process, and return its result in all processes."""
        if self.count == 1:
            return find()
        found: list[Any] = [find() if self.is_first else None]
        torch.distributed.broadcast_object_list(found)
        result: Found = found[0]
        return result

    @contextmanager
    def together(self) -> Iterator[None]:
        """Take part in the training during the block. If one process ends early, all end.

        Raises:
            PipelineError: another process ended.
        """
        if self.count == 1:
            yield
            return
        before = signal.signal(signal.SIGTERM, _give_up)
        try:
            yield
            torch.distributed.destroy_process_group()
        except RuntimeError as error:
            # Gloo has no exception type.
            if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
                raise PipelineError(
                    f"Process {self.rank} of {self.count} of the training lost the connection to another: "
                    f"{str(error).splitlines()[0]} {_AGAIN}"
                ) from error
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def _give_up(*_: object) -> NoReturn:
    """Handle SIGTERM, which `torchrun` sends to the remaining processes when one has ended."""
    raise PipelineError(f"torchrun stopped this process of the training, because another one ended. {_AGAIN}")
