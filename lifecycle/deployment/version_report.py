"""Reports what is known about each version: metrics, gate verdicts, deployment times."""

from datetime import datetime

from common.settings import Settings
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from storage import deployments, events, jobs, releases, versions
from storage.database import Database
from storage.tables import Figures, Verdict

LEARNT_FROM = "feedback rows by source"
"""Key in a retraining's result: the number of training rows from each feedback source."""


def describe_models(settings: Settings, database: Database) -> list[Figures]:
    """Return all versions, the newest first, in the format of the API and the commands."""
    repository = ModelRepository(settings.model_repository)
    deployed, published = repository.deployed(), repository.published()
    with database.reading() as session:
        unknown = published - {known.version for known in versions.known_versions(session)}
    if unknown:  # published by the command `export`
        with database.transaction() as session:
            for version in sorted(unknown):
                versions.add_version(session, Bundle.load(repository.version_directory(version)))
    with database.reading() as session:
        target = deployments.rollback_target(session)
        learnt = jobs.results_of_retrainings(session)
        checked = events.last_checks(session)
        all_known = versions.known_versions(session)
        verdicts = {known.version: versions.verdicts_of(session, known.version) for known in all_known}
        return [
            {
                "version": known.version,
                "aliases": [
                    alias
                    for alias, version in (("champion", deployed), ("previous", target))
                    if version == known.version
                ],
                "published": known.version in published,
                "base_model": known.bundle["base_model"],
                "quick": known.bundle.get("quick", False),
                "updates": known.bundle.get("updates", 0),
                "packed": known.bundle.get("packed", True),  # all older bundles are packed
                "first_stage": known.bundle.get("first_stage"),
                "labels": known.bundle["labels"],
                "metrics": known.bundle["metrics"],
                "summary": found.message.partition("\n")[0] if (found := checked.get(known.version)) else "",
                "baseline": known.bundle.get("baseline", {}),
                "data_fingerprint": known.bundle["data_fingerprint"],
                "data": known.bundle.get("data", {}),  # older bundles have no counts
                "mlflow_run": known.bundle["mlflow_run"],
                "feedback": learnt.get(known.version, {}).get(LEARNT_FROM, {}),
                "feedback_metrics": _on_feedback(found.figures if found else {}, verdicts[known.version]),
                "gates": [
                    verdict.as_json("gate", "passed", "message", "figures") for verdict in verdicts[known.version]
                ],
                "release": releases.as_json(tried) if (tried := releases.last_of(session, known.version)) else None,
                "served": [
                    {"from": _format_time(start), "to": _format_time(end), "reason": reason}
                    for start, end, reason in deployments.of_version(session, known.version)
                ],
            }
            for known in all_known
        ]


def _on_feedback(checked: Figures, verdicts: list[Verdict]) -> Figures:
    """Return a version's metrics on held-out feedback: of its last check, or else of the gates; empty if not known."""
    of_gates = (verdict.figures for verdict in verdicts if verdict.gate == "thresholds")
    return next((figures["feedback"] for figures in (checked, *of_gates) if "feedback" in figures), {})


def without_texts(models: list[Figures]) -> list[Figures]:
    """Return copies of the versions without the validation texts in the gates' figures."""
    return [
        {**model, "gates": [{**gate, "figures": events.without_texts(gate["figures"])} for gate in model["gates"]]}
        for model in models
    ]


def _format_time(time: datetime | None) -> str | None:
    return time.isoformat(timespec="seconds") if time else None
