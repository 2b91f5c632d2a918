"""The one command: train if no model is deployed, then run Triton, the gateway and the scheduler."""

import argparse
import asyncio
import contextlib
import errno
import faulthandler
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

from errors import PipelineError
from logs import set_up_logging
from serving.die_with_parent import command_dying_with_parent
from settings import Settings, load_settings
from tracing import set_up_tracing

Command = Callable[[Settings, argparse.Namespace], None]

log = logging.getLogger("app")


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    # Read by these libraries when they are imported, which the commands below do late.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Else a model without safetensors would be sent to a service of the hub that makes them.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # What is forked here becomes another program at once, and has no calls to go on with.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    if not faulthandler.is_enabled():
        faulthandler.enable()  # so that a crash in native code says where it came from
    without_secrets: Callable[[str], str] = str
    try:
        command: Command = options.command
        settings = load_settings()
        without_secrets = settings.without_secrets
        set_up_logging(settings)
        set_up_tracing(settings, "sentiment")
        command(settings, options)
    except PipelineError as error:
        print(without_secrets(f"error: {error}"), file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = f" (writing {error.filename})" if error.filename else ""
        print(f"error: the disk is full{where}; make room and run the command again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="app.py",
        description="Learns text sentiment from two CSV files and serves it through Triton. "
        "Without a command: trains if no model is deployed, then serves. "
        "Settings come from SENTIMENT_… in the environment and from .env; docs/reference-settings.md lists them.",
    )
    parser.set_defaults(command=_run)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text, description=text)
        subparser.set_defaults(command=command)
        return subparser

    add("data", _data, "check the two CSV files; where there are none, make sample data")
    add("train", _train, "fine-tune on the CSV files, save to ./model, register the version in MLflow")
    add("export", _export, "export ./model to ONNX, prove it, publish it; deploy it if no version is deployed")
    add("prepare", _prepare, "where no version is deployed yet: data, train and export")
    add("serve", _serve, "run Triton and the gateway for the deployed version")
    add("triton", _triton, "run Triton alone, for gateways that name it in SENTIMENT_TRITON_URL")
    add("gateway", _gateway, "run the gateway alone, before the Triton of SENTIMENT_TRITON_URL")
    add("scheduler", _scheduler, "run the scheduler alone, for gateways that run elsewhere")
    predict = add("predict", _predict, "classify a text with the version that is being served")
    predict.add_argument("text")
    scoring = add("score", _score, "classify the rows of files (CSV, Parquet, JSON Lines), on all cores or on Ray")
    scoring.add_argument("inputs", nargs="+", metavar="IN", help="file, folder or glob")
    scoring.add_argument("--out", required=True, help="file, or folder of a file for each input")
    scoring.add_argument("--text-column", default="text", help="column of the texts (default: %(default)s)")
    scoring.add_argument("--prefix", default="", help="of the columns that are added: label, score and version")
    scoring.add_argument("--version", type=int, help="of the model (default: the one that is deployed)")
    scoring.add_argument("--overwrite", action="store_true", help="replace the output, if there is one")
    scoring.add_argument("--ray", metavar="ADDRESS", help="of a Ray cluster that does the work")
    _add_loop(add)
    _add_release(add)
    return parser


def _late(module: Callable[[], ModuleType], name: str) -> Command:
    """A command of a module whose libraries are imported only when it is run."""

    def command(settings: Settings, options: argparse.Namespace) -> None:
        function: Command = getattr(module(), name)
        function(settings, options)

    return command


