"""docker-compose.yml as it is, on real containers, by the commands of docs/deploying.md.

Each test builds on the ones before. `make containers` runs them; images.py tells which images are local stand-ins.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.containers.composition import Composition
from tests.containers.images import ARGUMENTS, make_images, serve_wheels
from tests.containers.machine import Machine, why_not
from tests.e2e.conftest import copy_checkout, wait_for
from tests.lifecycle.learning import labelled, learning_settings, write_data
from tests.pages import PROJECT, block

PAGE = "docs/deploying.md"
ASKED_FOR = "CONTAINERS"
"""The variable by which `make containers` asks for these tests, which take too long for `make test-all`."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sentiment-containers"
SERVICES = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]
RUNNING = [name for name, service in SERVICES.items() if name not in ("prepare", "triton-gpu")]
LARGEST_GATEWAY = 600_000_000
"""Bytes."""

pytestmark = [
    pytest.mark.full,
    pytest.mark.alone,
    pytest.mark.skipif(ASKED_FOR not in os.environ, reason="containers are tested by `make containers`"),
    pytest.mark.skipif(ASKED_FOR in os.environ and bool(why_not()), reason=why_not()),
]


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composition]:
    """A checkout on a machine with Docker and local base images; nothing is built or started yet."""
    CACHE.mkdir(parents=True, exist_ok=True)
    checkout = tmp_path_factory.mktemp("containers") / "checkout"
    checkout.mkdir()
    copy_checkout(checkout)
    machine = Machine(CACHE, checkout)
    machine.start()
    try:
        make_images(machine, CACHE)
        yield Composition(machine, checkout)
        machine.shell("docker compose down --volumes")
    finally:
        machine.kill()


