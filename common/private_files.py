"""Protects the pipeline's files from other accounts of the machine, and warns if that is not possible.

New files are private by the umask (`app.py`). This module removes permissions that an older version left, and warns of
those it cannot remove. The database, MLflow's store and the logs contain users' texts, and the state directory contains
the code that Triton runs.
"""

import grp
import logging
import os
import pwd
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from common.home import env_file
from common.settings import Settings
from common.sqlite_url import sqlite_file

PRIVATE_UMASK = 0o077

_CONTAINERS = ("/.dockerenv", "/run/.containerenv")
"""Files that Docker and Podman create in containers."""
_SECCOMP = Path("/proc/sys/kernel/seccomp/actions_avail")
_SHARED_MEMORY = Path("/dev/shm")

log = logging.getLogger(__name__)


def close_to_other_accounts(settings: Settings) -> None:
    """Remove other accounts' permissions on the pipeline's files; log what was removed, and what stays open."""
    closed = []
    for path in _kept(settings):
        before = _mode(path)
        had_content = _has_content(path)
        _close(path)
        if _mode(path) != before and had_content:  # a fresh clone has no texts and no models yet
            closed.append(str(path))
    if closed:
        log.info(
            "Only this account can read %s from now on; before, other accounts could.",
            ", ".join(closed),
        )
    for warning in what_stays_open(settings):
        log.warning("%s", warning)


def what_stays_open(settings: Settings) -> list[str]:
    """Return a warning for each way in which other accounts can access the files; empty if there is none."""
    warnings = []
    for path, content in _kept(settings).items():
        rights = _mode(path) & ~_left_open(path) & 0o077
        if rights & 0o022 or _owner(path) not in (0, os.geteuid()):
            warnings.append(
                f"Other accounts of this machine can change {path} ({_reason(path)}): with it they run code as "
                f"{_account(os.geteuid())}. Move it to a directory of this account."
            )
        elif rights:
            warnings.append(
                f"Other accounts of this machine can read {path} ({_reason(path)}), and in it {content}. Move it to a "
                "directory of this account."
            )
    for directory in sorted({parent for path in _kept(settings) for parent in _replaceable(path)}):
        warnings.append(
            f"Other accounts of this machine can replace what lies in {directory} (rights {_mode(directory):03o}, of "
            f"{_account(_owner(directory))}), and so run code as {_account(os.geteuid())}. Keep the pipeline's "
            "files where only this account and root can write."
        )
    if settings.triton_url is None and not _can_keep_memory_private():
        warnings.append(
            "Other accounts of this machine can read the texts of requests in /dev/shm: this kernel has no seccomp "
            "filters. Run the containers instead."
        )
    return warnings


def _kept(settings: Settings) -> dict[Path, str]:
    """Return the existing files and directories of the pipeline, each with a description of its content."""
    kept = {
        settings.state_dir: "users' texts, the admin key, models and logs",
        settings.model_dir: "the model",
        env_file(): "the secrets that are set there",
    }
    if settings.tls_key is not None:
        kept[settings.tls_key] = "the private key"
    if settings.triton_url is None:  # an external Triton may read the repository as another account
        kept[settings.model_repository] = "the models"
        # A killed Triton leaves its shared memory behind, which an older version left readable.
        segments = _SHARED_MEMORY.glob(f"sentiment-{settings.triton_grpc_port}-*")
        kept |= {path: "users' texts" for path in segments if not path.is_symlink() and _owner(path) == os.geteuid()}
    for url in (settings.database, settings.mlflow_uri):
        file = sqlite_file(url) if url.startswith("sqlite") else None
        if file and settings.state_dir.resolve() not in file.resolve().parents:
            kept |= {Path(f"{file}{end}"): "users' texts" for end in ("", "-wal", "-shm", "-journal")}
    return {path: content for path, content in kept.items() if os.path.exists(path)}  # noqa: PTH110 - never raises


def _has_content(path: Path) -> bool:
    """Return whether `path` is a file, or a directory with more in it than a fresh clone has."""
    with suppress(OSError):
        return not path.is_dir() or any(entry.name != "README.md" for entry in path.iterdir())
    return True


def _close(path: Path) -> None:
    """Remove other accounts' permissions on `path`, or, if another account owns it, on this account's files in it."""
    if _owner(path) == os.geteuid():
        with suppress(OSError):  # `what_stays_open` reports failures
            path.chmod(_mode(path) & (0o7700 | _left_open(path)))
        return  # what is inside a closed directory needs no change
    with suppress(OSError):
        for entry in path.iterdir() if path.is_dir() else ():
            if not entry.is_symlink() and _owner(entry) == os.geteuid():
                entry.chmod(_mode(entry) & (0o7700 | _left_open(entry)))


def _left_open(path: Path) -> int:
    """Return the group permissions if they look intended: the path has setgid, or no permissions for all others."""
    mode = _mode(path)
    return 0o070 if mode & stat.S_ISGID or not mode & 0o007 else 0


def _replaceable(path: Path) -> Iterator[Path]:
    """Yield the directories above `path` in which another account could replace it."""
    if any(map(os.path.exists, _CONTAINERS)) or "KUBERNETES_SERVICE_HOST" in os.environ:
        return  # containers have no other accounts, and their volumes may be writable for all
    for directory in path.resolve().parents:
        status = directory.stat()
        writable = 0 if status.st_mode & stat.S_ISVTX else 0o002 if _is_private_group(status.st_gid) else 0o022
        if status.st_mode & writable or status.st_uid not in (0, os.geteuid()):
            yield directory


def _is_private_group(group: int) -> bool:
    """Return whether a group is root's, or this account's own group (Debian creates one for each account)."""
    if group in (0, os.geteuid()):
        return True
    with suppress(KeyError):
        return grp.getgrgid(group).gr_name == pwd.getpwuid(os.geteuid()).pw_name
    return False


def _reason(path: Path) -> str:
    if _owner(path) != os.geteuid():
        return f"it belongs to {_account(_owner(path))}, with the rights {_mode(path):03o}"
    return f"its file system keeps the rights {_mode(path):03o}"


def _account(user: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(user).pw_name
    return f"user {user}"


def _owner(path: Path) -> int:
    with suppress(OSError):  # SQLite creates and deletes files at any time
        return path.stat().st_uid
    return os.geteuid()


def _mode(path: Path) -> int:
    with suppress(OSError):
        return stat.S_IMODE(path.stat().st_mode)
    return 0


def _can_keep_memory_private() -> bool:
    with suppress(OSError):
        return "errno" in _SECCOMP.read_text().split()
    return sys.platform != "linux"
