"""Probes a loaded version with the pipeline's own texts, to decide whether it fails.

Live traffic can make live calls fail, time out or take long, so live figures only raise a suspicion. The probe sends
fixed texts to Triton itself, one at a time, and counts only faults that no caller can cause. Either the model fails on
such texts or refuses them, in two probes in a row, or it responds to nobody for a minute.
Short texts overtake long ones in the engine's queue. A call that times out anyway, or finds Triton down or full, says
nothing about the version; the next probe tries again.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lifecycle.gates.behaviour import sentences
from serving.client.errors import ModelFailedError, TextRefusedError, TritonTimeoutError, TritonUnavailableError
from serving.client.triton_client import TritonClient
from serving.model_repo.protocol import MODEL_NAME

_SENTENCES = sentences()
TEXTS = [*_SENTENCES[:16], *(" ".join(_SENTENCES[start : start + 10]) for start in range(0, 40, 10))]
"""16 short texts, and 4 of about 50 words."""
CALL_TIMEOUT_S = 5.0
MOST_LATE = 2
"""Number of timeouts after which a probe ends."""
LARGEST_FAILED_SHARE = 0.02
MOST_FAILED = 3
"""Number of failed texts after which a probe ends: they decide. A dead model takes seconds to fail each of them."""
AGAIN_S = 3.0
"""Seconds between a failed probe and the next, which must fail too. A transient cause may be over by then."""
LONGEST_SILENCE_S = 60.0
"""Seconds without a response to any caller after which a loaded version counts as hanging. An engine whose queue is
full still responds to some requests."""

log = logging.getLogger(__name__)


@dataclass
class Probed:
    """Results of one probe at one Triton."""

    answered: int = 0
    failed: int = 0
    late: int = 0
    reason: str = ""
    """Why the last failed text failed."""
    answered_somebody: bool = False
    """True if any call, of the probe or of another caller, got a response during the probe."""

    @property
    def has_failed(self) -> bool:
        """True if the share of failed texts is over `LARGEST_FAILED_SHARE`; timeouts do not count."""
        return self.failed > LARGEST_FAILED_SHARE * (self.answered + self.failed)

    @property
    def says_anything(self) -> bool:
        """True if at least one text got a prediction or failed in the model."""
        return self.answered + self.failed > 0


class Probing:
    """Successive probes of one version by one process."""

    def __init__(self, version: int, model: str = MODEL_NAME, beside: str | None = None) -> None:
        """Probe `version` of Triton's `model`; skip texts that the other model `beside` fails on or refuses."""
        self.version = version
        self._model = model
        self._beside = beside
        self._failed_before = False
        self._silent_since: float | None = None
        self._answered_calls: dict[str, int] = {}
        """By address: how many responses to any caller Triton had counted at the end of the last probe."""

    @property
    def is_in_doubt(self) -> bool:
        """True if the last probe found a problem that the next must confirm."""
        return self._failed_before or self._silent_since is not None

    def confirm(self, addresses: Sequence[str]) -> str | None:
        """Probe each Triton, and once more after a first failure; return the version's fault.

        Returns an empty string if the version works. Returns None if that is unknown now: no Triton has it loaded, or
        all are full.
        """
        was_suspect = self._failed_before
        problem = self._probe(addresses)
        if self._failed_before and not was_suspect:
            time.sleep(AGAIN_S)
            problem = self._probe(addresses)
        return problem

    def _probe(self, addresses: Sequence[str]) -> str | None:
        started = time.monotonic()
        found = asyncio.run(self._ask(addresses))
        telling = [probed for probed in found if probed.says_anything]
        # If only some Tritons fail, the fault is theirs, not the version's.
        has_failed = bool(telling) and all(probed.has_failed for probed in telling)
        if telling:
            failed_before, self._failed_before = self._failed_before, has_failed
            if has_failed and failed_before:
                failed = sum(probed.failed for probed in telling)
                asked = failed + sum(probed.answered for probed in telling)
                return f"it fails on {failed} of {asked} of the pipeline's own texts: {telling[-1].reason}"
        if any(probed.answered_somebody for probed in found):
            self._silent_since = None
        elif any(probed.late for probed in found):
            self._silent_since = started if self._silent_since is None else self._silent_since
            silent_s = time.monotonic() - self._silent_since
            if silent_s > LONGEST_SILENCE_S:
                return f"it is loaded, but has responded to no client for {silent_s:.0f} s"
        return "" if telling and not has_failed else None

    async def _ask(self, addresses: Sequence[str]) -> list[Probed]:
        return await asyncio.gather(*map(self._ask_one, addresses))

    async def _ask_one(self, address: str) -> Probed:
        client = TritonClient(address, self._model)
        beside = None if self._beside is None else TritonClient(address, self._beside)
        probed = Probed()
        try:
            before = self._answered_calls.get(address, await client.answered_calls(self.version))
            for text in TEXTS:
                if beside is not None and not await _answers(beside, text):
                    continue
                try:
                    answer = await client.classify([text], CALL_TIMEOUT_S)
                except (ModelFailedError, TextRefusedError) as error:
                    probed.failed += 1
                    probed.reason = str(error)
                    if probed.failed == MOST_FAILED:
                        break
                except TritonTimeoutError:
                    probed.late += 1
                    if probed.late == MOST_LATE:
                        break
                else:
                    if answer.version != self.version:
                        return Probed()  # a switch to or from this version is in progress
                    probed.answered += 1
            # A smaller count, unless 0, means that Triton restarted and has responded since.
            self._answered_calls[address] = answered = await client.answered_calls(self.version)
            probed.answered_somebody = answered not in (0, before)
        except (TritonUnavailableError, TritonTimeoutError) as error:
            # Triton is down, full, or has not loaded the version; or the model `beside` is unavailable or timed out.
            log.debug("The probe of version %d at %s ended early: %s", self.version, address, error)
            probed.answered_somebody = probed.answered > 0
        finally:
            await client.close()
            if beside is not None:
                await beside.close()
        return probed


async def _answers(client: TritonClient, text: str) -> bool:
    """Return whether the model accepts a text. If it is down or full, or times out, its error ends the probe."""
    try:
        await client.classify([text], CALL_TIMEOUT_S)
    except (ModelFailedError, TextRefusedError):
        return False
    return True
