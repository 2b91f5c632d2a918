"""The commands and arguments of app.py, in groups, and the hints for what was mistyped."""

import argparse
import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

from common.settings import Settings

VERSION = "0.2.0"

Command = Callable[[Settings, argparse.Namespace], None]

_GROUPS = {
    "from data to a service": ["data", "train", "export", "import", "prepare", "serve"],
    "use the model": ["predict", "score"],
    "keep it good": ["check", "retrain", "models", "promote", "rollback", "events", "digest", "cancel"],
    "feedback": ["label", "feedback"],
    "try a version on live texts": ["shadow", "canary", "stop", "release"],
    "operate": ["keys", "triton", "gateway", "scheduler", "alias", "job"],
}
"""All commands, as `--help` shows them."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors name what was probably meant."""

    def format_help(self) -> str:
        """Return the help; the commands of app.py itself come in groups, which argparse has not."""
        commands = {
            choice.dest: choice
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for choice in action._choices_actions
        }
        if commands.keys() != {name for group in _GROUPS.values() for name in group}:
            return super().format_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, names in _GROUPS.items():
            formatter.start_section(title)
            formatter.add_arguments([commands[name] for name in names])
            formatter.end_section()
        formatter.start_section("options")
        formatter.add_arguments([action for action in self._actions if action.option_strings])
        formatter.end_section()
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        """Print the message with the usage, and exit. Python can do so itself from 3.14 on."""
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if wrong:
            hint = _nearest(wrong[1], re.findall(r"[\w-]+", wrong[2]))
            choices = "see --help" if message.startswith("argument COMMAND") else f"choose from {wrong[2]}"
            message = f"{message[: wrong.start()]}invalid choice: {wrong[1]!r} ({choices}){hint}"
        super().error(message)


