"""The one command: train if no model is deployed, then run Triton, the gateway and the scheduler."""

import argparse
import asyncio
import contextlib
import difflib
import errno
import faulthandler
import importlib
import logging
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NoReturn

from common.account import complete_account
from common.errors import PipelineError
from common.logging_setup import set_up_logging
from common.private_files import PRIVATE_UMASK, close_to_other_accounts
from common.proxies import prepare_proxies
from common.pypi_download import use_state_directory
from common.settings import Settings, former_names, load_settings
from common.tracing import set_up_tracing
from serving.host.die_with_parent import command_dying_with_parent

VERSION = "0.2.0"

Command = Callable[[Settings, argparse.Namespace], None]

_GIVE_ACCESS = "Give this account access to it, or set another place (docs/reference-settings.md)."
_FILE_FAULTS = {
    errno.ENOSPC: ("the disk is full", "Free some space and run the command again."),
    errno.EDQUOT: ("this account's share of the disk is full", "Free some space and run the command again."),
    errno.EROFS: ("the disk is read-only", _GIVE_ACCESS),
    errno.EACCES: ("permission denied", _GIVE_ACCESS),
    errno.EPERM: ("permission denied", _GIVE_ACCESS),
    errno.ENOTDIR: ("a part of the path is not a directory", "Name another path."),
}
"""Faults of files that a user can mend: the problem and the fix."""

log = logging.getLogger("app")


