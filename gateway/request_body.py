"""Reads and parses a request's JSON body, within bounds, and says exactly what is wrong with a bad one."""

import json
from collections import Counter
from typing import Any, NoReturn

import orjson
from fastapi import Request
from starlette.requests import ClientDisconnect

from gateway.problems import MalformedBodyError, TooLargeError, UnsupportedMediaTypeError

MAX_BODY_BYTES = 4 * 1024 * 1024
"""Room for the longest list at 4 KiB a text, or the longest text with every character escaped."""

_SMALL_BODY = 64 * 1024
"""Bytes of a body that is quickly parsed, whatever is in it."""
_MAX_STRINGS = 8 * 1_024
"""Strings in a body, keys among them: the longest list of feedback has 4,001."""
_MAX_STRUCTURE = 64 * 1024
"""Bytes of a body besides its strings and blanks; the same list has under 10,000."""


async def read_body(request: Request, needed: str = "application/json") -> bytes:
    """Read the whole body of a request, whose media type must be `needed`.

    Raises:
        UnsupportedMediaTypeError: the body is not declared so, or is compressed.
        TooLargeError: the body is over `MAX_BODY_BYTES`, declared or counted.
        ClientDisconnect: the client left before the end.
    """
    # As the server gives them: Starlette's wrappers took 3 of the 24 µs that the app spends on a known text.
    headers: dict[bytes, bytes] = dict(request.scope["headers"])
    media_type = headers.get(b"content-type", b"").decode("latin-1")
    # Strict, for a browser lets any page post some other types to this server without asking it first (CORS).
    if media_type != needed and media_type.partition(";")[0].strip().lower() != needed:
        sent = f"Content-Type is {media_type[:100]}" if media_type else "Content-Type is missing"
        raise UnsupportedMediaTypeError(f"{sent}; {needed} is needed.")
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if encoding.lower() != "identity":
        raise UnsupportedMediaTypeError(f"Content-Encoding is {encoding[:100]}; an uncompressed body is needed.")
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        _refuse_size()
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            _refuse_size()
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)


def parse_json(body: bytes, key: str) -> tuple[Any, list[str]]:
    """Parse `body`, an object that should have the one key `key`.

    Returns the value, and the names of the keys that the object has more than once: which of their values counts is
    left open by JSON (RFC 8259, section 4), so two parsers on a request's way may disagree.

    Raises:
        MalformedBodyError: the body is not JSON.
        TooLargeError: it has far more values than any request has.
    """
    _check_values(body)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # orjson also refuses lone surrogates and huge numbers, which are JSON: the field can be named.
        return _parse_slowly(body, str(error))
    # orjson keeps the last of equal keys without a word. Where one key is left, there can have been others only if it
    # is seen twice or is written with an escape, both rare; where more are left, the request is wrong anyway.
    if isinstance(value, dict) and len(value) == 1 and (body.count(f'"{key}"'.encode()) > 1 or b"\\u00" in body):
        return _parse_slowly(body, "")
    return value, []


def parse_json_strictly(body: bytes) -> tuple[Any, list[str]]:
    """Parse `body`, of any form; otherwise as `parse_json`, for requests that are few.

    Raises:
        MalformedBodyError: the body is not JSON.
        TooLargeError: it has far more values than any request has.
    """
    _check_values(body)
    return _parse_slowly(body, "")


def _check_values(body: bytes) -> None:
    """Refuse a long body that is made of many short values instead of long texts.

    Two million brackets fit in a body, and to make lists of them, and free them again, held up the event loop, and so
    every other request, for seconds. To count is quick, also in what is not JSON: what is within quotes is left out.
    """
    if len(body) <= _SMALL_BODY:
        return
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body
    if unescaped.count(b'"') <= 2 * _MAX_STRINGS:
        structure = b"".join(unescaped.split(b'"')[::2])
        if len(structure.translate(None, b" \t\r\n")) <= _MAX_STRUCTURE:
            return
    raise TooLargeError("The body holds too many values; send them in several requests.")


def _parse_slowly(body: bytes, complaint: str) -> tuple[Any, list[str]]:
    outermost: list[tuple[str, Any]] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # The parser comes to the outermost object last.
        nonlocal outermost
        outermost = pairs
        return dict(pairs)

    def refuse_constant(name: str) -> NoReturn:
        raise MalformedBodyError(f"The body is not JSON: {name} is not a JSON value.")

    try:
        value = json.loads(body.decode(), object_pairs_hook=collect, parse_constant=refuse_constant)
    except UnicodeDecodeError as error:
        raise MalformedBodyError(f"The body is not UTF-8: {error.reason} at byte {error.start}.") from error
    except RecursionError as error:
        raise MalformedBodyError("The body is nested too deeply.") from error
    except json.JSONDecodeError as error:
        raise MalformedBodyError(f"The body is not JSON: {complaint or error}.") from error
    except ValueError as error:
        raise MalformedBodyError("A number in the body has too many digits.") from error
    return value, [name for name, count in Counter(name for name, _ in outermost).items() if count > 1]


def _refuse_size() -> NoReturn:
    raise TooLargeError(f"The body is too long; at most {MAX_BODY_BYTES:,} bytes are allowed.")
