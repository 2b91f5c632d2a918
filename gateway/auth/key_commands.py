"""The commands for API keys: `python app.py keys add`, `list` and `revoke`."""

import argparse
import logging

from common.settings import Settings
from storage.api_keys import Scope, add_key, revoke_key, valid_keys
from storage.database import Database

log = logging.getLogger(__name__)


def add(settings: Settings, options: argparse.Namespace) -> None:
    """Create a key and print it alone, so that the output can be piped into a secret store."""
    key = add_key(Database(settings.database), options.name, [Scope(scope) for scope in options.scope])
    log.info(
        "Created the key %s with the scope%s %s. It is shown only now:",
        options.name,
        "s" if len(options.scope) != 1 else "",
        _join(options.scope),
    )
    print(key)


def list_keys(settings: Settings, _: argparse.Namespace) -> None:
    """Print the valid keys."""
    keys = valid_keys(Database(settings.database))
    if not keys:
        print("No keys yet.")
    for key in keys:
        print(f"{key.name}  {_join(key.scopes)}  since {key.created_at:%Y-%m-%d %H:%M} UTC")


def revoke(settings: Settings, options: argparse.Namespace) -> None:
    """Revoke a key."""
    revoke_key(Database(settings.database), options.name)
    print(f"Revoked the key {options.name}.")


def _join(scopes: list[str]) -> str:
    return ", ".join(scopes)
