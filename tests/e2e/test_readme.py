"""The README: each of its commands is run as it stands there, and does what it says."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from settings import ENV_PREFIX, Settings
from tests.e2e.closing_the_loop import close_the_loop
from tests.e2e.conftest import PROJECT, Pipeline, wait_for

README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def command_blocks() -> list[str]:
    return [code.strip() for language, code in BLOCKS if language == "bash"]


def shell(pipeline: Pipeline, commands: str, **environment: str) -> str:
    """Run a block of the README in the running checkout; only the port differs."""
    completed = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands.replace("localhost:8000", f"localhost:{pipeline.port}")],
        cwd=pipeline.checkout,
        env=pipeline.environment | {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout + completed.stderr


def run_is_running(pipeline: Pipeline) -> None:
    log = pipeline.log.read_text()
    for step in ("The data are good", "Fine-tuning all-MiniLM-L6-v2", "Published version 1", "Deployed version 1"):
        assert step in log


def first_calls(pipeline: Pipeline) -> None:
    love, terrible = command_blocks()[1].splitlines()
    for command, label in ((love, "Positive"), (terrible, "Negative")):
        head, _, body = shell(pipeline, command.replace("curl -i", "curl -si")).replace("\r", "").partition("\n\n")
        assert head.startswith("HTTP/1.1 200")
        assert "x-model-version: 1" in head
        answer = json.loads(body)
        score = answer["predictions"]["score"]["0"]
        assert answer == {"predictions": {"label": {"0": label}, "score": {"0": score}}}
        assert 0.5 < score <= 1


def classic_way(pipeline: Pipeline) -> None:
    install, run = command_blocks()[2].splitlines()
    shell(pipeline, install, PIP_RETRIES="0")
    # The pipeline is running, so a second one says what is in its way, and which setting moves it.
    with pytest.raises(
        AssertionError, match=rf"127\.0\.0\.1:{pipeline.port}\): Address already in use.*SENTIMENT_PORT"
    ):
        shell(pipeline, run)


def check_data(pipeline: Pipeline) -> None:
    assert "The data are good: 2000 texts to learn from, 300 to validate on" in shell(pipeline, command_blocks()[3])


def step_by_step(pipeline: Pipeline) -> None:
    train, export, serve = command_blocks()[4].splitlines()
    base = pipeline.checkout / "small-encoder"
    # A small encoder, because what these commands do does not depend on how good the model is.
    from tests.conftest import make_encoder

    make_encoder("bert", base)
    settings = {"SENTIMENT_BASE_MODEL": str(base), "SENTIMENT_PRECISION": "float32"}
    assert "Trained version 2" in shell(pipeline, train, **settings)
    assert "Published version 2" in shell(pipeline, export, **settings)
    assert (pipeline.checkout / "triton_repo/sentiment/2/bundle.json").is_file()
    assert "versions: [ 1 ]" in (pipeline.checkout / "triton_repo/sentiment/config.pbtxt").read_text()
    with pytest.raises(AssertionError, match="Address already in use"):
        shell(pipeline, serve)


def batch_and_predict(pipeline: Pipeline) -> None:
    output = shell(pipeline, command_blocks()[5].replace("curl ", "curl -s "))
    assert '"label":{"0":"Positive","1":"Negative"}' in output
    assert re.search(r"Positive 0\.\d{4} \(version 1\)", output)


def tell_feedback(pipeline: Pipeline) -> None:
    (pipeline.checkout / "more_feedback.csv").write_text('text,label\n"I want my money back.",Negative\n')
    output = shell(pipeline, command_blocks()[6].replace("curl ", "curl -s "))
    assert '{"accepted":1}' in output
    assert "One row of feedback was imported from more_feedback.csv" in output


def close_loop(pipeline: Pipeline) -> None:
    # In the slice of the data there are few reviews to learn from, so tweets help less and may cost more.
    close_the_loop(pipeline, least_gain=0.02, largest_loss=0.03)
    check, retrain, models, events, rollback = command_blocks()[7].splitlines()
    assert re.search(r"^validation +300 +0\.\d{4}", shell(pipeline, check), flags=re.MULTILINE)
    assert "No retraining: job 2 has learnt from the same data with the same settings" in shell(pipeline, retrain)
    told = shell(pipeline, models)
    assert re.search(r"^3 +champion .* all 7 ", told, flags=re.MULTILINE)
    assert re.search(r"^1 +previous ", told, flags=re.MULTILINE)
    assert "Version 3 was promoted in the place of 1: job 2 passed every gate." in shell(pipeline, events)
    assert "Version 1 serves." in shell(pipeline, rollback)


def check_by_request(pipeline: Pipeline) -> None:
    answer = json.loads(shell(pipeline, command_blocks()[8].replace("curl ", "curl -s ")))
    assert answer["state"] == "succeeded"
    assert answer["result"]["version"] == 1


def mlflow_ui(pipeline: Pipeline) -> None:
    process = subprocess.Popen(
        [Path(sys.prefix) / "bin" / command_blocks()[9].split()[0], *command_blocks()[9].split()[1:]],
        cwd=pipeline.checkout,
        env=pipeline.environment | {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        def answers() -> bool:
            assert process.poll() is None, "mlflow ui ended"
            try:
                return httpx.get("http://127.0.0.1:5000/health").is_success
            except httpx.TransportError:
                return False

        wait_for(answers, 180, "mlflow ui to answer")
    finally:
        process.terminate()
        process.wait(60)


def clean(pipeline: Pipeline) -> None:
    scratch = pipeline.checkout / "scratch"
    scratch.mkdir()
    for name in ("model", "triton_repo", ".sentiment"):
        (scratch / name).mkdir()
    (scratch / "train_sentiment_data.csv").touch()
    (scratch / "Makefile").write_bytes((pipeline.checkout / "Makefile").read_bytes())
    subprocess.run(command_blocks()[10].split(), cwd=scratch, env=pipeline.environment, check=True, capture_output=True)
    assert sorted(path.name for path in scratch.iterdir()) == ["Makefile", "train_sentiment_data.csv"]


def what_ci_runs(pipeline: Pipeline) -> None:
    assert command_blocks()[11] in (pipeline.checkout / ".ci" / "run").read_text().splitlines()


CHECKS: list[tuple[str, Callable[[Pipeline], None]]] = [
    ("make run", run_is_running),
    ("curl -i", first_calls),
    ("pip install", classic_way),
    ("python app.py data", check_data),
    ("python app.py train", step_by_step),
    ("curl localhost:8000/predict/batch", batch_and_predict),
    ("curl localhost:8000/feedback", tell_feedback),
    ("python app.py check", close_loop),
    ("curl -X POST localhost:8000/check", check_by_request),
    ("mlflow ui", mlflow_ui),
    ("make clean", clean),
    ("make test", what_ci_runs),
]


def test_each_block_of_commands_has_a_check() -> None:
    blocks = command_blocks()
    assert len(blocks) == len(CHECKS)
    for block, (beginning, _) in zip(blocks, CHECKS, strict=True):
        assert block.startswith(beginning)


@pytest.mark.parametrize("check", [check for _, check in CHECKS], ids=[name for name, _ in CHECKS])
def test_commands(pipeline: Pipeline, check: Callable[[Pipeline], None]) -> None:
    check(pipeline)


def test_python_example(pipeline: Pipeline) -> None:
    (example,) = [code for language, code in BLOCKS if language == "python"]
    completed = subprocess.run(
        [sys.executable, "-c", example.replace("127.0.0.1:8001", f"127.0.0.1:{pipeline.port + 1}")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert completed.returncode == 0, completed.stderr
    assert re.fullmatch(r"\[b'Positive' b'Negative'\] \[0\.\d+ +0\.\d+ *\] 1", completed.stdout.strip())


def test_settings_table_names_each_setting_with_its_default() -> None:
    rows = dict(re.findall(rf"^\| `({ENV_PREFIX}\w+)` \| (.*?) \|", README, flags=re.MULTILINE))
    assert rows.keys() == {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default = f"`{field.default}`" if str(field.default or "") else ""
        assert rows[ENV_PREFIX + name.upper()] == default


def test_tree_names_each_module() -> None:
    modules = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=PROJECT, check=True, capture_output=True, text=True
    ).stdout
    tree = README[README.index("## The code") :]
    for module in modules.splitlines():
        if not module.startswith("tests/") and not module.endswith("__init__.py"):
            assert re.search(rf"^\s*(\S+/)?{re.escape(Path(module).name)} ", tree, flags=re.MULTILINE), module


def test_waiting_is_bounded() -> None:
    started = time.monotonic()
    with pytest.raises(AssertionError, match="waited 0 s for nothing"):
        wait_for(lambda: False, 0, "nothing")
    assert time.monotonic() - started < 5
