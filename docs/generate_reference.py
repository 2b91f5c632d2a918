"""Generates the reference pages docs/reference-….md from the code: settings, commands, the API.

`python -m docs.generate_reference` writes them; a test fails if they differ from the code.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from common.allowed_values import allowed_values
from common.home import HOME
from common.settings import ENV_PREFIX, Settings

DOCS = Path(__file__).resolve().parent
_PROBLEM_PREFIX = "urn:sentiment:problem:"
_NOTE = "<!-- Generated from the code by `python -m docs.generate_reference`. Edit the code instead. -->"

Json = dict[str, Any]


def settings_page() -> str:
    """The page of all settings, as Markdown."""
    rows = [
        (
            f"`{ENV_PREFIX}{name.upper()}`",
            _default(field),
            allowed_values(field),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]
    return f"""# Settings

{_NOTE}

Put settings in the environment or in `.env`. Unknown names are errors; the closest valid name is suggested. All errors
are listed together. An empty value counts as unset.

`.env` is in the directory of `app.py`, and relative paths start there, wherever the pipeline is started. To use another
directory, set `{HOME}` to it in the environment. `~` at the start of a path is your own directory.

{_table(("setting", "default", "allowed", "meaning"), rows)}
"""


def commands_page() -> str:
    """The page of all commands, as Markdown."""
    from app import OWN_COMMANDS
    from command_line import make_parser

    return f"""# Commands

{_NOTE}

Run `python app.py COMMAND`; from another directory, `python PATH/app.py COMMAND` does the same.
`python app.py COMMAND --help` prints the same text. Without a command, `python app.py` trains if no model is deployed,
and then serves.

{_table(("command", "what it does"), _commands(make_parser(OWN_COMMANDS), ""))}
"""


def api_page(document: Json) -> str:
    """The page of the API that an OpenAPI document describes, as Markdown."""
    groups = [tag["name"] for tag in document["tags"]]
    operations = sorted(
        (
            (f"{method.upper()} {path}", operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ),
        key=lambda item: groups.index(item[1]["tags"][0]),
    )
    overview = [
        (f"[`{name}`](#{_anchor(name)})", operation["summary"], _scope(operation)) for name, operation in operations
    ]
    problems = {
        kind: (str(status), title)
        for _, operation in operations
        for status, response in operation["responses"].items()
        for kind, title in _problems(response)
    }
    kinds = [
        (f"`{kind}`", status, title)
        for kind, (status, title) in sorted(problems.items(), key=lambda item: (item[1][0], item[0]))
    ]
    schemas = document["components"]["schemas"]
    return f"""# The API

{_NOTE}

The gateway serves the same description as `/openapi.json` for programs, and as `/docs` with examples to try.
[Access](access.md) explains scopes, and when no key is needed.

{_table(("request", "what it does", "scope"), overview)}

## Problems

