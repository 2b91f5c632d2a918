"""Reads and parses JSON request bodies within limits, and reports exactly what is wrong with an invalid one."""

import asyncio
import json
from collections import Counter
from typing import Any, NoReturn

import orjson
from fastapi import Request
from starlette.requests import ClientDisconnect

from gateway.http.callers import caller_of
from gateway.http.problems import (
    MalformedBodyError,
    OverloadedError,
    RequestTimeoutError,
    TooLargeError,
    UnsupportedMediaTypeError,
)

MAX_BODY_BYTES = 4 * 1024 * 1024
"""Maximum body size: room for the longest list at 4 KiB per text, or the longest text with every character escaped."""

_SMALL_BODY = 64 * 1024
"""Maximum size of a body that parses quickly, whatever its content, in bytes."""
_MAX_STRINGS = 8 * 1_024
"""Maximum strings in a body, including keys: the longest list of feedback has 4,001."""
_MAX_STRUCTURE = 64 * 1024
"""Maximum bytes of a body besides strings and blanks: the longest list of feedback has under 10,000."""
MOST_UNFINISHED = 64 * 1024 * 1024
"""Maximum bytes of incomplete bodies that the gateway holds for one caller, a key or else an address."""

_unfinished: Counter[str] = Counter()


async def read_body(
    request: Request,
    needed: str = "application/json",
    most_bytes: int = MAX_BODY_BYTES,
    within_s: float | None = None,
) -> bytes:
    """Read the whole body of a request, whose media type must be `needed`.

    Raises:
        UnsupportedMediaTypeError: the body has another media type, or is compressed.
        TooLargeError: the body exceeds `most_bytes`, by its Content-Length or as received.
        RequestTimeoutError: the body took longer than `within_s`.
        OverloadedError: the caller's incomplete bodies hold too many bytes.
        ClientDisconnect: the client disconnected before the end.
    """
    # Raw headers from the server: Starlette's wrappers took 3 of the 24 µs that the app spends on a cached text.
    headers: dict[bytes, bytes] = dict(request.scope["headers"])
    media_type = headers.get(b"content-type", b"").decode("latin-1")
    # Strict, because browsers let any page post some other types to this server without a CORS preflight.
    if media_type != needed and media_type.partition(";")[0].strip().lower() != needed:
        sent = f"Content-Type is {media_type[:100]}" if media_type else "Content-Type is missing"
        raise UnsupportedMediaTypeError(f"{sent}; {needed} is needed.")
    encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
    if encoding.lower() != "identity":
        raise UnsupportedMediaTypeError(f"Content-Encoding is {encoding[:100]}; an uncompressed body is needed.")
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > most_bytes:
        _refuse_size(most_bytes)
    try:
        return (
            await asyncio.wait_for(_receive(request, most_bytes), within_s)
            if within_s
            else await _receive(request, most_bytes)
        )
    except TimeoutError as error:
        raise RequestTimeoutError(f"The body was not complete within {within_s:.0f} s.") from error


async def _receive(request: Request, most_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = held = 0
    caller = ""
    more = True
    try:
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            size += len(part)
            if size > most_bytes:
                _refuse_size(most_bytes)
            parts.append(part)
            more = message.get("more_body", False)
            if more and size > _SMALL_BODY:
                caller = caller or caller_of(request.scope)
                _unfinished[caller] += size - held
                held = size
                if _unfinished[caller] > MOST_UNFINISHED:
                    raise OverloadedError(1.0)
    finally:
        if held:
            _unfinished[caller] -= held
            if not _unfinished[caller]:
                del _unfinished[caller]
    return b"".join(parts)


def parse_json(body: bytes, key: str) -> tuple[Any, list[str]]:
    """Parse `body`, an object that should have the one key `key`.

    Returns the value, and the names of repeated keys. JSON does not define which value of a repeated key counts
    (RFC 8259, section 4), so two parsers on a request's path may disagree.

    Raises:
        MalformedBodyError: the body is not JSON.
        TooLargeError: the body has far more values than any valid request.
    """
    _check_values(body)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # orjson also refuses lone surrogates and huge numbers, which are JSON; with json, the error can name the field.
        return _parse_slowly(body, str(error))
    # orjson silently keeps the last of equal keys. If one key is left, others are possible only if it is seen twice or
    # is written with an escape, both rare. If more keys are left, the request is wrong anyway.
    if isinstance(value, dict) and len(value) == 1 and (body.count(f'"{key}"'.encode()) > 1 or b"\\u00" in body):
        return _parse_slowly(body, "")
    return value, []


def parse_json_strictly(body: bytes, key: str) -> tuple[Any, list[str]]:
    """Parse a `body` of any form as `parse_json` does; it is fast only for an object with the one key `key`.

    Raises:
        MalformedBodyError: the body is not JSON.
        TooLargeError: the body has far more values than any valid request.
    """
    value, repeated = parse_json(body, key)
    if isinstance(value, dict) and value.keys() == {key}:
        return value, repeated
    return _parse_slowly(body, "")


def _check_values(body: bytes) -> None:
    """Refuse a long body that consists of many short values instead of long texts.

    A body has room for two million brackets. Building and freeing their lists blocked the event loop, and so all other
    requests, for seconds. Counting is fast, even if the body is not JSON; quoted parts are left out.
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
        # The parser reaches the outermost object last.
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


def _refuse_size(most_bytes: int) -> NoReturn:
    raise TooLargeError(f"The body is too long; at most {most_bytes:,} bytes are allowed.")
