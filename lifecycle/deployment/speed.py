"""Compares the speed of two versions without live traffic.

Live response times depend on what else callers send, and on how full each version's engine is. So both versions are
timed as in the gate `budget`: in turns, each in its own Triton without other traffic. If the gate has measured the same
two versions, its figures are reused.
"""

import logging
import shutil
from contextlib import ExitStack

from common.errors import PipelineError
from common.settings import Settings
from lifecycle.deployment.probe import TEXTS
from lifecycle.gates.trial import base_model_change, trial, within_budget
from serving.model_repo.repository import ModelRepository
from storage import versions
from storage.database import Database
from storage.tables import Figures

log = logging.getLogger(__name__)


def why_slower(settings: Settings, database: Database, version: int, reference: int, largest: float) -> str | None:
    """Return how much longer than `reference` the version takes, in words, if the ratio is over `largest`.

    Returns an empty string if it is not, or is within the noise, and None if it cannot be measured here. If the base
    model has changed, no ratio is too large: what another encoder costs is what was asked for.
    """
    if base_model_change(ModelRepository(settings.model_repository), reference, version):
        return ""
    figures = _measured_by_gate(database, version, reference) or _measure(settings, version, reference)
    if figures is None:
        return None
    found = [
        f"{item['candidate']:.1f} {name}, {item['ratio']:.1f} times as long as version {reference}"
        for name, item in figures.items()
        if name.startswith("ms ") and item["ratio"] > largest and item["candidate"] - item["champion"] > item["slack"]
    ]
    return f"measured without live traffic, it takes {' and '.join(found)}" if found else ""


def _measured_by_gate(database: Database, version: int, reference: int) -> Figures | None:
    with database.reading() as session:
        verdicts = {verdict.gate: verdict.figures for verdict in versions.verdicts_of(session, version)}
    is_of_both = verdicts.get("trial", {}).get("champion") == reference
    return verdicts.get("budget") if is_of_both else None


def _measure(settings: Settings, version: int, reference: int) -> Figures | None:
    if settings.triton_url is not None:
        log.warning(
            "Cannot time versions %d and %d without live traffic: SENTIMENT_TRITON_URL is set.", version, reference
        )
        return None
    repository = ModelRepository(settings.model_repository)
    directory = settings.state_dir / "speed"
    try:
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            before = stack.enter_context(trial(settings, repository, reference, directory / "reference"))
            after = stack.enter_context(trial(settings, repository, version, directory / "version"))
            return within_budget(before, after, TEXTS).figures
    except PipelineError as error:
        log.warning("Cannot time versions %d and %d without live traffic: %s", version, reference, error)
        return None
