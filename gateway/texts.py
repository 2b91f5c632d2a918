"""Takes the texts out of a request, or names every wrong field of it."""

import difflib
from typing import Any

from gateway.problems import FieldError, InvalidFieldsError, TooLargeError
from gateway.request_body import parse_json, parse_json_strictly
from serving.texts import text_fault
from storage.feedback import LabelledText

MAX_TEXTS = 1_000
"""Texts in a batch request. Whichever of them are cut, the answer's headers, with their positions in
`X-Truncated-Texts`, still fit the 4 KiB that proxies have for them at the least."""

_MAX_NAMES = 20
"""Unknown or repeated names that an answer tells of; a body has room for half a million."""

_SHOWN_NAME = 50


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
        InvalidFieldsError: fields are wrong; all of them are told.
    """
    fields, errors = _fields(body, "text")
    text = fields.get("text", _MISSING)
    fault = _fault(text)
    if fault is not None:
        errors.append(FieldError("text", fault))
    if errors:
        raise InvalidFieldsError(errors)
    return str(text)


def batch_texts(body: bytes) -> list[str]:
    """Return the texts of `{"texts": ["…", "…"]}`, at least one.

    Raises:
        MalformedBodyError: the body is not JSON.
        TooLargeError: there are more than `MAX_TEXTS`.
        InvalidFieldsError: fields are wrong; all of them are told.
    """
    fields, errors = _fields(body, "texts")
    texts = fields.get("texts", _MISSING)
    if not isinstance(texts, list):
        errors.append(FieldError("texts", f"is {_KINDS[type(texts)]}; a list of strings is needed"))
    elif not texts:
        errors.append(FieldError("texts", "is empty; a list of at least one string is needed"))
    elif len(texts) > MAX_TEXTS:
        errors.append(FieldError("texts", f"has {len(texts):,} texts; at most {MAX_TEXTS:,} are allowed"))
        raise TooLargeError("The list is too long; send it in several requests.", errors)
    else:
        faults = ((position, _fault(text)) for position, text in enumerate(texts))
        errors += [FieldError(f"texts[{position}]", fault) for position, fault in faults if fault is not None]
    if errors:
        raise InvalidFieldsError(errors)
    return list(texts)


def labelled_texts(body: bytes) -> dict[str, LabelledText]:
    """Return the rows of `{"text": "…", "label": "…"}`, or of `{"feedback": […]}`, a list of such objects.

    Each is under its place in the body, which the names of its fields begin with: nothing, or `feedback[3].`.

    Raises:
        MalformedBodyError: the body is not JSON.
        TooLargeError: there are more than `MAX_TEXTS`.
        InvalidFieldsError: fields are wrong; all of them are told.
    """
    value, repeated = parse_json_strictly(body)
    errors = [FieldError(_shown(name), "is given more than once; give it once") for name in repeated[:_MAX_NAMES]]
    if not isinstance(value, dict):
        raise InvalidFieldsError([FieldError("body", f"is {_KINDS[type(value)]}; an object is needed")])
    if "feedback" not in value:
        rows, places = [value], [""]
    else:
        errors += _unknown(value, ("feedback",), "")
        listed = value["feedback"]
        if not isinstance(listed, list) or not listed:
            fault = "is empty" if listed == [] else f"is {_KINDS[type(listed)]}"
            raise InvalidFieldsError([*errors, FieldError("feedback", f"{fault}; a list of objects is needed")])
        if len(listed) > MAX_TEXTS:
            errors.append(FieldError("feedback", f"has {len(listed):,} rows; at most {MAX_TEXTS:,} are allowed"))
            raise TooLargeError("The list is too long; send it in several requests.", errors)
        rows, places = listed, [f"feedback[{position}]." for position in range(len(listed))]
    for row, place in zip(rows, places, strict=True):
        if not isinstance(row, dict):
            errors.append(FieldError(place.rstrip("."), f"is {_KINDS[type(row)]}; an object is needed"))
            continue
        errors += _unknown(row, ("text", "label"), place, hints=() if place else ("feedback",))
        for name in ("text", "label"):
            wrong = _fault(row.get(name, _MISSING)) or _nul_fault(row[name])
            if wrong is not None:
                errors.append(FieldError(place + name, wrong))
    if errors:
        raise InvalidFieldsError(errors)
    return {place: LabelledText(row["text"], row["label"]) for row, place in zip(rows, places, strict=True)}


def _nul_fault(text: str) -> str | None:
    # No CSV file and not every database can hold it.
    return f"has a NUL character at position {text.index(chr(0))}; leave it out" if "\0" in text else None


def _unknown(
    fields: dict[str, Any], known: tuple[str, ...], place: str, hints: tuple[str, ...] = ()
) -> list[FieldError]:
    errors = []
    for name in [name for name in fields if name not in known][:_MAX_NAMES]:
        near = difflib.get_close_matches(_shown(name).lower(), (*known, *hints), n=1)
        advice = (
            f"did you mean {near[0]}?"
            if near
            else f"only {' and '.join(known)} {'is' if len(known) == 1 else 'are'} allowed"
        )
        errors.append(FieldError(place + _shown(name), f"is not a field; {advice}"))
    return errors


def _fields(body: bytes, key: str) -> tuple[dict[str, Any], list[FieldError]]:
    fields, repeated = parse_json(body, key)
    if not isinstance(fields, dict):
        raise InvalidFieldsError([FieldError("body", f"is {_KINDS[type(fields)]}; an object is needed")])
    errors = [FieldError(_shown(name), "is given more than once; give it once") for name in repeated[:_MAX_NAMES]]
    errors += _unknown(fields, (key,), "")
    return fields, errors


def _fault(text: object) -> str | None:
    """Say what is wrong with `text`, and what would be right."""
    if not isinstance(text, str):
        return f"is {_KINDS[type(text)]}; a string is needed"
    return text_fault(text)


def _shown(name: str) -> str:
    """Shorten a name that a stranger chose, and make it fit for an answer in UTF-8."""
    return name[:_SHOWN_NAME].encode("utf-8", "backslashreplace").decode()
