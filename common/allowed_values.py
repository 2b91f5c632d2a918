"""The values that a setting allows, in words: for the reference of the settings, and for errors."""

from pathlib import Path
from typing import get_args

from annotated_types import Ge, Gt, Le
from pydantic import SecretStr
from pydantic.fields import FieldInfo

_TYPES = {Path: "path", str: "text", SecretStr: "text", int: "whole number", float: "number", bool: "`true`, `false`"}


def allowed_values(field: FieldInfo) -> str:
    """Return the type or the choices of a setting, and its bounds, such as `whole number, from 1 to 65532`."""
    annotation = field.annotation
    choices = get_args(annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return ", ".join(f"`{choice}`" for choice in choices)
    kinds = [kind for kind in choices or (annotation,) if kind is not type(None)]
    told = ", ".join(_TYPES[kind] for kind in kinds)
    for bound in field.metadata:
        if isinstance(bound, Ge):
            told += f", from {bound.ge}"
        elif isinstance(bound, Gt):
            told += f", over {bound.gt}"
        elif isinstance(bound, Le):
            told += f" to {bound.le}"
    return told
