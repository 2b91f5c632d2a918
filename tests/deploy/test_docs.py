"""The pages on deploying: what their commands name is there, and their arithmetic is right."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from app import OWN_COMMANDS
from command_line import make_parser
from common.settings import Settings
from tests.pages import PAGES, PROJECT, block, blocks

PAGE = "docs/deploying.md"
LINES = [line for code in blocks(PAGE) for line in code.splitlines()]
COMMANDS = [shlex.split(re.sub(r"^KEY=\$\((.*)\)$", r"\1", line)) for line in LINES]
SERVICES = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]
KEY = "a-new-key"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_what_a_command_names_is_there(command: list[str]) -> None:
    for word in command:
        if re.match(r"(deploy|docs)/|docker-compose\.yml$", word):
            assert (PROJECT / word).exists(), word
    if "/app/app.py" in command:
        at = command.index("/app/app.py")
        assert command[at - 1] == "python"
        assert make_parser(OWN_COMMANDS).parse_args(command[at + 1 :]).command
    if command[:2] == ["docker", "compose"] and {"exec", "run", "start", "stop"} & set(command):
        assert SERVICES.keys() & set(command)
    if "--scale" in command:
        assert command[command.index("--scale") + 1].partition("=")[0] in SERVICES
    if "secret" in command and "metrics" in command:
        text = (PROJECT / "deploy" / "kubernetes" / "monitoring" / "service-monitors.yaml").read_text()
        needed = set(re.findall(r"credentials: \{ name: metrics, key: ([\w-]+)", text))
        assert {word.split("=")[1] for word in command if word.startswith("--from-literal")} == needed
    elif "secret" in command:
        text = (PROJECT / "deploy" / "kubernetes" / "base" / "gateway.yaml").read_text()
        text += (PROJECT / "deploy" / "kubernetes" / "base" / "mlflow.yaml").read_text()
        needed = set(re.findall(r"secretKeyRef: \{ name: sentiment, key: ([\w-]+)", text))
        assert {word.split("=")[1] for word in command if word.startswith("--from-literal")} == needed


def shell(commands: str, directory: Path) -> None:
    """Run commands in a shell that knows no variables, with a `docker` and a `curl` that only note what they get."""
    programs = directory / "programs"
    programs.mkdir(exist_ok=True)
    # As the real one, it reads its standard input to the end.
    docker = f'echo "$*" >> docker-calls; case "$*" in *" tee "*) cat > copied;; *" keys add "*) echo {KEY};; esac'
    for name, script in (("docker", docker), ("curl", 'printf "%s\\n" "$@" > curl-arguments')):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=directory, env=environment, check=True)


def test_commands_of_compose_in_a_fresh_shell_make_secrets_and_send_keys(tmp_path: Path) -> None:
    first = block(PAGE, "while read")
    assert first == block("README.md", "while read")
    (tmp_path / "deploy").mkdir()
    example = shutil.copy(PROJECT / "deploy" / "compose.env.example", tmp_path / "deploy")
    shell(first, tmp_path)
    made = (tmp_path / ".env").read_text(encoding="utf-8").splitlines()
    secrets = {}
    for line, offered in zip(made, Path(example).read_text(encoding="utf-8").splitlines(), strict=True):
        name, equals, secret = line.partition("=")
        if equals and offered == name + equals:
            assert re.fullmatch("[0-9a-f]{48}", secret), line
            secrets[name] = secret
        else:
            assert line == offered
    assert len(set(secrets.values())) == len(secrets) == 4
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    started, added = (tmp_path / "docker-calls").read_text(encoding="utf-8").splitlines()
    assert started == "compose up --build --detach --wait"
    assert added.startswith("compose exec -T gateway python /app/app.py keys add ")
    assert f"X-API-Key: {KEY}" in (tmp_path / "curl-arguments").read_text(encoding="utf-8").splitlines()

    shell(block(PAGE, "curl -X POST"), tmp_path)
    sent = (tmp_path / "curl-arguments").read_text(encoding="utf-8").splitlines()
    assert f"X-API-Key: {secrets['SENTIMENT_ADMIN_KEY']}" in sent


def test_own_data_go_to_where_the_pipeline_in_its_container_reads_them(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / f"{name}_sentiment_data.csv").write_text(f"text,label\n{name},Positive\n", encoding="utf-8")
    shell(block(PAGE, "docker compose run"), tmp_path)
    image = (PROJECT / "deploy" / "images" / "pipeline.Dockerfile").read_text(encoding="utf-8")
    (home,) = re.findall(r"SENTIMENT_HOME=(\S+)", image)
    train, val, check = (tmp_path / "docker-calls").read_text(encoding="utf-8").splitlines()
    for call, name in ((train, "train"), (val, "val")):
        assert call.endswith(f" --entrypoint tee prepare {home}/{Settings.model_fields[f'{name}_data'].default}")
    assert (tmp_path / "copied").read_text(encoding="utf-8") == "text,label\nval,Positive\n"
    assert check.endswith(" prepare data")
    assert f"data:{home}" in SERVICES["prepare"]["volumes"]


def test_costs_are_as_the_formula_says() -> None:
    rates = {
        "2 cores of Zen 4": (0.10, 167, 0.28),
        "2 cores with AMX": (0.10, 417, 0.11),
        "one L4": (0.75, 3_900, 0.09),
    }
    for name, (price, rate, told) in rates.items():
        assert price * 1e6 / (3_600 * rate * 0.6) == pytest.approx(told, rel=0.05)
        assert re.search(rf"^\| {name}.*\| \${told:.2f}", PAGES["docs/scaling.md"], flags=re.MULTILINE)
    assert "the engine alone reached 167 texts/s" in PAGES["README.md"]
    assert "cached texts 9,390" in PAGES["README.md"]


def test_the_image_for_a_gpu_has_the_runtime_of_the_install() -> None:
    assert blocks("docs/how-to-gpu.md")[0] == "make install GPU=1"  # tests/test_dependencies.py looks at what it does
    locked = (PROJECT / "requirements-gpu.lock").read_text().splitlines()
    (runtime,) = (line for line in locked if line.startswith("onnxruntime-gpu=="))
    assert runtime in PAGES["docs/deploying.md"]
    assert runtime in (PROJECT / "docker-compose.yml").read_text()


def test_the_page_on_newer_tritons_names_the_image_and_what_is_there() -> None:
    build, checks = blocks("docs/moving-to-a-newer-triton.md")
    image = (PROJECT / "deploy/images/triton.Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^ARG (TRITON_IMAGE=\S+)", image, flags=re.MULTILINE) == [
        word for word in shlex.split(build) if word.startswith("TRITON_IMAGE=")
    ]
    tests, strangers = map(shlex.split, checks.splitlines())
    assert all((PROJECT / word).exists() for word in tests[2:])
    assert f"\n{strangers[1]}:" in (PROJECT / "Makefile").read_text(encoding="utf-8")
