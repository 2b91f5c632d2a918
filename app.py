"""The one command: train if no model is deployed, then run Triton, the gateway and the scheduler."""

import argparse
import asyncio
import contextlib
import errno
import faulthandler
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from command_line import Command, parse
from common.account import complete_account
from common.errors import NotDeployedError, PipelineError
from common.logging_setup import set_up_logging
from common.private_files import PRIVATE_UMASK, close_to_other_accounts
from common.proxies import prepare_proxies
from common.pypi_download import use_state_directory
from common.settings import PACKAGED, PACKAGED_BASE, Settings, former_names, load_settings
from common.tracing import set_up_tracing
from serving.host.die_with_parent import command_dying_with_parent

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


def prepare_libraries() -> None:
    """Set environment variables that the libraries read when the commands import them."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Otherwise transformers would ask a hub service to convert a model without safetensors.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Torch's threads would wait for each other in busy loops, and take processors from a service beside a training.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A forked child executes another program at once and has no gRPC calls to continue.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")


def _main(arguments: list[str]) -> int:
    # Set before any file is written or process started, so that no other account of the machine can read users' texts.
    umask = os.umask(PRIVATE_UMASK)
    options = parse(arguments, OWN_COMMANDS)
    prepare_libraries()
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
    except NotDeployedError:
        from serving.host.pipeline_lock import running_pipeline

        print(f"error: {NotDeployedError(running_pipeline(settings))}", file=sys.stderr)
        return 1
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


def _run(settings: Settings, options: argparse.Namespace) -> None:
    from serving.host.pipeline_lock import only_pipeline

    _check_machine(settings)
    if settings.triton_url is not None:  # then several hosts may share the state
        _prepare(settings, options)
        _serve(settings, options)
        return
    with only_pipeline(settings):
        _prepare(settings, options)
        _serve_here(settings)


def _prepare(settings: Settings, _: argparse.Namespace) -> None:
    from serving.host import triton
    from serving.model_repo.repository import ModelRepository

    repository = ModelRepository(settings.model_repository)
    if repository.has_record:
        # A damaged record is repaired when the pipeline serves.
        with contextlib.suppress(PipelineError):
            log.info("Version %d was deployed before, so nothing is trained first.", repository.named())
        return
    from trainer.data_command import checked_fingerprint
    from trainer.first_version import fetch_encoder, quick

    log.info("No model is deployed.")
    if settings.triton_url is None:
        triton.fetch()  # before the training, which would be in vain without it
    fingerprint = checked_fingerprint(settings)
    # Not in this process, so that their memory is free again when the model is served.
    steps: list[tuple[str, ...]] = [("export",)]
    if _is_trained(settings, fingerprint):
        log.info("%s is already trained on these data; it is exported next.", settings.model_dir)
    elif settings.first_version == "quick" and _is_trained(quick(settings), fingerprint, quick=True):
        log.info("The quick version is already trained; it is exported next.")
    elif settings.first_version == "quick" and fetch_encoder():
        log.info(
            "Training a quick version first; on an idle machine it is served in about three minutes. The full "
            "training of %s follows while it is served, and replaces it if its version is not worse. "
            "SENTIMENT_FIRST_VERSION=full leaves the quick version out.",
            _base_model(settings),
        )
        steps = [("train", "--quick", "--export")]  # in one process, because importing the libraries takes long
    else:
        log.info("Training the first version: %s.", _base_model(settings))
        steps = [("train",), ("export",)]
    for step in steps:
        _run_step(*step)


def _base_model(settings: Settings) -> str:
    """Return the encoder of the next full training, in words."""
    if "base_model" not in settings.model_fields_set:
        return f"{settings.base_model} (MPNet base if the Hugging Face hub cannot be reached)"
    packaged = {PACKAGED: "the small packaged encoder", PACKAGED_BASE: "the packaged encoder of base size"}
    return packaged.get(settings.base_model, settings.base_model)


def _run_step(*arguments: str) -> None:
    ended = subprocess.run(command_dying_with_parent([sys.executable, __file__, *arguments]), check=False)
    if ended.returncode == -signal.SIGKILL:
        raise PipelineError(
            f"`python app.py {' '.join(arguments)}` was killed, so no model can be served. Probably the memory did not "
            "suffice: use the small encoder (SENTIMENT_BASE_MODEL=packaged), or add memory (docs/machines.md)."
        )
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
        return
    if options.export:
        from export.export import export

        export(settings)


def _export(settings: Settings, options: argparse.Namespace) -> None:
    if options.standard is not None:
        from export.standard import export_standard

        os.umask(options.umask)  # the directory is the user's
        export_standard(settings, options.standard)
        return
    from trainer.record import TrainingRecord

    TrainingRecord.load(settings.model_dir)  # raises before the libraries are imported, which takes seconds
    from export.export import export

    export(settings)


def _serve(settings: Settings, _: argparse.Namespace) -> None:
    from serving.host.pipeline_lock import only_pipeline

    _check_machine(settings)
    if settings.triton_url is not None:
        _serve_here(settings)
        return
    with only_pipeline(settings):
        _serve_here(settings)


def _serve_here(settings: Settings) -> None:
    import uvloop

    from serve import serve
    from serving.model_repo.repository import ModelRepository

    _check_machine(settings)  # a training may have taken long since the first check
    if settings.triton_url is None and not ModelRepository(settings.model_repository).has_record:
        raise NotDeployedError
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
    from scoring.inputs import find_inputs

    find_inputs(options.inputs, Path(options.out))  # raises before the libraries are imported, which takes seconds
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


OWN_COMMANDS: dict[str, Command] = {
    "run": _run,
    "train": _train,
    "export": _export,
    "prepare": _prepare,
    "serve": _serve,
    "triton": _triton,
    "gateway": _gateway,
    "scheduler": _scheduler,
    "predict": _predict,
    "score": _score,
}
"""The commands that this module carries out; `run` is none, and goes without a name."""


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode if the locale has another encoding, which cannot hold every text and path."""
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


if __name__ == "__main__":
    _use_utf8()
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(main(sys.argv[1:]))
