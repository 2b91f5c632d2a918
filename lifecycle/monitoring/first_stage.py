"""What the bundled Triton says about the first stage of a version: the texts that it decided, and its audit."""

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from common.errors import PipelineError
from common.settings import Settings
from common.triton_addresses import socket_address
from serving.client import sockets
from serving.host import triton

TIMEOUT_S = 5.0
_PREFIX = "sentiment_engine_"


@dataclass(frozen=True)
class FirstStage:
    """The counters of a version with two stages since it was loaded."""

    is_on: bool
    """False if the full model decides all texts, because the audit found that labels differ too often."""
    texts: int
    decided: int
    """Number of the texts that the first stage decided."""
    audited: int
    differing: int
    """Number of the audited texts that got another label than by the full model."""

    def __str__(self) -> str:
        """How it stands, in a part of a sentence."""
        audit = f"{self.differing:,} of {self.audited:,} audited texts got another label"
        if not self.is_on:
            reason = f"it changed too many labels ({audit})"
            return f"its first stage is off, because {reason}, so predictions cost more time"
        if not self.texts:
            return "its first stage has decided no text yet"
        return f"its first stage decided {self.decided / self.texts:.0%} of the texts ({audit})"


def first_stage(settings: Settings, version: int) -> FirstStage | None:
    """Return the counters; None if the version has one stage, or its Triton is another's or does not respond."""
    if settings.triton_url is not None:
        return None
    socket = triton.metrics_socket(settings)
    try:
        if not sockets.is_listening(socket_address(socket)):
            return None
        transport = httpx.HTTPTransport(uds=sockets.private_path(socket))
        with httpx.Client(transport=transport, trust_env=False, timeout=TIMEOUT_S) as client:
            text = client.get("http://triton/metrics").raise_for_status().text
    except (httpx.HTTPError, PipelineError):
        return None
    found = {
        sample.name.removeprefix(_PREFIX): int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(_PREFIX) and sample.labels.get("version") == str(version)
    }
    if not found.get("two_stages"):
        return None
    return FirstStage(
        is_on=bool(found["first_stage_on"]),
        texts=found["texts_total"],
        decided=found["first_stage_texts_total"],
        audited=found["audited_texts_total"],
        differing=found["audit_differing_total"],
    )
