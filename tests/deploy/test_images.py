"""The container images, piece by piece; where an engine can be had, `tests/containers` builds and runs them."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import httpx
import psutil
import pytest
from packaging.requirements import Requirement

from deploy.images import is_answering, is_up
from serving.client.errors import ControlRefusedError
from serving.client.triton_client import TritonClient
from serving.host import triton
from serving.host.leftovers import sweep
from serving.host.open_control import OpenControl
from tests.e2e.conftest import PROJECT, wait_for
from tests.lifecycle.conftest import make_served

IMAGES = PROJECT / "deploy" / "images"
DOCKERFILES = sorted(IMAGES.glob("*.Dockerfile"))
CONTROL_KEY = "a-key-of-model-control"
NOT_IN_AN_IMAGE = ("docs/", "benchmarks/", "client/", "deploy/", "tests/")


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each instruction and its arguments, on one line."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def copied(dockerfile: Path) -> list[str]:
    """What is copied from the checkout."""
    arguments = [rest.split() for name, rest in instructions(dockerfile) if name == "COPY" and "--from" not in rest]
    return [source for words in arguments for source in words[:-1]]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    ended = subprocess.run([Path(sys.prefix) / "bin" / "hadolint", dockerfile], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_what_is_copied_is_there_and_reaches_the_engine(dockerfile: Path) -> None:
    let_through = [line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = copied(dockerfile)
    assert sources
    for source in sources:
        assert (PROJECT / source).exists(), source
        assert any(source == name or source.startswith(f"{name}/") for name in let_through), source


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_images_are_pinned_run_as_nobody_in_particular_and_hold_no_secret(dockerfile: Path) -> None:
    steps = instructions(dockerfile)
    defaults = dict(rest.split("=", 1) for name, rest in steps if name == "ARG")
    stages = {rest.split(" AS ")[1] for name, rest in steps if name == "FROM" and " AS " in rest}
    for base in (rest.split(" AS ")[0] for name, rest in steps if name == "FROM"):
        image = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], base)
        assert image in stages or re.search(r":\d+\.\d+[\w.-]*$", image), image
    names = [name for name, _ in steps]
    last = len(names) - 1 - names[::-1].index("USER")
    assert steps[last][1] == "10001:10001"
    assert not {"COPY", "RUN", "ADD"} & set(names[last:])
    assert ("HEALTHCHECK" in names) == ("EXPOSE" in names)
    told = " ".join(rest for name, rest in steps if name in ("ENV", "ARG"))
    assert not re.search(r"\w*(PASSWORD|SECRET|_KEY)\w*=", told)


def test_the_pipelines_image_has_every_module() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "gateway/console"], cwd=PROJECT, check=True, capture_output=True, text=True
    ).stdout
    sources = copied(IMAGES / "pipeline.Dockerfile")
    for module in listed.splitlines():
        if not module.startswith(NOT_IN_AN_IMAGE):
            assert any(module == source or module.startswith(f"{source}/") for source in sources), module


def test_the_build_of_the_pipelines_image_has_what_its_downloads_import(tmp_path: Path) -> None:
    (sources,) = (
        rest.split()[:-1]
        for name, rest in instructions(IMAGES / "pipeline.Dockerfile")
        if name == "COPY" and rest.startswith("common/")
    )
    for source in sources:
        (tmp_path / source).parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / source, tmp_path / source)
    subprocess.run([sys.executable, "-c", "from common import pypi_download"], cwd=tmp_path, check=True)


BACKEND = """
import sys, types
before = set(sys.modules)
sys.modules["triton_python_backend_utils"] = inside_triton = types.ModuleType("triton_python_backend_utils")
inside_triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
import onnxruntime, openvino, serving.backend.packed_onnx.model
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
"""


def test_tritons_image_has_what_the_backend_imports() -> None:
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", BACKEND], cwd=PROJECT, check=True, capture_output=True, text=True
        ).stdout.split()
    )
    ours = {file for name in loaded for file in (name, f"{name}.py") if (PROJECT / file).exists()}
    assert {"common", "serving"} <= ours <= set(copied(IMAGES / "triton.Dockerfile"))
    lines = (IMAGES / "triton-requirements.txt").read_text().splitlines()
    installed = with_what_they_need({line for line in lines if not line.startswith("#")} | {"onnxruntime"})
    distributions = packages_distributions()
    for package in loaded & distributions.keys():
        assert {normal(name) for name in distributions[package]} & installed, package


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def with_what_they_need(names: set[str]) -> set[str]:
    found: set[str] = set()
    while names:
        name = normal(names.pop())
        if name not in found:
            found.add(name)
            try:
                needed = requires(name) or []
            except PackageNotFoundError:
                continue
            parsed = map(Requirement, needed)
            names |= {item.name for item in parsed if item.marker is None or item.marker.evaluate({"extra": ""})}
    return found


@pytest.fixture
def as_in_the_image(tmp_path: Path, bert_bundle: Path) -> Iterator[tuple[int, str]]:
    """The command of Triton's image, run with the bundled Triton; gives its process and the address of its HTTP."""
    settings = make_served(tmp_path, bert_bundle, versions=1).settings
    binary, *bundled = triton.command(settings)
    steps = dict(instructions(IMAGES / "triton.Dockerfile"))
    (script,) = json.loads(steps["ENTRYPOINT"])
    command = steps["CMD"]
    port = settings.port
    given = {"--model-repository": str(settings.model_repository), "--grpc-address": "127.0.0.1"}
    given |= {"--metrics-address": "127.0.0.1", "--grpc-port": str(port + 1)}
    given |= {"--metrics-port": str(port + 2), "--http-port": str(port + 3)}
    arguments = [
        f"{name}={given.get(name, value)}" for name, _, value in (item.partition("=") for item in json.loads(command))
    ]
    arguments += [item for item in bundled if item.startswith("--backend-directory") or "shm-region" in item]
    arguments = [item.removesuffix("=") for item in arguments]
    (tmp_path / "key").write_text(f"{CONTROL_KEY}\n")
    environment = triton.environment(settings)
    environment |= {"TRITONSERVER": binary, "TRITON_KEY_FILE": str(tmp_path / "key")}
    with (tmp_path / "triton.log").open("wb") as output:
        process = subprocess.Popen(
            [IMAGES / Path(script).name, *arguments],
            env=environment,
            cwd=triton.working_directory(settings),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process.pid, f"http://127.0.0.1:{port + 3}"
    finally:
        process.terminate()
        process.wait(60)
        sweep(process.pid, triton.shared_memory_prefix(settings))


def test_the_health_check_of_http_servers_is_right_and_in_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    for image in ("gateway", "pipeline"):
        assert "deploy/images/is_up.py" in copied(IMAGES / f"{image}.Dockerfile")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/ready" else 503)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert is_up.main(f"{address}/ready")
        assert not is_up.main(f"{address}/starting")
        command = [sys.executable, str(IMAGES / "is_up.py")]
        assert [subprocess.run([*command, f"{address}/{path}"]).returncode for path in ("ready", "starting")] == [0, 1]
        server.shutdown()
    assert not is_up.main(f"{address}/ready")


def test_probes_tell_a_triton_that_starts_one_that_answers_and_one_that_is_broken(
    as_in_the_image: tuple[int, str],
) -> None:
    process, address = as_in_the_image
    assert "Triton does not answer" in is_answering.main("ready", "http://127.0.0.1:9")
    assert "Triton does not answer" in is_answering.main("alive", "http://127.0.0.1:9")
    wait_for(lambda: is_answering.main("ready", address) == "", 90, "Triton to answer")
    assert is_answering.main("alive", address) == ""
    program = [sys.executable, str(IMAGES / "is_answering.py"), "ready"]
    statuses = [subprocess.run([*program, place]).returncode for place in (address, "http://127.0.0.1:9")]
    assert statuses == [0, 1]

    server = psutil.Process(process)
    (python,) = server.children()
    os.kill(python.pid, signal.SIGKILL)
    wait_for(lambda: is_answering.main("alive", address) != "", 30, "the probe to see that Triton's Python has died")
    for question in ("alive", "ready"):
        told = is_answering.main(question, address)
        if not told.startswith("the model fails"):
            # Right only if Triton has crashed, as it may when its Python dies; the container is started again then too.
            assert told.startswith("Triton does not answer")
            wait_for(lambda: server.status() == psutil.STATUS_ZOMBIE, 20, f"Triton to have ended ({told})")


def test_in_its_image_triton_takes_model_control_with_the_key_only_and_an_open_one_is_reported(
    as_in_the_image: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    _, address = as_in_the_image
    wait_for(lambda: is_answering.main("ready", address) == "", 90, "Triton to answer")
    grpc_address = f"127.0.0.1:{int(address.rpartition(':')[2]) - 2}"
    # By HTTP it listens on the container's own loopback, and is closed all the same.
    load = httpx.post(f"{address}/v2/repository/models/other/load", json={})
    assert load.status_code == 403, load.text

    async def control(key: str) -> set[int]:
        client = TritonClient(grpc_address, control_key=key)
        try:
            await client.classify(["good"], 10)
            return await client.loaded_versions()
        finally:
            await client.close()

    assert asyncio.run(control(CONTROL_KEY)) == {1}
    for wrong in ("", "another-key-of-control"):
        with pytest.raises(ControlRefusedError, match="SENTIMENT_TRITON_KEY is missing here"):
            asyncio.run(control(wrong))
    assert asyncio.run(_seen(grpc_address)) == []
    assert f"Triton at {grpc_address}: it refuses model control: SENTIMENT_TRITON_KEY is missing here" in caplog.text


async def _seen(address: str) -> list[str]:
    """What a process without the key finds at its first look."""
    control = OpenControl(address)
    watching = asyncio.create_task(control.watch())
    await asyncio.sleep(2)
    watching.cancel()
    return control.open


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ({}, "SENTIMENT_TRITON_KEY is missing or shorter than 16 characters"),
        ({"SENTIMENT_TRITON_KEY": "short"}, "missing or shorter than 16"),
        ({"SENTIMENT_TRITON_KEY": "sixteen characters"}, "has characters other than"),
    ],
)
def test_without_a_key_tritons_image_does_not_start(key: dict[str, str], told: str) -> None:
    environment = {"PATH": os.environ["PATH"], "TRITONSERVER": "/bin/echo", **key}
    ended = subprocess.run([IMAGES / "start_triton.sh"], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert told in ended.stderr
    assert "sixteen" not in ended.stderr