def main(arguments: list[str]) -> int:
    """Run one command, and return the exit status. If the reader of its output (`| head`) ends, so does the command."""
    try:
        try:
            return _main(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():
            raise
        # Otherwise Python would write the rest at its end, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _reader_left() -> bool:
    """Return whether nobody reads standard output any more."""
    if sys.stdout is None:
        return False
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # errors are always reported
    return any(event & select.POLLERR for _, event in output.poll(0))


def _main(arguments: list[str]) -> int:
    # Set before any file is written or process started, so that no other account of the machine can read users' texts.
    umask = os.umask(PRIVATE_UMASK)
    options = _options(arguments)
    # The libraries read these variables when the commands import them.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Otherwise transformers would ask a hub service to convert a model without safetensors.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # A forked child executes another program at once and has no gRPC calls to continue.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    prepare_proxies(os.environ)
    if not faulthandler.is_enabled():
        faulthandler.enable()  # a crash in native code then prints where it happened
    without_secrets: Callable[[str], str] = str
    try:
        command: Command = options.command
        settings = load_settings()
        without_secrets = settings.without_secrets
        complete_account(settings.state_dir / "home")
        use_state_directory(settings.state_dir)
        set_up_logging(settings)
        for warning in former_names():
            log.warning("%s", warning)
        from serving.client.triton_client import set_control_key

        set_control_key(settings.triton_key.get_secret_value() if settings.triton_key else "")
        set_up_tracing(settings, "sentiment")
        options.umask = umask
        if command not in (_score, _predict):  # these two write no file of the pipeline
            close_to_other_accounts(settings)
        command(settings, options)
    except PipelineError as error:
        print(without_secrets(f"error: {error}"), file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name}, which this command needs, is not installed here. The gateway's container has only "
            "what `gateway` needs: run the command in the scheduler's. Elsewhere, `make install` installs everything.",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # which seldom names the file
        if error.errno not in _FILE_FAULTS or not (error.filename or is_full):
            raise
        problem, fix = _FILE_FAULTS[error.errno]
        file = f"{error.filename}: " if error.filename else ""
        print(f"error: {file}{problem}. {fix}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser whose errors name what was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Print the message with the usage, and exit. Python can do so itself from 3.14 on."""
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        super().error(message + (_nearest(wrong[1], re.findall(r"[\w-]+", wrong[2])) if wrong else ""))


def _nearest(wrong: str, names: Iterable[str]) -> str:
    """Return a hint at the name that was probably meant; empty if none is similar."""
    found = difflib.get_close_matches(wrong.partition("=")[0], list(names), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _options(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line; a mistake ends the process with status 2."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        parser: argparse.ArgumentParser = options.parser
        hint = _nearest(unknown[0], parser.format_help().split()) if unknown[0].startswith("-") else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="app.py",
        description="Trains a text sentiment model on your texts and labels and serves it through Triton. "
        "Without a command: trains if no model is deployed, then serves. "
        "Settings come from SENTIMENT_… in the environment and from .env; docs/reference-settings.md lists them.",
    )
    parser.add_argument("--version", action="version", version=f"sentiment-pipeline {VERSION}")
    parser.set_defaults(command=_run, parser=parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text, description=text)
        subparser.set_defaults(command=command, parser=subparser)
        return subparser

    data = add(
        "data", _late("trainer.data_command", "data"), "check the data files; if there are none, make sample data"
    )
    data.add_argument("--json", action="store_true", help="print JSON")
    train = add("train", _train, "fine-tune on the data files, save to ./model, register the version in MLflow")
    train.add_argument(
        "--quick",
        action="store_true",
        help="train the packaged encoder for about 75 seconds, as the first start does",
    )
    export = add(
        "export", _export, "export ./model to ONNX, verify and publish it; deploy it if no version is deployed"
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
    add("prepare", _prepare, "if no version is deployed yet, run data, train and export")
    add("serve", _serve, "run Triton, the gateway and the scheduler for the deployed version")
    add("triton", _triton, "run only Triton, for gateways that set SENTIMENT_TRITON_URL to it")
    add("gateway", _gateway, "run only the gateway, in front of the Triton at SENTIMENT_TRITON_URL")
    add("scheduler", _scheduler, "run only the scheduler, for gateways that run elsewhere")
    predict = add("predict", _predict, "classify a text with the deployed model")
    predict.add_argument("text")
    scoring = add("score", _score, "classify the rows of files (CSV, Parquet, JSON Lines), on all cores or on Ray")
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
    suggest = add("suggest", run("suggest"), "show sampled texts to label next, drawn at random")
    suggest.add_argument("--limit", type=int, default=30, help="maximum number of texts (default: %(default)s)")
    output = suggest.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--out", type=Path, metavar="FILE", help="write a CSV file to fill in and import as feedback")
    _add_feedback(add)
    add("cancel", run("cancel"), "cancel a job").add_argument("job", type=int)
    add("alias", run("name_champion"), "set MLflow's alias champion to the deployed version")
    _add_keys(add)
    add("job", run("run_waiting_job"), "run a queued job; the scheduler calls this").add_argument("job", type=int)


def _add_feedback(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """Add the commands for feedback and its sources."""
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


def _run(settings: Settings, options: argparse.Namespace) -> None:
    _check_machine(settings)
    _prepare(settings, options)
    _serve(settings, options)


def _prepare(settings: Settings, _: argparse.Namespace) -> None:
    from serving.model_repo.repository import ModelRepository

    repository = ModelRepository(settings.model_repository)
    if repository.has_record:
        # A damaged record is repaired when the pipeline serves.
        with contextlib.suppress(PipelineError):
            log.info("Version %d is deployed.", repository.named())
        return
    from trainer.data_command import checked_fingerprint
    from trainer.first_version import fetch_encoder, quick

    log.info("No model is deployed.")
    fingerprint = checked_fingerprint(settings)
    # Each step runs in its own process, so that its memory is free again when the model is served.
    if _is_trained(settings, fingerprint):
        log.info("%s is already trained on these data; it is exported next.", settings.model_dir)
    elif settings.first_version == "quick" and _is_trained(quick(settings), fingerprint, quick=True):
        log.info("The quick version is already trained; it is exported next.")
    elif settings.first_version == "quick" and fetch_encoder():
        log.info(
            "First, a quick version is trained; it is served in about three minutes. The full training with %s follows "
            "in the background, where `python app.py` or its scheduler runs, and its version takes over when it passes "
            "the gates. SENTIMENT_FIRST_VERSION=full trains that one before anything is served.",
            _base_model(settings),
        )
        _run_step("train", "--quick")
    else:
        log.info("Training the first version with %s.", _base_model(settings))
        _run_step("train")
    _run_step("export")


def _base_model(settings: Settings) -> str:
    """Return the encoder of the next full training, in words."""
    is_named = "base_model" in settings.model_fields_set
    return settings.base_model if is_named else f"{settings.base_model} (MPNet base where the hub cannot be reached)"


def _run_step(*arguments: str) -> None:
    ended = subprocess.run(command_dying_with_parent([sys.executable, __file__, *arguments]), check=False)
    if ended.returncode:
        raise PipelineError(
            f"`python app.py {' '.join(arguments)}` failed, so no model can be served. Fix the error above and try "
            "again."
        )


def _is_trained(settings: Settings, fingerprint: str, *, quick: bool = False) -> bool:
    """Return whether `./model` is already trained on these data with these settings, by a run without an export."""
    from trainer.record import TrainingRecord

    try:
        return TrainingRecord.load(settings.model_dir).is_of(settings, fingerprint, quick=quick)
    except PipelineError:
        return False


def _train(settings: Settings, options: argparse.Namespace) -> None:
    from trainer.base_model import check_base_model
    from trainer.first_version import quick
    from trainer.processes import Processes
    from trainer.train import take_part, train

    if options.quick:
        if Processes.started().count > 1:
            raise PipelineError("`train --quick` trains in one process. Start it without torchrun.")
        check_base_model(settings)
        train(quick(settings), quick=True)
    elif Processes.started().is_first:
        from export.graph import check_exportable

        check_exportable(settings)
        train(settings)
    else:
        take_part(settings)


def _export(settings: Settings, options: argparse.Namespace) -> None:
    if options.standard is not None:
        from export.standard import export_standard

        os.umask(options.umask)  # the directory is the user's
        export_standard(settings, options.standard)
        return
    from export.export import export

    export(settings)


def _serve(settings: Settings, _: argparse.Namespace) -> None:
    import uvloop

    from serve import serve
    from serving.model_repo.repository import NOT_DEPLOYED, ModelRepository

    _check_machine(settings)
    if settings.triton_url is None and not ModelRepository(settings.model_repository).has_record:
        raise PipelineError(NOT_DEPLOYED)
    uvloop.run(serve(settings))


def _triton(settings: Settings, _: argparse.Namespace) -> None:
    from serve import check_ports, serve_triton
    from serving.host.triton import check_platform
    from serving.model_repo.repository import ModelRepository

    own = settings.model_copy(update={"triton_url": None})
    check_ports(own, gateway=False)
    check_platform()
    ModelRepository(settings.model_repository).require_deployed()
    asyncio.run(serve_triton(own))


def _gateway(settings: Settings, _: argparse.Namespace) -> None:
    import uvloop

    from serve import serve

    _check_external(settings, "gateway")
    _check_gateway(settings)
    uvloop.run(serve(settings, schedules=False))


def _scheduler(settings: Settings, _: argparse.Namespace) -> None:
    from serve import schedule

    _check_external(settings, "scheduler")
    schedule(settings)


def _check_external(settings: Settings, command: str) -> None:
    if settings.triton_url is None:
        raise PipelineError(
            f"`python app.py {command}` runs no Triton. Set SENTIMENT_TRITON_URL to one (host:port of its gRPC port)."
        )


def _check_machine(settings: Settings) -> None:
    """Raise now for problems that would stop the pipeline only after the training."""
    from serving.host.triton import check_platform

    _check_gateway(settings)
    if settings.triton_url is None:
        check_platform()


def _check_gateway(settings: Settings) -> None:
    """Raise for problems that would stop the gateway, or leave it open to strangers."""
    from gateway.auth.access import check_access
    from gateway.auth.tls import check_tls
    from serve import check_ports

    check_tls(settings)
    check_access(settings)
    check_ports(settings)


def _score(settings: Settings, options: argparse.Namespace) -> None:
    # As in Triton's environment: one thread per core. The libraries read these variables when they are imported.
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    os.umask(options.umask)  # the command writes only to the user's own output path
    from scoring.score import score

    score(settings, options)


def _predict(settings: Settings, options: argparse.Namespace) -> None:
    from lifecycle.cli.running import require_running
    from serving.client.errors import KeyRefusedError, TextRefusedError, TritonTimeoutError, TritonUnavailableError
    from serving.client.replicas import Replicas

    require_running(settings)

    async def classify() -> None:
        client = Replicas(settings.triton_address)
        try:
            answer = await client.classify([options.text], timeout_s=10)
        except (TritonUnavailableError, TritonTimeoutError) as error:
            raise PipelineError(
                f"Triton does not respond at {settings.triton_address}: {error}. Try again when it is ready."
            ) from error
        except (TextRefusedError, KeyRefusedError) as error:
            raise PipelineError(str(error)) from error
        finally:
            await client.close()
        cut = " (the text was cut: it is longer than the model reads)" if answer.truncated else ""
        print(f"{answer.labels[0]} {answer.scores[0]:.4f} (version {answer.version}){cut}")

    asyncio.run(classify())


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode if the locale has another encoding, which cannot hold every text and path."""
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


if __name__ == "__main__":
    _use_utf8()
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(main(sys.argv[1:]))
