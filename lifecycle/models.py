"""What is known of every version: metrics, verdicts, when it served."""

from datetime import datetime

from serving.bundle import Bundle
from serving.repository import ModelRepository
from settings import Settings
from storage import deployments, releases, versions
from storage.database import Database
from storage.tables import Figures


def describe_models(settings: Settings, database: Database) -> list[Figures]:
    """Every version, the newest first, as the API and the commands tell of it."""
    repository = ModelRepository(settings.model_repository)
    deployed, published = repository.deployed(), repository.published()
    with database.reading() as session:
        unknown = published - {known.version for known in versions.known_versions(session)}
    if unknown:  # by the command `export`
        with database.transaction() as session:
            for version in sorted(unknown):
                versions.add_version(session, Bundle.load(repository.version_directory(version)))
    with database.reading() as session:
        target = deployments.rollback_target(session)
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
                "labels": known.bundle["labels"],
                "metrics": known.bundle["metrics"],
                "data_fingerprint": known.bundle["data_fingerprint"],
                "mlflow_run": known.bundle["mlflow_run"],
                "gates": [
                    {
                        "gate": verdict.gate,
                        "passed": verdict.passed,
                        "message": verdict.message,
                        "figures": verdict.figures,
                    }
                    for verdict in versions.verdicts_of(session, known.version)
                ],
                "release": releases.as_json(tried) if (tried := releases.last_of(session, known.version)) else None,
                "served": [
                    {"from": _told(start), "to": _told(end), "reason": reason}
                    for start, end, reason in deployments.of_version(session, known.version)
                ],
            }
            for known in versions.known_versions(session)
        ]


def _told(time: datetime | None) -> str | None:
    return time.isoformat(timespec="seconds") if time else None
