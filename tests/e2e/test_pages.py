"""The README and the pages about the running pipeline: each command is run as it stands, and does what is said."""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from common.tracing import INSTALL
from tests.client_package import python_with_client
from tests.e2e.closing_the_loop import STEPS, close_the_loop
from tests.e2e.conftest import TUTORIAL, Pipeline, free_ports, run_block, wait_for
from tests.pages import PROJECT, block, blocks, check_excerpt

pytestmark = pytest.mark.full

README = "README.md"
LOOP = "docs/loop.md"
OWN_DATA = "docs/how-to-own-data.md"
OPERATIONS = "docs/operations.md"
ROLL_BACK = "docs/how-to-roll-back.md"


def run_is_running(pipeline: Pipeline, _: str) -> None:
    log = pipeline.log.read_text()
    steps = ("Starting the pipeline", "Data check passed", "Fine-tuning all-MiniLM-L6-v2", "Published version 1")
    for step in (*steps, "Version 1 is the one to serve"):
        assert step in log


def first_call(pipeline: Pipeline, command: str) -> None:
    for text, label in (("I love this product!", "Positive"), ("This is terrible.", "Negative")):
        command = command.replace("I love this product!", text)
        head, _, body = pipeline.shell(command.replace("curl -i", "curl -si")).replace("\r", "").partition("\n\n")
        assert head.startswith("HTTP/1.1 200")
        assert "x-model-version: 1" in head
        answer = json.loads(body)
        score = answer["predictions"]["score"]["0"]
        assert answer == {"predictions": {"label": {"0": label}, "score": {"0": score}}}
        assert 0.5 < score <= 1


def classic_way(pipeline: Pipeline, commands: str) -> None:
    install, run = commands.splitlines()
    pipeline.shell(install, {"PIP_RETRIES": "0"})
    # The pipeline is running, so a second one says what is in its way, and which setting moves it.
    with pytest.raises(
        AssertionError, match=rf"127\.0\.0\.1:{pipeline.port}\): Address already in use.*SENTIMENT_PORT"
    ):
        pipeline.shell(run)


def check_data(pipeline: Pipeline, commands: str) -> None:
    assert "Data check passed: 2,000 training texts, 300 validation texts" in pipeline.shell(commands)


def step_by_step(pipeline: Pipeline, commands: str) -> None:
    train, export, serve = commands.splitlines()
    base = pipeline.checkout / "small-encoder"
    # A small encoder, because what these commands do does not depend on how good the model is.
    from tests.conftest import make_encoder

    make_encoder("bert", base)
    settings = {"SENTIMENT_BASE_MODEL": str(base), "SENTIMENT_PRECISION": "float32"}
    assert "Trained version 3" in pipeline.shell(train, settings)
    assert "Published version 3" in pipeline.shell(export, settings)
    assert (pipeline.checkout / "triton_repo/sentiment/3/bundle.json").is_file()
    assert "versions: [ 1 ]" in (pipeline.checkout / "triton_repo/sentiment/config.pbtxt").read_text()
    with pytest.raises(AssertionError, match="Address already in use"):
        pipeline.shell(serve)


def batch_and_predict(pipeline: Pipeline, commands: str) -> None:
    output = pipeline.shell(commands.replace("curl ", "curl -s "))
    assert '"label":{"0":"Positive","1":"Negative"}' in output
    assert re.search(r"Positive 0\.\d{4} \(version 1\)", output)


def tell_feedback(pipeline: Pipeline, commands: str) -> None:
    (pipeline.checkout / "more_feedback.csv").write_text('text,label\n"I want my money back.",Negative\n')
    output = pipeline.shell(commands.replace("curl ", "curl -s "))
    assert '{"accepted":1}' in output
    assert "One row of feedback was imported from more_feedback.csv" in output


def list_sources(pipeline: Pipeline, commands: str) -> None:
    printed = pipeline.shell(commands)
    assert re.search(r"^import:more_feedback.csv +1 +0\.0 +yes *$", printed, flags=re.MULTILINE), printed
    assert re.search(r"^anonymous +\d+ +0\.0 +no *$", printed, flags=re.MULTILINE), printed


def began(pipeline: Pipeline, _: str) -> None:
    """These are the fixture's first steps."""
    assert (pipeline.checkout / "whole" / "train_sentiment_data.csv").is_file()


def tutorial_runs(pipeline: Pipeline, commands: str) -> None:
    check_excerpt(TUTORIAL, commands, pipeline.log.read_text())


def tutorial_shows(pipeline: Pipeline, commands: str) -> None:
    check_excerpt(TUTORIAL, commands, pipeline.shell(commands.replace("curl ", "curl -s ")))


def tutorial_loop(pipeline: Pipeline, _: str) -> None:
    # In the slice of the data there are few reviews to learn from, so tweets help less and may cost more.
    close_the_loop(pipeline, least_gain=0.02, largest_loss=0.06, connections=3)