def test_the_first_start_by_the_page_builds_trains_and_answers(composed: Composition) -> None:
    """Own data, and an encoder that learns them within seconds, go where the page puts data."""
    shell = composed.machine.shell
    secrets, up, command = block(PAGE, "while read").partition("docker compose up")
    shell(secrets)
    with (composed.checkout / ".env").open("a") as file:
        file.writelines(f"{name}={value}\n" for name, value in ARGUMENTS.items())
    data = composed.checkout / "own"
    data.mkdir()
    write_data(data)
    for name in ("train", "val"):
        shutil.copy(data / f"{name}.csv", composed.checkout / f"{name}_sentiment_data.csv")
    settings = learning_settings(Path("/data")) | {"SENTIMENT_FIRST_VERSION": "full"}
    (composed.checkout / "sentiment.env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    shell("docker compose build", timeout_s=2_400)
    assert "Positive" in shell(block(PAGE, "docker compose run"), timeout_s=900)
    shell(
        "tar --create --directory=own encoder | docker compose run --rm --no-deps -T --entrypoint tar prepare "
        "--extract --directory=/data"
    )
    printed = shell(up + command + '\necho "$KEY" > key', timeout_s=1_800)
    assert '{"predictions":{"label":{"0":"Positive"}' in printed.replace(" ", "")
    composed.key = (composed.checkout / "key").read_text().strip()
    assert composed.version() == 1
    assert composed.ask("/predict/live", {"text": "good"}, "no-key")[0] == 401


def test_images_follow_their_role(composed: Composition) -> None:
    def has(image: str, *packages: str) -> list[str]:
        program = f"from importlib.util import find_spec; print(*filter(find_spec, {packages!r}))"
        return composed.machine.shell(f'docker run --rm --entrypoint python3 {image} -c "{program}"').split()

    trains = ("torch", "transformers", "openvino", "nncf", "onnxruntime", "mlflow")
    assert has("sentiment-gateway", *trains) == []
    assert has("sentiment-pipeline", *trains) == list(trains)
    assert has("sentiment-triton", *trains) == ["openvino", "onnxruntime"]
    told = composed.machine.shell("docker image inspect --format '{{index .RepoTags 0}} {{.Size}}' " + " ".join(OWN))
    sizes = {tag: int(size) for tag, size in (line.split() for line in told.splitlines())}
    print({tag: f"{size / 1e6:.0f} MB" for tag, size in sizes.items()})
    assert sizes["sentiment-gateway:latest"] < LARGEST_GATEWAY


OWN = ("sentiment-gateway", "sentiment-pipeline", "sentiment-triton")


def test_containers_are_as_closed_as_the_file_says(composed: Composition) -> None:
    for service in RUNNING:
        assert composed.is_up(service), service
        how = composed.container(service)["HostConfig"]
        assert how["ReadonlyRootfs"]
        assert how["CapDrop"] == ["ALL"]
        assert how["SecurityOpt"] == ["no-new-privileges:true"]
        assert how["Memory"] > 0
        inside = f"docker compose exec -T {service}"
        assert "Read-only" in composed.machine.shell(f"{inside} sh -c 'echo > /etc/written' 2>&1 || true")
        # A route to 0.0.0.0 is the way out.
        routes = composed.machine.shell(f"{inside} cat /proc/net/route").splitlines()[1:]
        has_way_out = any(route.split()[1] == "00000000" for route in routes)
        assert has_way_out == ("outside" in SERVICES[service]["networks"]), service
    assert composed.container("prepare")["State"]["ExitCode"] == 0


def test_prometheus_reads_every_target(composed: Composition) -> None:
    command = "docker compose exec -T prometheus wget -qO- http://127.0.0.1:9090/api/v1/targets"
    wait_for(lambda: composed.machine.shell(command).count('"health":"up"') == 2, 60, "both targets to be read")


def test_a_retraining_is_promoted_under_load_and_no_prediction_fails(composed: Composition) -> None:
    rows = [{"text": text, "label": label} for text, label in labelled(60, seed=2)]
    assert composed.ask("/feedback", {"feedback": rows})[2] == {"accepted": 60}
    assert composed.job("/check")["state"] == "succeeded"
    with composed.load() as seen:
        retraining = composed.job("/retrain")
        wait_for(lambda: composed.version() == 2, 120, f"version 2 to be deployed: {retraining}")
    assert set(seen) == {"200 by 1", "200 by 2"}, seen
    runs = composed.machine.shell("docker compose exec -T scheduler python /app/app.py models")
    assert "2" in runs


@pytest.mark.parametrize("service", ["triton", "gateway", "scheduler", "postgres"])
def test_a_killed_service_comes_back(composed: Composition, service: str) -> None:
    before = composed.container(service)["State"]
    # `docker kill` would count as stopped on purpose.
    composed.machine.shell(f"kill -KILL {before['Pid']}")
    wait_for(lambda: composed.container(service)["State"]["StartedAt"] != before["StartedAt"], 60, "its restart")
    wait_for(lambda: all(composed.is_up(name) for name in RUNNING), 180, "all services to be healthy")
    wait_for(lambda: composed.version() == 2, 60, "predictions")
    row = {"text": f"a bright screen after {service}", "label": "Positive"}
    assert composed.ask("/feedback", {"feedback": [row]})[0] == 201
    assert composed.job("/check")["state"] == "succeeded"


def test_after_a_power_cut_everything_comes_back(composed: Composition) -> None:
    composed.machine.kill()
    composed.machine.start()
    serve_wheels(composed.machine)
    wait_for(lambda: all(composed.is_up(name) for name in RUNNING), 300, "all services to be healthy")
    wait_for(lambda: composed.version() == 2, 60, "predictions")
    assert composed.job("/check")["state"] == "succeeded"


def test_a_backup_is_restored_by_the_page(composed: Composition) -> None:
    shell = composed.machine.shell
    shell(block(PAGE, "docker compose stop scheduler"))
    wait_for(lambda: composed.is_up("scheduler"), 60, "the scheduler")
    events = [event["id"] for event in composed.ask("/events")[2]]
    shell("docker compose down --volumes")
    shell(block(PAGE, "docker compose up --detach --wait postgres"), timeout_s=1_200)
    assert composed.version() == 2
    assert set(events) <= {event["id"] for event in composed.ask("/events")[2]}
    assert [model["version"] for model in composed.ask("/models")[2]] == [2, 1]
    assert composed.job("/retrain")["state"] == "succeeded"
    wait_for(lambda: composed.version() == 3, 120, "version 3, whose number MLflow gives")
