"""Extracts texts from request bodies, or reports every wrong field."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

from gateway.http.problems import MOST_ERRORS, FieldError, InvalidFieldsError, TooLargeError
from gateway.http.request_body import parse_json, parse_json_strictly
from serving.model_repo.texts import text_fault
from storage.feedback import LabelledText

MAX_TEXTS = 1_000
"""Maximum texts in a batch request. Whichever texts are cut, the response headers, with their positions in
`X-Truncated-Texts`, fit the 4 KiB that any proxy allows at least."""

_SHOWN_NAME = 50


class FieldErrors:
    """The first wrong fields of a request, and the count of all: a body has room for thousands."""

    def __init__(self) -> None:
        """Start with no wrong fields."""
        self.listed: list[FieldError] = []
        self._count = 0

    def add(self, field: str, message: str) -> None:
        """Add a wrong field."""
        self._count += 1
        if len(self.listed) < MOST_ERRORS:
            self.listed.append(FieldError(field, message))

    def add_names(self, names: Sequence[str], place: str, message: Callable[[str], str]) -> None:
        """Add wrong fields by name; `message` is called only for reported fields, because it seeks the nearest name."""
        self._count += len(names)
        for name in names[: MOST_ERRORS - len(self.listed)]:
            self.listed.append(FieldError(place + _shown(name), message(name)))

    def check(self) -> None:
        """Raise InvalidFieldsError if any field is wrong."""
        if self.listed:
            raise InvalidFieldsError(self.listed, self._count)


class _Missing:
    pass


_MISSING = _Missing()
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
    _Missing: "missing",
}


def live_text(body: bytes) -> str:
    """Return the text of `{"text": "…"}`.

    Raises:
        MalformedBodyError: the body is not JSON.
        InvalidFieldsError: fields are wrong; the error reports the first ones.
    """
    fields, errors = _fields(body, "text")
    text = fields.get("text", _MISSING)
    fault = _fault(text)
    if fault is not None:
        errors.add("text", fault)
    errors.check()
    return str(text)


def batch_texts(body: bytes) -> list[str]:
    """Return the texts of `{"texts": ["…", "…"]}`, at least one.

    Raises:
        MalformedBodyError: the body is not JSON.
        TooLargeError: there are more than `MAX_TEXTS`.
        InvalidFieldsError: fields are wrong; the error reports the first ones.
    """
    fields, errors = _fields(body, "texts")
    texts = fields.get("texts", _MISSING)
    if not isinstance(texts, list):
        errors.add("texts", f"is {_KINDS[type(texts)]}; a list of strings is needed")
    elif not texts:
        errors.add("texts", "is empty; a list of at least one string is needed")
    elif len(texts) > MAX_TEXTS:
        too_many = FieldError("texts", f"has {len(texts):,} texts; at most {MAX_TEXTS:,} are allowed")
        raise TooLargeError("The list is too long; send it in several requests.", [*errors.listed, too_many])
    else:
        for position, text in enumerate(texts):
            fault = _fault(text)
            if fault is not None:
                errors.add(f"texts[{position}]", fault)
    errors.check()
    return list(texts)


def labelled_texts(body: bytes) -> dict[str, LabelledText]:
    """Return the rows of `{"text": "…", "label": "…"}`, or of `{"feedback": […]}`, a list of such objects.

    The keys are the rows' places in the body, which prefix their field names: empty, or such as `feedback[3].`.

    Raises:
        MalformedBodyError: the body is not JSON.
        TooLargeError: there are more than `MAX_TEXTS`.
        InvalidFieldsError: fields are wrong; the error reports the first ones.
    """
    value, repeated = parse_json_strictly(body, "feedback")
    if not isinstance(value, dict):
        raise InvalidFieldsError([FieldError("body", f"is {_KINDS[type(value)]}; an object is needed")])
    errors = _repeated(repeated)
    if "feedback" not in value:
        rows, places = [value], [""]
    else:
        _add_unknown(errors, value, ("feedback",), "")
        listed = value["feedback"]
        if not isinstance(listed, list) or not listed:
            fault = "is empty" if listed == [] else f"is {_KINDS[type(listed)]}"
            errors.add("feedback", f"{fault}; a list of objects is needed")
            errors.check()
        if len(listed) > MAX_TEXTS:
            too_many = FieldError("feedback", f"has {len(listed):,} rows; at most {MAX_TEXTS:,} are allowed")
            raise TooLargeError("The list is too long; send it in several requests.", [*errors.listed, too_many])
        rows, places = listed, [f"feedback[{position}]." for position in range(len(listed))]
    for row, place in zip(rows, places, strict=True):
        if not isinstance(row, dict):
            errors.add(place.rstrip("."), f"is {_KINDS[type(row)]}; an object is needed")
            continue
        _add_unknown(errors, row, ("text", "label"), place, hints=() if place else ("feedback",))
        for name in ("text", "label"):
            wrong = _fault(row.get(name, _MISSING)) or _nul_fault(row[name])
            if wrong is not None:
                errors.add(place + name, wrong)
    errors.check()
    return {place: LabelledText(row["text"], row["label"]) for row, place in zip(rows, places, strict=True)}


def _nul_fault(text: str) -> str | None:
    # CSV files and some databases cannot hold a NUL character.
    return f"has a NUL character at position {text.index(chr(0))}; leave it out" if "\0" in text else None


def _add_unknown(
    errors: FieldErrors, fields: dict[str, Any], known: tuple[str, ...], place: str, hints: tuple[str, ...] = ()
) -> None:
    def advise(name: str) -> str:
        near = difflib.get_close_matches(_shown(name).lower(), (*known, *hints), n=1)
        if near:
            return f"is not a field; did you mean {near[0]}?"
        return f"is not a field; only {' and '.join(known)} {'is' if len(known) == 1 else 'are'} allowed"

    errors.add_names([name for name in fields if name not in known], place, advise)


def _repeated(names: Sequence[str]) -> FieldErrors:
    errors = FieldErrors()
    errors.add_names(names, "", lambda _: "is given more than once; give it once")
    return errors


def _fields(body: bytes, key: str) -> tuple[dict[str, Any], FieldErrors]:
    fields, repeated = parse_json(body, key)
    if not isinstance(fields, dict):
        raise InvalidFieldsError([FieldError("body", f"is {_KINDS[type(fields)]}; an object is needed")])
    errors = _repeated(repeated)
    _add_unknown(errors, fields, (key,), "")
    return fields, errors


def _fault(text: object) -> str | None:
    """Return the fault of `text` and what is needed instead, or None."""
    if not isinstance(text, str):
        return f"is {_KINDS[type(text)]}; a string is needed"
    return text_fault(text)


def _shown(name: str) -> str:
    """Shorten a client's field name, and make it safe for a UTF-8 response."""
    return name[:_SHOWN_NAME].encode("utf-8", "backslashreplace").decode()
