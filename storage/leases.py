"""Leases: the right of one process, on whatever host, to do what only one may do at a time.

A holder that hangs loses its lease when the time is up, one that dies does at once where that can be seen; one that
comes back later finds that out before it acts, because it must renew first (Gray and Cheriton, "Leases: an efficient
fault-tolerant mechanism for distributed file cache consistency", SOSP 1989).
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import psutil
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from storage.database import Database, now
from storage.tables import Lease

SCHEDULER = "scheduler"
DEPLOYING = "deploying"
RELEASING = "releasing"
"""Of whoever steers what is tried on live texts."""


def take(database: Database, name: str, holder: str, seconds: float) -> bool:
    """Take the lease, or renew it, for so many seconds from now; false where another holds it."""
    try:
        with database.transaction() as session:
            time_ = now(session)
            lease = session.get(Lease, name, with_for_update=True)
            if lease is None:
                lease = Lease(name=name, holder=holder, expires_at=time_)
                session.add(lease)
            elif lease.holder != holder and not _is_over(lease, time_):
                return False
            lease.holder = holder
            lease.expires_at = time_ + timedelta(seconds=seconds)
        return True
    except IntegrityError:  # another made it first
        return False


def give_back(database: Database, name: str, holder: str) -> None:
    """End the lease, if `holder` has it."""
    with database.transaction() as session:
        session.execute(delete(Lease).where(Lease.name == name, Lease.holder == holder))


def holder_of(database: Database, name: str) -> str | None:
    """Who has the lease; none where it is free or over."""
    with database.reading() as session:
        lease = session.get(Lease, name)
        return None if lease is None or _is_over(lease, now(session)) else lease.holder


@contextmanager
def held(
    database: Database, name: str, seconds: float, wait_s: float = 0.0, on_loss: Callable[[], None] = lambda: None
) -> Iterator[bool]:
    """Hold a lease of so many seconds during the block, renewed by a thread; yields whether it could be had.

    It is asked for until `wait_s` seconds have passed. `on_loss` is called, in that thread, when it could not be
    renewed in time: another may have it then.
    """
    holder = new_holder()
    deadline = time.monotonic() + wait_s
    while not take(database, name, holder, seconds):
        if time.monotonic() >= deadline:
            yield False
            return
        time.sleep(0.2)
    ended = threading.Event()
    keeper = threading.Thread(target=_keep, args=(database, name, holder, seconds, ended, on_loss), daemon=True)
    keeper.start()
    try:
        yield True
    finally:
        ended.set()
        keeper.join()
        give_back(database, name, holder)


def new_holder() -> str:
    """A name that no other holder has, and that tells where it runs."""
    return f"{_here()} {os.getpid()} {secrets.token_hex(4)}"


def is_of_this_process(holder: str) -> bool:
    """Whether `new_holder` made the name in this process."""
    where, process, _ = holder.rsplit(" ", 2)
    return (where, int(process)) == (_here(), os.getpid())


def _here() -> str:
    """The host, and on it the space within which process ids are unique: containers have their own."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {namespace.readlink().name if namespace.exists() else 'pid'}"


def _is_over(lease: Lease, time_: datetime) -> bool:
    """Whether nobody has the lease: its time is up, or its holder was a process here that is gone."""
    where, process, _ = lease.holder.rsplit(" ", 2)
    return lease.expires_at <= time_ or (where == _here() and not psutil.pid_exists(int(process)))


def _keep(
    database: Database, name: str, holder: str, seconds: float, ended: threading.Event, on_loss: Callable[[], None]
) -> None:
    renewed_at = time.monotonic()
    while not ended.wait(seconds / 4):
        try:
            kept = take(database, name, holder, seconds)
        except SQLAlchemyError:
            # The database may come back before the lease is over.
            kept = time.monotonic() - renewed_at < seconds
        else:
            renewed_at = time.monotonic()
        if not kept:
            on_loss()
            return
