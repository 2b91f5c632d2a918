"""Names of feedback sources, and the check whether the settings trust one. The module needs no database."""

import re

ADMIN = "admin"
ANONYMOUS = "anonymous"
KINDS = ("key", ADMIN, "console", "import", ANONYMOUS, "legacy")
"""Kinds of sources: an API key, the admin key, a console session, an imported file, no key, or an older release."""
_NAME = re.compile(r"[^,:\s][^,:]*")


def of_key(name: str) -> str:
    """Return the source of rows sent with the API key `name`."""
    return name if name in (ADMIN, ANONYMOUS) else f"key:{name}"


def of_console(name: str) -> str:
    """Return the source of rows from a console session that was started with the key `name`."""
    return f"console:{name}"


def of_import(file: str) -> str:
    """Return the source of rows from an imported file."""
    return f"import:{file}"


def trusted_entries(trusted: str) -> list[str]:
    """Return the entries of `SENTIMENT_TRUSTED_SOURCES`: kinds and source names."""
    return [entry.strip() for entry in trusted.split(",") if entry.strip()]


def is_trusted(source: str, trusted: str) -> bool:
    """Return whether `trusted` (`SENTIMENT_TRUSTED_SOURCES`) contains a source or its kind."""
    entries = trusted_entries(trusted)
    return source in entries or source.partition(":")[0] in entries


def check_trusted(trusted: str) -> None:
    """Raise a ValueError if an entry is neither a kind nor a source name."""
    for entry in trusted_entries(trusted):
        kind, colon, name = entry.partition(":")
        if kind not in KINDS or (colon and not _NAME.fullmatch(name)):
            raise ValueError(f"{entry!r} is no source; name kinds ({', '.join(KINDS)}) or single ones, such as key:web")