def done(pipeline: Pipeline, commands: str) -> None:
    """The loop above has run these, with requests that flow meanwhile."""
    assert any(step in commands for step in STEPS)
    assert (pipeline.checkout / "feedback.csv").is_file()


def tutorial_has_learnt(pipeline: Pipeline, commands: str) -> None:
    printed = pipeline.shell(commands.replace("curl ", "curl -s "))
    check_excerpt(TUTORIAL, commands, printed)
    before, after = (float(share) for share in re.findall(r"^judged\S*: (.*)% of ", printed, flags=re.MULTILINE))
    assert after > before


def look_at_the_loop(pipeline: Pipeline, commands: str) -> None:
    pipeline.shell("python app.py promote 2")
    check, retrain, models, events, rollback = commands.splitlines()
    assert re.search(r"^validation +300 +0\.\d{4}", pipeline.shell(check), flags=re.MULTILINE)
    assert "No retraining: job 2 (succeeded) trained on the same data with the same settings" in pipeline.shell(retrain)
    told = pipeline.shell(models)
    assert re.search(r"^2 +champion .* all 8 ", told, flags=re.MULTILINE)
    assert re.search(r"^1 +previous ", told, flags=re.MULTILINE)
    assert "Version 2 was promoted and replaced version 1: job 2 passed every gate." in pipeline.shell(events)
    assert "Version 1 is deployed." in pipeline.shell(rollback)


def roll_back(pipeline: Pipeline, commands: str) -> None:
    pipeline.shell("python app.py promote 2")
    models, rollback = commands.splitlines()
    assert re.search(r"^1 +previous ", pipeline.shell(models), flags=re.MULTILINE)
    assert "Version 1 is deployed." in pipeline.shell(rollback)


def roll_back_by_request(pipeline: Pipeline, commands: str) -> None:
    pipeline.shell("python app.py promote 2")
    assert json.loads(pipeline.shell(commands.replace("curl ", "curl -s "))) == {"version": 1}


def promote_another(pipeline: Pipeline, commands: str) -> None:
    assert "Version 2 is deployed." in pipeline.shell(commands)
    # Not by a promotion, after which version 1 would be found stale and taken back.
    assert "Version 1 is deployed." in pipeline.shell("python app.py rollback")


def see_why(pipeline: Pipeline, commands: str) -> None:
    assert "Rolled back from version 2 to 1: by command." in pipeline.shell(commands)


def check_by_request(pipeline: Pipeline, commands: str) -> None:
    job = json.loads(pipeline.shell(commands.replace("curl ", "curl -s ")))
    headers = {"X-API-Key": (pipeline.checkout / ".sentiment" / "admin_key").read_text()}
    while job["state"] in ("queued", "running"):  # the request waits for half a minute
        time.sleep(1)
        job = httpx.get(f"{pipeline.url}/jobs/{job['id']}", headers=headers, timeout=60).json()
    assert job["state"] == "succeeded"
    assert job["result"]["version"] == 1


