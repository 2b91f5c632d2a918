"""The commands for API keys: `python app.py keys add`, `list` and `revoke`."""

import argparse
import logging
import time

from common.settings import Settings
from gateway.auth.key_cache import REFRESH_S
from storage.api_keys import Scope, add_key, revoke_key, valid_keys
from storage.database import Database

_SPREAD_S = 2 * REFRESH_S
"""Seconds after which the running gateways have read a change, unless their database is slow."""

log = logging.getLogger(__name__)


def add(settings: Settings, options: argparse.Namespace) -> None:
    """Create a key and print it alone, so that the output can be piped into a secret store; return when it is valid."""
    key = add_key(Database(settings.database), options.name, [Scope(scope) for scope in options.scope])
    log.info(
        "Created the key %s with the scope%s %s. It is shown only now:",
        options.name,
        "s" if len(options.scope) != 1 else "",
        _join(options.scope),
    )
    print(key, flush=True)
    time.sleep(_SPREAD_S)  # the next command of a script is often a request with this key


def list_keys(settings: Settings, _: argparse.Namespace) -> None:
    """Print the valid keys."""
    keys = valid_keys(Database(settings.database))
    if not keys:
        print("No keys yet.")
    for key in keys:
        print(f"{key.name}  {_join(key.scopes)}  since {key.created_at:%Y-%m-%d %H:%M} UTC")


def revoke(settings: Settings, options: argparse.Namespace) -> None:
    """Revoke a key; return when it is no longer valid."""
    revoke_key(Database(settings.database), options.name)
    time.sleep(_SPREAD_S)
    print(f"Revoked the key {options.name}.")


def _join(scopes: list[str]) -> str:
    return ", ".join(scopes)
