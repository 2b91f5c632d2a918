"""What docker-compose.yml starts on the machine, as its users see it: commands, HTTP, and the state of containers."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.containers.machine import Machine
from tests.e2e.conftest import wait_for
from tests.pages import PROJECT

ADDRESS = "http://127.0.0.1:8000"


@dataclass
class Composition:
    """A checkout with `.env` on a machine with Docker."""

    machine: Machine
    checkout: Path
    key: str = ""
    """An API key of the scope `predict`."""

    @property
    def admin_key(self) -> str:
        (key,) = re.findall(r"^SENTIMENT_ADMIN_KEY=(.*)$", (self.checkout / ".env").read_text(), flags=re.MULTILINE)
        return str(key)

    def ask(self, path: str, body: object = None, key: str = "") -> tuple[int, dict[str, str], Any]:
        """Send a GET, or a POST with `body`, with the admin key or another; return status, headers and JSON body.

        The status is 0 if nothing listens.
        """
        command = f"curl --silent --include --max-time 90 -H 'X-API-Key: {key or self.admin_key}' {ADDRESS}{path}"
        if body is not None:
            command += " -H 'Content-Type: application/json' --data @-"
        answer = self.machine.shell(f"{command} || true", given=json.dumps(body).encode()).replace("\r", "")
        head, _, content = answer.partition("\n\n")
        if not head:
            return 0, {}, None
        status, *lines = head.splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(status.split()[1]), headers, json.loads(content)

    def version(self) -> int:
        """Return the version that classifies a new text, or 0 if the prediction fails."""
        status, headers, _ = self.ask("/predict/live", {"text": f"a bright screen {time.monotonic_ns()}"}, self.key)
        return int(headers["x-model-version"]) if status == 200 else 0

    def job(self, path: str) -> dict[str, Any]:
        """Request a check or a retraining, and return the job when it has ended."""
        status, _, job = self.ask(path, {})
        assert status in (200, 202), job
        found: list[dict[str, Any]] = [job]

        def ended() -> bool:
            found[0] = self.ask(f"/jobs/{job['id']}")[2]
            return found[0]["ended_at"] is not None

        wait_for(ended, 900, f"job {job['id']} to end")
        return found[0]

    def container(self, service: str) -> dict[str, Any]:
        """Return what Docker tells about the container of a service."""
        name = self.machine.shell(f"docker compose ps --all --quiet {service}").strip()
        (told,) = json.loads(self.machine.shell(f"docker inspect {name}"))
        return dict(told)

    def is_up(self, service: str) -> bool:
        state = self.container(service)["State"]
        return bool(state["Running"]) and state.get("Health", {}).get("Status", "healthy") == "healthy"

    @contextmanager
    def load(self) -> Iterator[dict[str, int]]:
        """Have callers ask for predictions; afterwards the result has the number of responses by status and version."""
        seen: dict[str, int] = {}
        command = self.machine.in_its_network(sys.executable, "-m", "tests.containers.load", ADDRESS, self.key)
        process = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            yield seen
        finally:
            printed, _ = process.communicate(timeout=120)
        seen.update(json.loads(printed))
