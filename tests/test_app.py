"""The command line: what it offers, and what it says when something cannot be."""

import argparse
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from common import pypi_download
from common.errors import NotDeployedError, PipelineError
from common.settings import Settings
from serving.host.pipeline_lock import only_pipeline
from tests.conftest import make_encoder
from tests.e2e.conftest import PROJECT, free_ports

INSIDE_TRITON = {Path("serving/backend/packed_onnx/model.py"), Path("serving/backend/engine_metrics.py")}
"""What Triton's own Python modules are needed for."""


def app(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SENTIMENT_")}
    return subprocess.run(
        [sys.executable, PROJECT / "app.py", *arguments],
        cwd=directory,
        env=inherited | {"SENTIMENT_HOME": "."} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_version_is_one_everywhere(tmp_path: Path) -> None:
    version = app(tmp_path, "--version").stdout.split()[-1]
    assert f'version = "{version}"' in (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    assert (
        re.findall(r"^## ([\d.]+)", (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[0] == version
    )


def test_help_names_each_command(tmp_path: Path) -> None:
    output = app(tmp_path, "--help").stdout
    assert all(f"\n  {command} " in output for command in ("data", "train", "export", "serve", "predict"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["retrian"],
            "app.py: error: argument COMMAND: invalid choice: 'retrian' (see --help); did you mean retrain?\n",
        ),
        (["retrain", "--jsn"], "app.py retrain: error: unrecognized arguments: --jsn; did you mean --json?\n"),
        (["events", "--limt=4"], "unrecognized arguments: --limt=4; did you mean --limit?\n"),
        (["keys", "add", "anna", "--scope", "predct"], "; did you mean predict?\n"),
        (["predict", "hello", "world"], "app.py predict: error: unrecognized arguments: world\n"),
    ],
)
def test_a_mistake_of_the_command_line_is_told_with_what_was_probably_meant(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("app").main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["data"], {"SENTIMENT_TRAIN_DATA": "no.csv"}, "no.csv: no such file"),
        (["data"], {"SENTIMENT_PROT": "1"}, "did you mean SENTIMENT_PORT?"),
        (["export"], {}, "model contains no trained model. Run `python app.py train` first."),
        (["serve"], {}, str(NotDeployedError())),
        (["gateway"], {}, "`python app.py gateway` runs no Triton. Set SENTIMENT_TRITON_URL to one"),
        (["scheduler"], {}, "`python app.py scheduler` runs no Triton. Set SENTIMENT_TRITON_URL to one"),
        *((command, {}, str(NotDeployedError())) for command in (["predict", "fine"], ["check"], ["retrain"])),
    ],
)
def test_what_cannot_be_is_one_message_and_status_1(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    ended = app(tmp_path, *arguments, **{"SENTIMENT_PORT": str(free_ports())} | environment)
    assert ended.returncode == 1
    assert "error: " in ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("arguments", [["predict", "fine"], ["check"], ["retrain"]])
def test_without_a_model_the_training_that_runs_is_named(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SENTIMENT_HOME", str(tmp_path))
    with only_pipeline(Settings(state_dir=tmp_path / ".sentiment")):
        assert importlib.import_module("app").main(arguments) == 1
    running = f"`python app.py` (process {os.getpid()}) is training it now"
    assert capsys.readouterr().err == f'error: No model is deployed yet. {running}; wait until its log says "Ready".\n'


def test_a_wrong_base_model_is_told_before_the_quick_version_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SENTIMENT_BASE_MODEL", "/no/encoder")
    assert importlib.import_module("app").main(["train", "--quick"]) == 1
    assert "'/no/encoder' (SENTIMENT_BASE_MODEL) cannot be loaded: it is neither" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_triton_is_fetched_before_the_first_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with a package index that cannot be reached: nothing is trained that could not be served."""
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"text {number},{'ab'[number % 2]}\n" for number in range(40))
    (tmp_path / "train_sentiment_data.csv").write_text(f"text,label\n{rows}")

    def fail(*_: object) -> None:
        raise PipelineError("no index")

    monkeypatch.setattr(pypi_download, "_stores", lambda: [tmp_path / "packages"])
    monkeypatch.setattr(pypi_download, "_run_pip", fail)
    command = importlib.import_module("app")
    monkeypatch.setattr(command, "_run_step", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(PipelineError, match="no index"):
        command._prepare(Settings(state_dir=tmp_path), argparse.Namespace())
    assert "Downloading Triton (nvidia_pytriton-" in caplog.messages[-1]


def test_a_step_that_is_killed_is_told_with_the_likely_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    command = importlib.import_module("app")
    kill = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(command, "command_dying_with_parent", lambda _: kill)
    with pytest.raises(PipelineError, match=r"`python app.py train` was killed, .* use the small encoder"):
        command._run_step("train")


def test_port_in_use_is_told_before_the_work_begins(tmp_path: Path) -> None:
    port = free_ports()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port + 1))
        other.listen()
        ended = app(tmp_path, SENTIMENT_PORT=str(port))
    assert ended.returncode == 1
    assert f"the gRPC port for programs (127.0.0.1:{port + 1}): Address already in use" in ended.stderr
    assert "SENTIMENT_PORT" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_sample_data_are_made_where_none_are_given(tmp_path: Path) -> None:
    ended = app(tmp_path, "data")
    assert ended.returncode == 0, ended.stderr
    assert "No data files found; made sample data" in ended.stderr
    assert "Data check passed: 11,741 training texts, 1,305 validation texts" in ended.stderr
    assert "No data files found" not in app(tmp_path, "data").stderr


def test_what_the_account_may_not_write_is_one_message(tmp_path: Path) -> None:
    ended = app(tmp_path, "keys", "list", SENTIMENT_STATE_DIR="/sys/state")  # where not even root makes files
    assert ended.returncode == 1
    assert re.search(r"\nerror: .*'/sys/state'\. Check ", f"\n{ended.stderr}")
    assert "Traceback" not in ended.stderr


def test_a_reader_that_ends_early_is_no_fault(tmp_path: Path) -> None:
    """As `python app.py models | head -1`; the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as output:
        ended = subprocess.run(
            [sys.executable, PROJECT / "app.py", "data", "--json"], cwd=tmp_path, stdout=output, stderr=subprocess.PIPE
        )
    assert ended.returncode == 128 + signal.SIGPIPE
    assert b"BrokenPipeError" not in ended.stderr


def test_an_encoder_that_cannot_be_written_as_a_graph_is_refused_before_its_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    make_encoder("longformer", tmp_path / "encoder", attention_window=8, pad_token_id=0, **sizes)
    monkeypatch.setenv("SENTIMENT_HOME", str(tmp_path))
    monkeypatch.setenv("SENTIMENT_BASE_MODEL", "encoder")
    assert importlib.import_module("app").main(["train"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert caplog.messages[-1] == "Testing before the training whether encoder can be written as an ONNX graph."
    assert "The base model 'encoder' (SENTIMENT_BASE_MODEL) cannot be served, so it is not trained." in error
    assert "'longformer' cannot be written as an ONNX graph: Could not guard on data-dependent expression" in error
    assert "Choose an encoder of another family, best of one that can be packed: bert, " in error


def test_another_pipe_that_breaks_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_a_server(_: list[str]) -> int:
        raise BrokenPipeError

    command = importlib.import_module("app")
    monkeypatch.setattr(command, "_main", lose_a_server)
    with pytest.raises(BrokenPipeError):
        command.main([])


def test_a_locale_without_most_characters_is_no_fault(tmp_path: Path) -> None:
    directory = tmp_path / "é"
    directory.mkdir()
    (directory / "müsli.csv").write_text("text,label\n" + "".join(f"naïve {n},ü{n % 2}\n" for n in range(40)), "utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    help_page = app(directory, "--help", **locale)
    assert (help_page.returncode, "SENTIMENT_…" in help_page.stdout) == (0, True), help_page.stderr
    ended = app(directory, "data", SENTIMENT_TRAIN_DATA="müsli.csv", **locale)
    assert ended.returncode == 0, ended.stderr
    assert "labels ü0, ü1" in ended.stderr


@pytest.mark.full
def test_importing_does_nothing(tmp_path: Path) -> None:
    modules = [
        ".".join(path.relative_to(PROJECT).with_suffix("").parts)
        for folder in ("trainer", "export", "serving", "scoring", "tables", "gateway")
        for path in (PROJECT / folder).rglob("*.py")
        if path.name != "__init__.py" and path.relative_to(PROJECT) not in INSIDE_TRITON
    ]
    code = (
        f"import sys, threading; sys.path.insert(0, {str(PROJECT)!r})\n"
        + "".join(f"import {module}\n" for module in [*modules, "app", "serve", "common.settings"])
        + "assert threading.active_count() == 1, threading.enumerate()"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "module",
    [
        "lifecycle.jobs.check",
        "lifecycle.jobs.scheduler",
        "lifecycle.cli.commands",
        "gateway.main",
        "scoring.score",
        "trainer.first_version",
        "trainer.data_command",
    ],
)
def test_what_runs_often_does_not_load_what_only_a_training_needs(module: str) -> None:
    """These libraries take seconds and hundreds of megabytes. `app.py` imports the last two, and serves then."""
    heavy = "torch", "transformers", "mlflow", "openvino", "nncf"
    code = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); import {module}; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = ended.stdout.split()
    assert module in loaded, ended.stderr
    assert not set(heavy) & set(loaded)