def _add_loop(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """Add the commands of the loop."""

    def module() -> ModuleType:
        from lifecycle import commands

        return commands

    run = partial(_late, module)
    for name, text in (
        ("check", "ask the version that is being served how good it is now; retrain where it is stale"),
        ("retrain", "learn from the data and the feedback, and promote what passes every gate"),
        ("models", "show every version: metrics, gates, when it served"),
    ):
        add(name, run(name), text).add_argument("--json", action="store_true", help="print JSON")
    promote = add("promote", run("promote"), "have a version serve, whatever the gates said of it")
    promote.add_argument("version", type=int)
    add("rollback", run("rollback"), "have the version serve that did before")
    events = add("events", run("list_events"), "show what the loop did, and why")
    events.add_argument("--limit", type=int, default=30, help="how many, the newest (default: %(default)s)")
    events.add_argument("--kind", help="only those of a kind, such as promoted")
    events.add_argument("--json", action="store_true", help="print JSON")
    suggest = add("suggest", run("suggest"), "show the sampled texts that would teach most if they had labels")
    suggest.add_argument("--limit", type=int, default=30, help="how many at most (default: %(default)s)")
    output = suggest.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--out", type=Path, metavar="FILE", help="write a CSV file to fill in and import as feedback")
    feedback = add("feedback", run("import_feedback"), "import a CSV file of feedback (columns text and label)")
    feedback.add_argument("file", type=Path)
    add("cancel", run("cancel"), "end a job").add_argument("job", type=int)
    add("alias", run("name_champion"), "have MLflow's alias champion name the version that serves")
    _add_keys(add)
    add("job", run("run_waiting_job"), "do a job that waits; the scheduler runs this").add_argument("job", type=int)


def _add_release(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """Add the commands for a version that is tried on live texts."""

    def module() -> ModuleType:
        from lifecycle import release_commands

        return release_commands

    run = partial(_late, module)
    for name, text in (
        ("shadow", "put a share of the live texts to a version too, which answers nobody"),
        ("canary", "have a version answer a growing share of the live texts, and serve if it does well"),
        ("stop", "end the shadow or the canary of a version"),
    ):
        add(name, run(name), text).add_argument("version", type=int)
    tried = add("release", run("show_release"), "show what is tried on live texts, or was last, and what was found")
    tried.add_argument("--texts", type=int, default=0, metavar="N", help="list N texts on which the versions differ")
    tried.add_argument("--json", action="store_true", help="print JSON")


def _add_keys(add: Callable[[str, Command, str], argparse.ArgumentParser]) -> None:
    """Add the commands for API keys."""

    def module() -> ModuleType:
        from gateway import key_commands

        return key_commands

    run = partial(_late, module)
    keys = add("keys", run("list_keys"), "add, list and revoke API keys")
    commands = keys.add_subparsers(title="commands", metavar="COMMAND")
    adding = commands.add_parser("add", help="make a key; it is printed once and kept nowhere")
    adding.add_argument("name", help="whose it is")
    adding.add_argument(
        "--scope",
        nargs="+",
        required=True,
        choices=["predict", "feedback", "read", "admin"],
        help="what it allows: read is metrics, versions, jobs and events; admin is everything",
    )
    adding.set_defaults(command=run("add"))
    listing = commands.add_parser("list", help="show the keys that are valid")
    listing.set_defaults(command=run("list_keys"))
    revoking = commands.add_parser("revoke", help="have a key no longer be valid")
    revoking.add_argument("name")
    revoking.set_defaults(command=run("revoke"))


def _run(settings: Settings, options: argparse.Namespace) -> None:
    _check_machine(settings)
    _prepare(settings, options)
    _serve(settings, options)


def _prepare(settings: Settings, _: argparse.Namespace) -> None:
    from serving.repository import ModelRepository

    repository = ModelRepository(settings.model_repository)
    if repository.has_record:
        # What is damaged is mended when it is served.
        with contextlib.suppress(PipelineError):
            log.info("Version %d is deployed.", repository.named())
        return
    log.info("No model is deployed yet, so one is trained first.")
    fingerprint = _check_data(settings)
    # Each step in a process of its own, so that its memory is free again when the model is served.
    if not _is_trained(settings, fingerprint):
        _run_step("train")
    _run_step("export")


def _run_step(name: str) -> None:
    ended = subprocess.run(command_dying_with_parent([sys.executable, __file__, name]), check=False)
    if ended.returncode:
        raise PipelineError(f"`python app.py {name}` did not succeed, so there is nothing to serve yet.")


def _is_trained(settings: Settings, fingerprint: str) -> bool:
    """Whether ./model was trained on these data, by a run that was ended before the export."""
    from trainer.record import TrainingRecord

    try:
        return TrainingRecord.load(settings.model_dir).data_fingerprint == fingerprint
    except PipelineError:
        return False


def _data(settings: Settings, _: argparse.Namespace) -> None:
    _check_data(settings)


def _check_data(settings: Settings) -> str:
    """Check the data, made where there are none; returns their fingerprint."""
    from trainer.dataset import load_dataset
    from trainer.sample_data import write_sample_data

    named = settings.model_fields_set & {"train_data", "val_data"}
    if not named and not settings.train_data.exists() and not settings.val_data.exists():
        counts = write_sample_data(settings.train_data, settings.val_data, settings.seed)
        log.info(
            "No data were given, so sample data were made (film and product reviews, MIT licence): "
            "%d texts in %s, %d in %s.",
            sum(counts.train.values()),
            settings.train_data,
            sum(counts.val.values()),
            settings.val_data,
        )
    dataset = load_dataset(settings.train_data, settings.val_data)
    for repair in dataset.repairs:
        log.warning("%s", repair)
    log.info(
        "The data are good: %d texts to learn from, %d to validate on, labels %s.",
        len(dataset.train.texts),
        len(dataset.val.texts),
        ", ".join(dataset.labels),
    )
    return dataset.fingerprint


def _train(settings: Settings, _: argparse.Namespace) -> None:
    from trainer.processes import Processes
    from trainer.train import take_part, train

    if Processes.started().is_first:
        train(settings)
    else:
        take_part(settings)


def _export(settings: Settings, _: argparse.Namespace) -> None:
    from export.export import export

    export(settings)


def _serve(settings: Settings, _: argparse.Namespace) -> None:
    import uvloop

    from serve import serve
    from serving.repository import ModelRepository

    _check_machine(settings)
    if settings.triton_url is None and not ModelRepository(settings.model_repository).has_record:
        raise PipelineError("No model is deployed; run `python app.py` to train, export and serve one.")
    uvloop.run(serve(settings))


def _triton(settings: Settings, _: argparse.Namespace) -> None:
    from serve import check_ports, serve_triton
    from serving.repository import ModelRepository
    from serving.triton import check_platform

    own = settings.model_copy(update={"triton_url": None})
    check_ports(own, gateway=False)
    check_platform()
    if ModelRepository(settings.model_repository).deployed() is None:
        raise PipelineError("No model is deployed; run `python app.py` to train, export and serve one.")
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
            f"`python app.py {command}` runs no Triton; SENTIMENT_TRITON_URL names one (host:port of its gRPC)."
        )


def _check_machine(settings: Settings) -> None:
    """Tell what would stop the pipeline at its end before it begins, not minutes later."""
    from serving.triton import check_platform

    _check_gateway(settings)
    if settings.triton_url is None:
        check_platform()


def _check_gateway(settings: Settings) -> None:
    """Tell what would stop the gateway, or leave it open to strangers."""
    from gateway.access import check_access
    from gateway.tls import check_tls
    from serve import check_ports

    check_tls(settings)
    check_access(settings)
    check_ports(settings)


def _score(settings: Settings, options: argparse.Namespace) -> None:
    # As Triton's environment has them: each core runs the graph on one thread. Read when the libraries are imported.
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    from scoring.score import score

    score(settings, options)


def _predict(settings: Settings, options: argparse.Namespace) -> None:
    from serving.replicas import Replicas
    from serving.triton_client import TextRefusedError, TritonTimeoutError, TritonUnavailableError

    async def classify() -> None:
        client = Replicas(settings.triton_address)
        try:
            answer = await client.classify([options.text], timeout_s=10)
        except (TritonUnavailableError, TritonTimeoutError) as error:
            raise PipelineError(
                f"Triton does not answer at {settings.triton_address}: {error}. Start it with `python app.py`."
            ) from error
        except TextRefusedError as error:
            raise PipelineError(str(error)) from error
        finally:
            await client.close()
        cut = " (the text is longer than the model reads, and was cut)" if answer.truncated else ""
        print(f"{answer.labels[0]} {answer.scores[0]:.4f} (version {answer.version}){cut}")

    asyncio.run(classify())


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(main(sys.argv[1:]))
