"""Leases: exclusive rights that one process on any host can hold for a limited time.

A holder that hangs loses its lease when the time expires; a dead holder on the same host loses it at once. A holder
that resumes later notices the loss before it acts, because it must renew first (Gray and Cheriton, "Leases: an
efficient fault-tolerant mechanism for distributed file cache consistency", SOSP 1989).
"""

import functools
import logging
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
"""Lease of the process that steers shadow and canary releases."""

log = logging.getLogger(__name__)


def take(database: Database, name: str, holder: str, seconds: float) -> bool:
    """Take or renew the lease for some seconds; return False if another process holds it."""
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
    except IntegrityError:  # another process created it first
        return False


def give_back(database: Database, name: str, holder: str) -> None:
    """Release the lease if `holder` has it."""
    with database.transaction() as session:
        session.execute(delete(Lease).where(Lease.name == name, Lease.holder == holder))


def holder_of(database: Database, name: str) -> str | None:
    """Return the holder of the lease, or None if it is free or expired."""
    with database.reading() as session:
        lease = session.get(Lease, name)
        return None if lease is None or _is_over(lease, now(session)) else lease.holder


@contextmanager
def held(
    database: Database, name: str, seconds: float, wait_s: float = 0.0, on_loss: Callable[[], None] = lambda: None
) -> Iterator[bool]:
    """Hold a lease during the block; a thread renews it. Yields False if another process holds the lease.

    Attempts to take it end after `wait_s` seconds. If the lease could not be renewed in time, the thread calls
    `on_loss`: another process may hold the lease then. A lease that cannot be released expires by itself.
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
        try:
            give_back(database, name, holder)
        except SQLAlchemyError as error:
            # What the block did is done, so this is no failure of the block.
            reason = str(error).partition("\n")[0]
            log.warning("The lease '%s' cannot be released now; it expires in %.0f s: %s", name, seconds, reason)


def new_holder() -> str:
    """Return a unique name that contains the host and process id."""
    return f"{_here()} {os.getpid()} {secrets.token_hex(4)}"


def is_of_this_process(holder: str) -> bool:
    """Return whether `new_holder` created the name in this process."""
    where, process, _ = holder.rsplit(" ", 2)
    return (where, int(process)) == (_here(), os.getpid())


@functools.cache
def _here() -> str:
    """Return the host's name, the ID of its boot, and the process id namespace; containers have their own namespaces.

    Copies of a virtual machine may have the same name, and all have the same first namespace, but each boots by itself.
    """
    namespace, boot = Path("/proc/self/ns/pid"), Path("/proc/sys/kernel/random/boot_id")
    where = [
        socket.gethostname(),
        boot.read_text().strip() if boot.exists() else "boot",
        namespace.readlink().name if namespace.exists() else "pid",
    ]
    return " ".join(where)


def _is_over(lease: Lease, time_: datetime) -> bool:
    """Return whether the lease is free: it has expired, or its holder was a process on this host that has ended."""
    where, process, _ = lease.holder.rsplit(" ", 2)
    return lease.expires_at <= time_ or (where == _here() and not psutil.pid_exists(int(process)))


def _keep(
    database: Database, name: str, holder: str, seconds: float, ended: threading.Event, on_loss: Callable[[], None]
) -> None:
    def lose() -> None:
        if not ended.is_set():
            on_loss()

    # The loss must be noticed in time, even while the database hangs.
    expiry = _started_timer(seconds, lose)
    while not ended.wait(seconds / 4):
        asked_at = time.monotonic()
        try:
            kept = take(database, name, holder, seconds)
        except Exception:
            if expiry.is_alive():
                continue  # the database may come back before the lease expires
            return
        if not expiry.is_alive():
            return
        expiry.cancel()
        if not kept:
            lose()
            return
        expiry = _started_timer(seconds - (time.monotonic() - asked_at), lose)
    expiry.cancel()


def _started_timer(seconds: float, call: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
    return timer
