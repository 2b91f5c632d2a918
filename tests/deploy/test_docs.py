"""The pages on deploying: what their commands name is there, and their arithmetic is right."""

import re
import shlex

import pytest
import yaml

from app import _parser
from tests.pages import PAGES, PROJECT, blocks

COMMANDS = [shlex.split(line) for code in blocks("docs/deploying.md") for line in code.splitlines()]
SERVICES = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_what_a_command_names_is_there(command: list[str]) -> None:
    for word in command:
        if re.match(r"(deploy|docs)/|docker-compose\.yml$", word):
            assert (PROJECT / word).exists(), word
    if command[:2] == ["docker", "compose"] and "exec" in command:
        service, *inside = command[command.index("exec") + 1 :]
        assert service in SERVICES
        assert inside[:2] == ["python", "/app/app.py"]
        assert _parser().parse_args(inside[2:]).command
    if command[:3] == ["docker", "compose", "run"]:
        assert "prepare" in command
    if "--scale" in command:
        assert command[command.index("--scale") + 1].partition("=")[0] in SERVICES
    if "secret" in command:
        text = (PROJECT / "deploy" / "kubernetes" / "base" / "gateway.yaml").read_text()
        text += (PROJECT / "deploy" / "kubernetes" / "base" / "mlflow.yaml").read_text()
        needed = set(re.findall(r"secretKeyRef: \{ name: sentiment, key: ([\w-]+)", text))
        assert {word.split("=")[1] for word in command if word.startswith("--from-literal")} == needed


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


def test_packages_for_a_gpu_are_those_of_the_install_and_of_the_image() -> None:
    torch, uninstalled, runtime = map(shlex.split, blocks("docs/how-to-gpu.md")[0].splitlines())
    locked = (PROJECT / "requirements.lock").read_text().splitlines()
    assert torch[2] in locked
    assert any(line.startswith(f"{uninstalled[-1]}==") for line in locked)
    compose = (PROJECT / "docker-compose.yml").read_text()
    assert runtime[-1] in PAGES["docs/deploying.md"]
    assert runtime[-1] in compose


def test_the_page_on_newer_tritons_names_the_image_and_what_is_there() -> None:
    build, checks = blocks("docs/moving-to-a-newer-triton.md")
    image = (PROJECT / "deploy/images/triton.Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^ARG (TRITON=\S+)", image, flags=re.MULTILINE) == [
        word for word in shlex.split(build) if word.startswith("TRITON=")
    ]
    tests, strangers = map(shlex.split, checks.splitlines())
    assert all((PROJECT / word).exists() for word in tests[2:])
    assert f"\n{strangers[1]}:" in (PROJECT / "Makefile").read_text(encoding="utf-8")
