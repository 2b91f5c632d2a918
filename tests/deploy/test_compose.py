"""docker-compose.yml: valid by its published schema, closed to the outside, and of commands and settings that exist."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from sqlalchemy import make_url

from app import OWN_COMMANDS
from command_line import make_parser
from common.settings import ENV_PREFIX, Settings
from tests.e2e.conftest import PROJECT, free_ports, wait_for
from tests.storage.conftest import postgres_server, postgres_url
from trainer.tracking import Tracking

__all__ = ["postgres_server", "postgres_url"]

FILE = PROJECT / "docker-compose.yml"
OPERATOR = PROJECT / "deploy" / "compose.operator.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OWN_IMAGES = ("sentiment-gateway", "sentiment-pipeline")
RUN_COMMANDS = [
    name for name, service in SERVICES.items() if service["image"] in OWN_IMAGES and "entrypoint" not in service
]


def test_both_files_are_valid_by_the_published_schema() -> None:
    program = Path(sys.prefix) / "bin" / "check-jsonschema"
    ended = subprocess.run(
        [program, "--builtin-schema", "vendor.compose-spec", FILE, OPERATOR], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout


def test_only_the_gateway_is_published_and_on_loopback_unless_told() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["gateway"]
    assert SERVICES["gateway"]["ports"] == ["${GATEWAY_ADDRESS:-127.0.0.1:8000}:8000"]
    assert COMPOSE["networks"]["inside"]["internal"] is True
    outside = {name for name, service in SERVICES.items() if "outside" in service["networks"]}
    assert outside == {"gateway", "prepare", "scheduler"}
    for service in yaml.safe_load(OPERATOR.read_text())["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_bounded_hardened_looked_after_and_started_again(name: str) -> None:
    service = SERVICES[name]
    assert service["deploy"]["resources"]["limits"]["memory"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    # `docker compose up --wait` would wait for ever for one that fails without end.
    assert service["restart"] == ("on-failure:3" if name == "prepare" else "unless-stopped")
    assert ":latest" not in service["image"]
    assert "build" in service or re.search(r":v?\d+\.\d+", service["image"])
    if "build" in service:
        assert (PROJECT / service["build"]["dockerfile"]).is_file()
    in_image = ("gateway", "triton", "triton-gpu")
    without = ("prepare", "scheduler")  # both end where they do not work
    assert ("healthcheck" in service) == (name not in in_image + without)
    # `docker compose up --wait` fails for a service whose check is disabled.
    assert "disable" not in service.get("healthcheck", {})


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_names_is_there(name: str) -> None:
    service = SERVICES[name]
    for other, how in service.get("depends_on", {}).items():
        assert other in SERVICES
        if how["condition"] == "service_healthy":
            assert other not in ("prepare", "scheduler")
        # One of a profile that is not asked for is not there.
        assert how.get("required", True) == ("profiles" not in SERVICES[other])
    assert set(service["networks"]) <= COMPOSE["networks"].keys()
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert (PROJECT / source).exists() if source.startswith("./") else source in COMPOSE["volumes"], volume


@pytest.mark.parametrize("name", RUN_COMMANDS)
def test_commands_and_settings_are_those_of_the_pipeline(name: str) -> None:
    service = SERVICES[name]
    assert make_parser(OWN_COMMANDS).parse_args(service["command"]).command
    given = {
        key.removeprefix(ENV_PREFIX).lower(): re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value)
        for key, value in service["environment"].items()
    }
    assert given.keys() <= Settings.model_fields.keys()
    assert Settings.model_validate(given | {"admin_key": "a" * 48, "triton_key": "a" * 48}).triton_url


def test_triton_and_those_who_control_it_have_the_same_key() -> None:
    key = "${SENTIMENT_TRITON_KEY:?set it in .env}"
    for name in ("triton", "triton-gpu", *RUN_COMMANDS):
        assert SERVICES[name]["environment"]["SENTIMENT_TRITON_KEY"] == key
    for name in ("triton", "triton-gpu"):
        assert not {"entrypoint", "command"} & SERVICES[name].keys(), "the image's own command wants the key"
    # The gates try a version with what Triton serves it with.
    for setting in ("SENTIMENT_RUNTIME", "SENTIMENT_PRECISION"):
        names = ("triton", "triton-gpu", *RUN_COMMANDS)
        assert {SERVICES[name]["environment"][setting] for name in names} == {f"${{{setting}:-auto}}"}


def test_prometheus_gets_its_key_in_a_file_that_it_alone_can_read(tmp_path: Path) -> None:
    """Of a secret from the environment Compose makes no file in a service whose files are read-only, and ends."""
    assert not any("secrets" in service for service in SERVICES.values())
    shell, option, script, name = SERVICES["prometheus"]["entrypoint"]
    credentials = yaml.safe_load((PROJECT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (file,) = [
        job["authorization"]["credentials_file"] for job in credentials["scrape_configs"] if "authorization" in job
    ]
    assert f"> {file};" in script
    assert Path(file).parent == Path(SERVICES["prometheus"]["tmpfs"][0])
    program = tmp_path / "prometheus"
    program.write_text('#!/bin/sh\necho "${GATEWAY_KEY:-no key}" "$@"\n')
    program.chmod(0o755)
    here = script.replace("$$", "$").replace(file, str(tmp_path / "key"))
    ended = subprocess.run(
        [shell, option, here, name, *SERVICES["prometheus"]["command"]],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "GATEWAY_KEY": "the-key"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert ended.stdout.split() == ["no", "key", *SERVICES["prometheus"]["command"]]
    assert (tmp_path / "key").read_text() == "the-key"
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_what_must_be_filled_in_stands_in_the_example() -> None:
    example = (PROJECT / "deploy" / "compose.env.example").read_text()
    offered = dict(re.findall(r"^(\w+)=(.*)$", example, flags=re.MULTILINE))
    text = FILE.read_text()
    needed = set(re.findall(r"\$\{(\w+):\?", text))
    assert needed == {name for name, value in offered.items() if not value}
    on_the_page = (PROJECT / "docs" / "deploying.md").read_text()
    assert {
        name for name in re.findall(r"\$\{(\w+):-", text) if name not in offered and name not in on_the_page
    } == set()
    assert offered["COMPOSE_PROFILES"] in {
        profile for item in SERVICES.values() for profile in item.get("profiles", [])
    }
    # Read by a `python app.py` beside it too, which refuses names that look like settings and are none.
    assert all(
        name[len(ENV_PREFIX) :].lower() in Settings.model_fields for name in offered if name.startswith(ENV_PREFIX)
    )


@pytest.fixture
def mlflow(tmp_path: Path, postgres_url: str) -> Iterator[str]:
    """MLflow as compose runs it, on a database that its script made; gives its address."""
    url = make_url(postgres_url)
    script = (PROJECT / "deploy" / "postgres" / "mlflow.sql").read_text().replace("mlflow", f"mlflow_{url.database}")
    with psycopg.connect(url.set(drivername="postgresql").render_as_string(False), autocommit=True) as connection:
        connection.execute(script.partition("\n")[2].encode())
    port = free_ports()
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["MLFLOW_BACKEND_STORE_URI"] = url.set(database=f"mlflow_{url.database}").render_as_string(False)
    assert environment.keys() - {"PATH"} == SERVICES["mlflow"]["environment"].keys()
    given = {"--host": "127.0.0.1", "--port": str(port), "--artifacts-destination": str(tmp_path)}
    given["--workers"] = "1"
    command = [str(Path(sys.prefix) / "bin" / "mlflow")]
    for argument in SERVICES["mlflow"]["command"]:
        name, equals, value = argument.partition("=")
        command.append(f"{name}{equals}{given.get(name, value)}".replace(":5000", f":{port}"))
    with (tmp_path / "mlflow.log").open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=tmp_path)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "mlflow.log").read_text()
        try:
            return httpx.get(f"{address}/health").is_success
        except httpx.TransportError:
            return False

    try:
        wait_for(answers, 90, "MLflow to answer")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def test_mlflow_keeps_its_runs_in_postgresql_and_answers_to_its_own_names_only(mlflow: str, tmp_path: Path) -> None:
    tracking = Tracking(Settings(mlflow_tracking_uri=mlflow, state_dir=tmp_path / "state"))
    client = tracking._client
    run = client.create_run(tracking._experiment_id)
    client.log_text(run.info.run_id, "kept", "note.txt")
    assert [path.read_text() for path in tmp_path.rglob("note.txt")] == ["kept"]
    listing = f"{mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name=sentiment"
    port = mlflow.rpartition(":")[2]
    assert httpx.get(listing, headers={"Host": f"mlflow:{port}"}).is_success
    assert httpx.get(listing, headers={"Host": f"elsewhere.example:{port}"}).status_code == 403
