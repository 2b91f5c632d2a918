"""API keys: kept as hashes, each valid until it is revoked, by a name that only one valid key has."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import inspect, text

from common.errors import PipelineError
from storage import events
from storage.api_keys import Scope, add_key, hash_key, revoke_key, valid_keys
from storage.database import Database


def test_a_key_is_valid_until_it_is_revoked(database: Database) -> None:
    key = add_key(database, "web", [Scope.FEEDBACK, Scope.PREDICT, Scope.PREDICT])
    assert re.fullmatch(r"sentiment_[A-Za-z0-9_-]{43}", key)
    (kept,) = valid_keys(database)
    assert (kept.name, kept.scopes, kept.hash) == ("web", ["feedback", "predict"], hash_key(key.encode()))
    revoke_key(database, "web")
    assert valid_keys(database) == []
    with pytest.raises(PipelineError, match="no valid key 'web'"):
        revoke_key(database, "web")
    assert add_key(database, "web", [Scope.ADMIN]) != key
    told = [event.message for event in events.newest(database, 10, None, None)]
    assert told == [
        "The API key web was added, for admin.",
        "The API key web was revoked.",
        "The API key web was added, for feedback, predict.",
    ]


def test_the_key_itself_is_nowhere_in_the_database(database: Database) -> None:
    secret = add_key(database, "web", [Scope.PREDICT]).removeprefix("sentiment_")
    with database.engine.connect() as connection:
        for table in inspect(connection).get_table_names():
            assert secret not in str(connection.execute(text(f'SELECT * FROM "{table}"')).all())


def test_one_of_many_that_add_the_same_name_at_once_does(database: Database) -> None:
    def add(_: int) -> bool:
        try:
            return bool(add_key(database, "web", [Scope.PREDICT]))
        except PipelineError as error:
            return "The key web already exists. To rotate it" not in str(error)

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(add, range(4))) == 1


@pytest.mark.parametrize("name", ["", "a b", "-web", "w" * 61, "wéb", "a\nb", "admin", "anonymous"])
def test_a_name_that_does_not_fit(database: Database, name: str) -> None:
    with pytest.raises(PipelineError, match="The name "):
        add_key(database, name, [Scope.PREDICT])
    assert valid_keys(database) == []
