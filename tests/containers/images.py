"""Local images for a machine that reaches no registry of images: bases for the project's own, stand-ins for others.

`PYTHON_IMAGE` and `TRITON_IMAGE` are build arguments of the project's images. The stand-ins have the tags that
docker-compose.yml names.
"""

import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import yaml

from common.pypi_download import TRITON
from tests.containers.machine import Machine, debootstrap
from tests.pages import PROJECT
from tests.test_dependencies import locked

PYTHON_IMAGE, TRITON_IMAGE = "python-on-debian", "triton-bundled"
ARGUMENTS = {"PYTHON_IMAGE": PYTHON_IMAGE, "TRITON_IMAGE": TRITON_IMAGE, "TRITON_NUMPY": "numpy==1.26.4"}
"""What .env gets for the builds: Debian's Python 3.11, and the bundled Triton, whose Python backend needs NumPy 1."""
STAND_INS = ("postgres", "prometheus", "grafana")
"""Services whose images hold Debian's PostgreSQL 15 and Prometheus 2.42. Grafana's only passes its health check."""
IMAGES = Path(__file__).with_name("images")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_WHEELS = "http://172.17.0.1/"
"""Where builds find wheels: a server on the machine, at the address that Docker's own network gives it."""
_PACKAGES = "ca-certificates,libpython3.11,python-is-python3,python3,python3-pip,python3-venv"
_PIP = f"""[global]
cert = /etc/ssl/certs/ca-certificates.crt
find-links = {_WHEELS}
trusted-host = 172.17.0.1
"""


def make_images(machine: Machine, cache: Path) -> None:
    """Make the bases and the stand-ins, each once, and serve the wheels for later builds."""
    serve_wheels(machine)
    if not machine.has_image(PYTHON_IMAGE):
        tree = cache / "python"
        debootstrap("bookworm", _PACKAGES, tree)
        (tree / "etc" / "pip.conf").write_text(_PIP, encoding="ascii")
        # A registry may be reached through a proxy with a certificate of its own, which this machine knows.
        certificates = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
        shutil.copy(certificates, tree / "etc" / "ssl" / "certs" / "ca-certificates.crt")
        archive = subprocess.run(["tar", "--create", f"--directory={tree}", "."], check=True, capture_output=True)
        machine.shell(f"docker import --change 'CMD [\"python3\"]' - {PYTHON_IMAGE}", given=archive.stdout)
    services = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]
    tags = {name: services[name]["image"] for name in STAND_INS} | {"triton": TRITON_IMAGE}
    for stage, tag in tags.items():
        arguments = f"--build-arg BASE={PYTHON_IMAGE} --build-arg BUNDLED={TRITON.requirement}"
        machine.shell(f"docker build --target {stage} {arguments} --tag {tag} {IMAGES.relative_to(PROJECT)}")


def serve_wheels(machine: Machine) -> None:
    """Have builds find the CPU build of torch, which is in an index of its own, by this machine's settings of pip."""
    version = locked("requirements.lock")["torch"]
    if not list(machine.wheels.glob(f"torch-{version}*")):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(machine.wheels)]
        command += ["--python-version=3.11", "--only-binary=:all:", "--extra-index-url", CPU_INDEX]
        subprocess.run([*command, f"torch=={version}"], check=True, timeout=1_200)
    machine.shell("nohup python3 -m http.server --bind 172.17.0.1 --directory /srv 80 > /dev/null 2>&1 &")