def _nearest(wrong: str, names: Iterable[str]) -> str:
    """Return a hint at the name that was probably meant; empty if none is similar."""
    found = difflib.get_close_matches(wrong.partition("=")[0], list(names), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def parse(arguments: list[str], functions: Mapping[str, Command]) -> argparse.Namespace:
    """Parse the command line; a mistake ends the process with status 2. `functions` are the commands of app.py."""
    options, unknown = make_parser(functions).parse_known_args(arguments)
    if unknown:
        parser: argparse.ArgumentParser = options.parser
        hint = _nearest(unknown[0], parser.format_help().split()) if unknown[0].startswith("-") else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return options


def make_parser(functions: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Return the parser; the `command` of what it parses is one of `functions`, or is imported when it runs."""
    parser = _Parser(
        prog="app.py",
        description="Trains a text sentiment model on your texts and labels and serves it through Triton. "
        "Without a command: trains if no model is deployed, then serves. "
        "Settings come from SENTIMENT_… in the environment and from .env; docs/reference-settings.md lists them.",
    )
    parser.add_argument("--version", action="version", version=f"sentiment-pipeline {VERSION}")
    parser.set_defaults(command=functions["run"], parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text, description=text)
        subparser.set_defaults(command=command, parser=subparser)
        return subparser

    data = add(
        "data", _late("trainer.data_command", "data"), "check the data files; if there are none, make sample data"
    )
    data.add_argument("--json", action="store_true", help="print JSON")
    train = add(
        "train", functions["train"], "fine-tune on the data files, save to ./model, register the version in MLflow"
    )
    train.add_argument(
        "--quick",
        action="store_true",
        help="train the packaged encoder for about 75 seconds, as the first start does",
    )
    train.add_argument("--export", action="store_true", help="export the model next, in the same process")
    export = add(
        "export",
        functions["export"],
        "export ./model to ONNX, verify and publish it; deploy it if no version is deployed",
    )
    export.add_argument(
        "--standard",
        type=Path,
        metavar="DIR",
        help="write ./model as plain ONNX for optimum and transformers to this directory, and publish nothing",
    )
    own = add(
        "import",
        _late("lifecycle.cli.import_command", "import_model"),
        "import a classifier that is fine-tuned already (safetensors); deploy it if no version is deployed, or promote "
        "it if it passes the gates",
    )
    own.add_argument("source", metavar="DIRECTORY_OR_HUB_NAME", help="directory of the classifier, or its hub name")
    own.add_argument(
        "--labels", metavar="A,B", help="labels in the order of its outputs (default: those of its configuration)"
    )
    add("prepare", functions["prepare"], "if no version is deployed yet, run data, train and export")
    add("serve", functions["serve"], "run Triton, the gateway and the scheduler for the deployed version")
    add("triton", functions["triton"], "run only Triton, for gateways that set SENTIMENT_TRITON_URL to it")
    add("gateway", functions["gateway"], "run only the gateway, in front of the Triton at SENTIMENT_TRITON_URL")
    add("scheduler", functions["scheduler"], "run only the scheduler, for gateways that run elsewhere")
    predict = add("predict", functions["predict"], "classify a text with the deployed model")
    predict.add_argument("text")
    scoring = add(
        "score", functions["score"], "classify the rows of files (CSV, Parquet, JSON Lines), on all cores or on Ray"
    )
    scoring.add_argument("inputs", nargs="+", metavar="IN", help="file, folder or glob")
    scoring.add_argument("--out", required=True, help="output file, or a folder that gets one file per input")
    scoring.add_argument(
        "--text-column", help="column with the texts: a name, or a position from 1 on (default: found by usual names)"
    )
    scoring.add_argument("--prefix", default="", help="prefix of the added columns label, score and version")
    scoring.add_argument(
        "--escape-formulas",
        action="store_true",
        help="in CSV, put ' before cells that a spreadsheet would run as a formula",
    )
    scoring.add_argument("--version", type=_version_number, help="version of the model (default: the deployed one)")
    scoring.add_argument("--overwrite", action="store_true", help="replace an existing output")
    scoring.add_argument("--ray", metavar="ADDRESS", help="address of a Ray cluster that does the work")
    _add_loop(add)
    _add_release(add)
    return parser


def _late(module: str, name: str) -> Command:
    """Return a command that imports its module, and thereby its libraries, only when it runs."""

    def command(settings: Settings, options: argparse.Namespace) -> None:
        function: Command = getattr(importlib.import_module(module), name)
        function(settings, options)

    return command


def _version_number(given: str) -> int:
    """Return the number of a version that the command line names."""
    try:
        return int(given)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{given!r} is not the number of a version. `python app.py models` lists the versions."
        ) from None


def _add_loop(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """Add the commands for evaluation, retraining, versions, events, feedback, jobs and keys."""
    run = partial(_late, "lifecycle.cli.commands")
    for name, text in (
        ("check", "evaluate the deployed model now; retrain if it is stale"),
        ("retrain", "train on the data and the feedback; promote the new version if it passes every gate"),
        ("models", "show every version: metrics, gates, when it was deployed"),
    ):
        add(name, run(name), text).add_argument("--json", action="store_true", help="print JSON")
    promote = add("promote", run("promote"), "deploy a version, whatever the gates said about it")
    promote.add_argument("version", type=_version_number)
    add("rollback", run("rollback"), "deploy the previous version again")
    events = add("events", run("list_events"), "show what the pipeline did, and why")
    events.add_argument("--limit", type=int, default=30, help="number of newest events (default: %(default)s)")
    events.add_argument("--kind", help="only events of this kind, such as promoted")
    events.add_argument("--json", action="store_true", help="print JSON")
    add("digest", run("show_digest"), "print the week in plain words, as SENTIMENT_WEEKLY_DIGEST sends it by mail")
    _add_feedback(add)
    add("cancel", run("cancel"), "cancel a job").add_argument("job", type=int)
    add("alias", run("name_champion"), "set MLflow's alias champion to the deployed version")
    _add_keys(add)
    add("job", run("run_waiting_job"), "run a queued job; the scheduler calls this").add_argument("job", type=int)


def _add_feedback(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """Add the commands for feedback and its sources."""
    label = add(
        "label",
        _late("lifecycle.cli.label_command", "label"),
        "label random live texts until they decide whether the accuracy is too low",
    )
    label.add_argument(
        "--limit", type=int, default=30, help="for --json and --out: number of texts (default: %(default)s)"
    )
    label.add_argument("--new", action="store_true", help="draw anew from today's live texts, and forget the result")
    output = label.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print the texts and the result so far as JSON")
    output.add_argument("--out", type=Path, metavar="FILE", help="write a CSV file to fill in and import as feedback")
    run = partial(_late, "lifecycle.cli.feedback_commands")
    feedback = add(
        "feedback",
        run("feedback"),
        "import a file of feedback (texts and labels), or manage the sources of feedback",
    )
    feedback.add_argument(
        "action",
        metavar="FILE|sources|quarantine|release|withdraw",
        help="file to import, or an action (write ./sources for a file of that name)",
    )
    feedback.add_argument(
        "source", nargs="?", help="for quarantine, release and withdraw: the source as `feedback sources` lists it"
    )
    feedback.add_argument("--id", type=int, help="for withdraw: withdraw one row instead of all rows of a source")
    feedback.add_argument("--erase", action="store_true", help="for withdraw: also remove the texts from the database")
    feedback.add_argument("--json", action="store_true", help="for sources: print JSON")


def _add_release(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """Add the commands for a shadow or canary release."""
    run = partial(_late, "lifecycle.cli.release_commands")
    for name, text in (
        ("shadow", "shadow release: also send a share of live texts to a version, and return none of its predictions"),
        ("canary", "canary release: answer a growing share of live texts with a version, then promote it"),
        ("stop", "end the shadow or canary release of a version"),
    ):
        add(name, run(name), text).add_argument("version", type=_version_number)
    tried = add("release", run("show_release"), "show the current or last shadow or canary release and its results")
    tried.add_argument(
        "--texts", type=int, default=0, metavar="N", help="list N texts on which the two versions differ"
    )
    tried.add_argument("--json", action="store_true", help="print JSON")


def _add_keys(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """Add the commands for API keys."""
    run = partial(_late, "gateway.auth.key_commands")
    keys = add("keys", run("list_keys"), "add, list and revoke API keys")
    commands = keys.add_subparsers(title="commands", metavar="COMMAND")
    adding = commands.add_parser("add", help="create a key; it is printed once and only its hash is stored")
    adding.add_argument("name", help="name of the key's owner")
    adding.add_argument(
        "--scope",
        nargs="+",
        required=True,
        choices=["predict", "feedback", "read", "texts", "admin"],
        help="read covers metrics, versions, jobs and events; texts covers what users wrote; admin covers everything",
    )
    adding.set_defaults(command=run("add"))
    listing = commands.add_parser("list", help="show the valid keys")
    listing.set_defaults(command=run("list_keys"))
    revoking = commands.add_parser("revoke", help="revoke a key")
    revoking.add_argument("name")
    revoking.set_defaults(command=run("revoke"))