Errors are `application/problem+json` (RFC 9457). `type` is `{_PROBLEM_PREFIX}` followed by a name from the table;
names and status codes are stable. It is `about:blank` if the status alone describes the error. `detail` is for people.
Responses 429 and 503 have a header `Retry-After` in seconds ([when to retry](overload.md#when-to-retry)).

{_table(("type", "status", "meaning"), kinds)}

{chr(10).join(_operation(name, operation) for name, operation in operations)}
## Bodies

{chr(10).join(_schema(name, schema) for name, schema in sorted(schemas.items()))}"""


def openapi_document() -> Json:
    """The gateway's OpenAPI document with the default settings."""
    from gateway.load_control.admission import UnderWay
    from gateway.main import create_app
    from serving.client.call_statistics import CallStatistics
    from storage.lazy_database import Storage

    with tempfile.TemporaryDirectory() as directory:
        # Nothing is opened; an admin key is generated in the state directory.
        used = Settings.model_construct(state_dir=Path(directory))
        document = create_app(used, Storage(used), CallStatistics(), UnderWay()).openapi()
    # Same as in a response: statuses are numbers before.
    read: Json = json.loads(json.dumps(document))
    return read


PAGES: dict[str, Callable[[], str]] = {
    "reference-settings.md": settings_page,
    "reference-commands.md": commands_page,
    "reference-api.md": lambda: api_page(openapi_document()),
}


def _commands(parser: argparse.ArgumentParser, name: str) -> Iterable[tuple[str, str]]:
    """Each command below `parser` with its arguments, and what it does."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for command, subparser in action.choices.items():
                full = f"{name} {command}".strip()
                arguments = "".join(f"<br>{_argument(argument)}" for argument in _arguments(subparser))
                yield f"`{full}`", f"{helps[command]}{arguments}"
                yield from _commands(subparser, full)


def _arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [
        action
        for action in parser._actions
        if not isinstance(action, argparse._SubParsersAction | argparse._HelpAction)
    ]


def _argument(action: argparse.Action) -> str:
    placeholder = str(action.metavar or action.dest.upper())
    takes = "" if action.nargs == 0 else f" {'|'.join(map(str, action.choices)) if action.choices else placeholder}"
    shown = f"{action.option_strings[0]}{takes}" if action.option_strings else placeholder
    told = (action.help or "").replace("%(default)s", str(action.default))
    return f"`{shown}` {told}".rstrip()


def _default(field: FieldInfo) -> str:
    shown = str(field.default).lower() if isinstance(field.default, bool) else str(field.default or "")
    return f"`{shown}`" if shown else ""


def _operation(name: str, operation: Json) -> str:
    """The section about one request."""
    told = [f"## {name}\n", operation["description"] + "\n"]
    if scope := _scope(operation):
        told.append(f"Scope: {scope}.\n")
    if parameters := operation.get("parameters"):
        rows = [
            (f"`{item['name']}`", item["in"], _type(item["schema"]), item.get("description", "")) for item in parameters
        ]
        told.append(_table(("parameter", "in", "type", "meaning"), rows) + "\n")
    if body := operation.get("requestBody"):
        told.append(f"Body: {_type(body['content']['application/json']['schema'])}.\n")
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            told.append(_answer(status, response))
    kinds = {kind for response in operation["responses"].values() for kind, _ in _problems(response)}
    if kinds:
        told.append(f"Problems: {', '.join(f'`{kind}`' for kind in sorted(kinds))}.\n")
    return "\n".join(told)


def _answer(status: str, response: Json) -> str:
    """The successful response: body, description, headers, example."""
    told = []
    for media, content in response.get("content", {}).items():
        # FastAPI adds JSON without a schema if a route returns another media type.
        if not content.get("schema"):
            continue
        kind = _type(content["schema"]) if media == "application/json" else f"`{media}`"
        # FastAPI also adds this description if there is none.
        meaning = response["description"].removesuffix("Successful Response")
        told.append(f"Response {status}: {kind}. {meaning}".rstrip() + "\n")
        if "example" in content:
            example = content["example"]
            shown = example if isinstance(example, str) else json.dumps(example, ensure_ascii=False)
            told.append(f"```\n{shown.strip()}\n```\n")
    if headers := response.get("headers"):
        rows = [(f"`{name}`", header.get("description", "")) for name, header in headers.items()]
        told.append(_table(("header", "meaning"), rows) + "\n")
    return "\n".join(told)


def _problems(response: Json) -> list[tuple[str, str]]:
    """The kinds of problems in a response, with their titles."""
    schema = response.get("content", {}).get("application/problem+json", {}).get("schema", {})
    types = schema.get("properties", {}).get("type", {})
    kinds = types.get("enum") or [types[key] for key in ("const",) if key in types]
    titles = response["description"].split("; or: ")
    return [(kind.removeprefix(_PROBLEM_PREFIX), title) for kind, title in zip(kinds, titles, strict=bool(kinds))]


def _schema(name: str, schema: Json) -> str:
    """The section about one body schema."""
    told = [f"### {name}\n", schema.get("description", "") + "\n"]
    if "anyOf" in schema:
        told.append(f"Is: {_type(schema)}.\n")
    required = schema.get("required", [])
    rows = [
        (f"`{field}`", _type(item), "yes" if field in required else "no", item.get("description", ""))
        for field, item in schema.get("properties", {}).items()
    ]
    if rows:
        told.append(_table(("field", "type", "always", "meaning"), rows) + "\n")
    return "\n".join(told)


def _type(schema: Json) -> str:
    """A short description of a JSON schema."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(kind) for kind in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        bounds = f"; at most {schema['maxItems']:,}" if "maxItems" in schema else ""
        return f"list of {_type(schema['items'])}{bounds}"
    if "patternProperties" in schema:
        return f"object of {' or '.join(map(_type, schema['patternProperties'].values()))}"
    if isinstance(values := schema.get("additionalProperties"), dict):
        return f"object of {_type(values)}"
    told = str(schema.get("format") or schema.get("type", "anything"))
    if "maxLength" in schema:
        told += f", up to {schema['maxLength']:,} characters"
    if "default" in schema:
        told += f", by default {schema['default']}"
    return told


def _scope(operation: Json) -> str:
    """The scope that a key needs; empty if the route never needs a key."""
    scopes = {scope for needed in operation.get("security", []) for names in needed.values() for scope in names}
    return ", ".join(f"`{scope}`" for scope in sorted(scopes))


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return "".join(c for c in heading.lower() if c.isalnum() or c in " -_").replace(" ", "-")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines: list[Sequence[str]] = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


if __name__ == "__main__":
    for page, write in PAGES.items():
        (DOCS / page).write_text(write(), encoding="utf-8")
        print(f"docs/{page}", file=sys.stderr)
