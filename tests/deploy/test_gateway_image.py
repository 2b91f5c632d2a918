"""The gateway's image: what it copies and installs is all that a gateway needs, and brings no package of a training."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.test_images import IMAGES, copied, normal
from tests.e2e.conftest import PROJECT, free_ports, wait_for
from tests.test_dependencies import locked

START = """
import json, sys
from importlib.abc import MetaPathFinder
from importlib.metadata import packages_distributions

files, installed, *arguments = sys.argv[1:]
distributions = packages_distributions()
normal = lambda name: name.lower().replace("_", "-").replace(".", "-")

class NotInTheImage(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        of = distributions.get(name.partition(".")[0])
        if of and not {normal(item) for item in of} & set(json.loads(installed)):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInTheImage())
sys.path[0] = files
from app import main
sys.exit(main(arguments))
"""


@pytest.fixture
def image(tmp_path: Path) -> tuple[list[str], dict[str, Any]]:
    """A command that runs `app.py` with the image's files and packages alone, and how to run it."""
    files = tmp_path / "app"
    files.mkdir()
    for source in copied(IMAGES / "gateway.Dockerfile"):
        (files / Path(source).name).symlink_to(PROJECT / source)
    installed = json.dumps([normal(name) for name in locked("requirements-gateway.lock")])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SENTIMENT_")}
    environment = inherited | {"SENTIMENT_HOME": ".", "SENTIMENT_TRITON_URL": "127.0.0.1:9"}
    environment |= {"SENTIMENT_ACCESS": "keys", "SENTIMENT_ADMIN_KEY": "a" * 48, "SENTIMENT_PORT": str(free_ports())}
    return [sys.executable, "-c", START, str(files), installed], {"cwd": tmp_path, "env": environment}


@pytest.fixture
def gateway(image: tuple[list[str], dict[str, Any]]) -> Iterator[httpx.Client]:
    command, how = image
    process = subprocess.Popen([*command, "gateway"], **how)
    address = f"http://127.0.0.1:{how['env']['SENTIMENT_PORT']}"
    with httpx.Client(base_url=address, headers={"X-API-Key": "a" * 48}, timeout=30) as client:

        def is_alive() -> bool:
            assert process.poll() is None
            try:
                return client.get("/health/live").is_success
            except httpx.TransportError:
                return False

        try:
            wait_for(is_alive, 60, "the gateway to listen")
            yield client
        finally:
            process.send_signal(signal.SIGTERM)
            ended = process.wait(60)
    assert ended == 0


def test_its_lock_is_a_part_of_the_lock_of_all_and_has_nothing_that_trains_or_runs_models() -> None:
    everything, gateways = locked("requirements.lock"), locked("requirements-gateway.lock")
    assert gateways.items() < everything.items()
    assert not {"torch", "transformers", "openvino", "nncf", "onnxruntime", "mlflow", "scipy"} & gateways.keys()


def test_a_gateway_runs_with_the_files_and_packages_of_its_image(gateway: httpx.Client) -> None:
    for path in ("/docs", "/metrics", "/models", "/events", "/feedback", "/console/sign-in"):
        assert gateway.get(path).is_success, path
    assert gateway.post("/predict/live", json={"text": "good"}).status_code == 503, "no Triton is there"


def test_a_key_is_valid_when_the_command_that_made_it_has_ended_and_not_after_its_revocation(
    gateway: httpx.Client, image: tuple[list[str], dict[str, Any]]
) -> None:
    command, how = image

    def keys(*arguments: str) -> str:
        ended = subprocess.run([*command, "keys", *arguments], **how, stdout=subprocess.PIPE, text=True, check=True)
        return str(ended.stdout)

    header = {"X-API-Key": keys("add", "me", "--scope", "read").strip()}
    assert gateway.get("/models", headers=header).is_success
    keys("revoke", "me")
    assert gateway.get("/models", headers=header).status_code == 401


def test_its_container_makes_keys_and_says_where_other_commands_run(image: tuple[list[str], dict[str, Any]]) -> None:
    command, how = image
    made = subprocess.run(
        [*command, "keys", "add", "me", "--scope", "predict"], **how, capture_output=True, text=True, check=True
    )
    assert len(made.stdout.split()) == 1
    refused = subprocess.run([*command, "train"], **how, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "which this command needs, is not installed here" in refused.stderr
    assert "run the command in the scheduler's" in refused.stderr
