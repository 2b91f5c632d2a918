"""The commands for API keys: `python app.py keys add`, `list` and `revoke`."""

import argparse
import logging

from settings import Settings
from storage.api_keys import Scope, add_key, revoke_key, valid_keys
from storage.database import Database

log = logging.getLogger(__name__)


def add(settings: Settings, options: argparse.Namespace) -> None:
    """Make a key and print it alone, so that it can be taken from there into a secret store."""
    key = add_key(Database(settings.database), options.name, [Scope(scope) for scope in options.scope])
    log.info(
        "The key %s is valid from now on, for %s. This is the only time that it is shown:",
        options.name,
        _told(options.scope),
    )
    print(key)


def list_keys(settings: Settings, _: argparse.Namespace) -> None:
    """Print which keys are valid."""
    keys = valid_keys(Database(settings.database))
    if not keys:
        print("Nothing yet.")
    for key in keys:
        print(f"{key.name}  {_told(key.scopes)}  since {key.created_at:%Y-%m-%d %H:%M} UTC")


def revoke(settings: Settings, options: argparse.Namespace) -> None:
    """Have a key no longer be valid."""
    revoke_key(Database(settings.database), options.name)
    print(f"The key {options.name} is refused from now on.")


def _told(scopes: list[str]) -> str:
    return ", ".join(scopes)