def mlflow_ui(pipeline: Pipeline, commands: str) -> None:
    port = str(free_ports(1))
    process = subprocess.Popen(
        [Path(sys.prefix) / "bin" / commands.split()[0], *commands.split()[1:]],
        cwd=pipeline.checkout,
        # Its own default port, 5000, may be in use.
        env=pipeline.environment | {"PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}", "MLFLOW_PORT": port},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        def answers() -> bool:
            assert process.poll() is None, "mlflow ui ended"
            try:
                return httpx.get(f"http://127.0.0.1:{port}/health").is_success
            except httpx.TransportError:
                return False

        wait_for(answers, 180, "mlflow ui to answer")
    finally:
        process.terminate()
        process.wait(60)


def clean(pipeline: Pipeline, commands: str) -> None:
    scratch = pipeline.checkout / "scratch"
    scratch.mkdir(exist_ok=True)
    for name in ("model", "triton_repo", ".sentiment"):
        (scratch / name / "sentiment").mkdir(parents=True)
    (scratch / "triton_repo" / "README.md").touch()
    (scratch / "train_sentiment_data.csv").touch()
    (scratch / "Makefile").write_bytes((pipeline.checkout / "Makefile").read_bytes())
    subprocess.run(commands.split(), cwd=scratch, env=pipeline.environment, check=True, capture_output=True)
    left = sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*"))
    assert left == ["Makefile", "train_sentiment_data.csv", "triton_repo", "triton_repo/README.md"]


def begin_anew(pipeline: Pipeline, commands: str) -> None:
    """What the tutorial made is gone, and the whole sample data are in their place."""
    scratch = pipeline.checkout / "tutorial-scratch"
    (scratch / "whole").mkdir(parents=True)
    for path in (pipeline.checkout / "whole").iterdir():
        (scratch / "whole" / path.name).write_text("whole", encoding="utf-8")
    for path in pipeline.checkout.iterdir():
        if path.suffix == ".csv" or path.name == ".env":
            (scratch / path.name).touch()
    (scratch / ".sentiment").mkdir()
    (scratch / "Makefile").write_bytes((pipeline.checkout / "Makefile").read_bytes())
    run_block(commands, scratch, pipeline.environment)
    left = sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*"))
    assert left == ["Makefile", "train_sentiment_data.csv", "val_sentiment_data.csv"]
    assert {(scratch / name).read_text(encoding="utf-8") for name in left[1:]} == {"whole"}


def same_as_deploying(_: Pipeline, commands: str) -> None:
    """tests/deploy/test_docs.py runs them there."""
    assert commands in blocks("docs/deploying.md")


def what_contributors_run(pipeline: Pipeline, commands: str) -> None:
    assert commands == "make test"
    for target in ("test", "test-all"):
        assert f"\n{target}: check\n" in (pipeline.checkout / "Makefile").read_text()
    assert (pipeline.checkout / ".ci" / "run").read_text().splitlines()[-1] == "make test-all"


def what_traces_need(_: Pipeline, commands: str) -> None:
    """tests/test_dependencies.py resolves it."""
    assert commands == 'pip install ".[tracing]"'
    (needed,) = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["tracing"]
    assert INSTALL.split()[-1] == needed.partition(">=")[0]


CHECKS: list[tuple[str, str, Callable[[Pipeline, str], None]]] = [
    (TUTORIAL, "make install", began),
    (TUTORIAL, "make run", tutorial_runs),
    (TUTORIAL, "curl localhost:8000/predict/live", tutorial_shows),
    (TUTORIAL, "python - <<'END'\nimport csv\n\nfrom trainer", tutorial_loop),
    (TUTORIAL, "python - <<'END'\nimport csv\nimport random", done),
    (TUTORIAL, "python app.py check", done),
    (TUTORIAL, "python app.py models", tutorial_has_learnt),
    (TUTORIAL, "python app.py rollback", tutorial_shows),
    (TUTORIAL, "make clean", begin_anew),
    (README, "make run", run_is_running),
    (README, "curl -i", first_call),
    (README, "pip install", classic_way),
    (README, "while read", same_as_deploying),
    (README, "curl localhost:8000/predict/batch", batch_and_predict),
    (README, "make test", what_contributors_run),
    (LOOP, "python app.py check", look_at_the_loop),
    (LOOP, "curl -X POST localhost:8000/check", check_by_request),
    (ROLL_BACK, "python app.py models", roll_back),
    (ROLL_BACK, "curl -X POST localhost:8000/models/rollback", roll_back_by_request),
    (ROLL_BACK, "python app.py promote 2", promote_another),
    (ROLL_BACK, "python app.py check", see_why),
    # After all checks, of which one would have these rows learnt from.
    (LOOP, "curl localhost:8000/feedback", tell_feedback),
    (LOOP, "python app.py feedback sources", list_sources),
    (OWN_DATA, "python app.py data", check_data),
    (OWN_DATA, "python app.py train", step_by_step),
    (OPERATIONS, "pip install", what_traces_need),
    (OPERATIONS, "mlflow ui", mlflow_ui),
    (OPERATIONS, "make clean", clean),
]
"""By page and the beginning of a block, in an order in which each finds what it needs; all leave version 1 serving."""


@pytest.mark.parametrize("page", [TUTORIAL, README, LOOP, ROLL_BACK, OWN_DATA, OPERATIONS])
def test_each_block_of_commands_has_a_check(page: str) -> None:
    checked = [block(page, beginning) for of, beginning, _ in CHECKS if of == page]
    assert sorted(checked) == sorted(blocks(page))


@pytest.mark.parametrize(
    ("page", "beginning", "check"),
    CHECKS,
    ids=[f"{Path(page).stem}: {beginning.splitlines()[-1]}" for page, beginning, _ in CHECKS],
)
def test_commands(pipeline: Pipeline, page: str, beginning: str, check: Callable[[Pipeline, str], None]) -> None:
    check(pipeline, block(page, beginning))


def test_python_example(pipeline: Pipeline, tmp_path: Path) -> None:
    (example,) = blocks(README, "python")
    completed = subprocess.run(
        [python_with_client(tmp_path), "-c", example.replace("127.0.0.1:8001", f"127.0.0.1:{pipeline.port + 1}")],
        cwd=tmp_path / "environment",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert completed.returncode == 0, completed.stderr
    assert re.fullmatch(r"\['Positive', 'Negative'\] \[0\.\d+, 0\.\d+\] 1", completed.stdout.strip())


def test_waiting_is_bounded() -> None:
    started = time.monotonic()
    with pytest.raises(AssertionError, match="waited 0 s for nothing"):
        wait_for(lambda: False, 0, "nothing")
    assert time.monotonic() - started < 5
