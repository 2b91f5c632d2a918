"""The steps of one scoring job, in order: `python app.py score`."""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

from common.errors import PipelineError
from common.settings import Settings
from scoring.classify import classify
from scoring.inputs import find_inputs
from scoring.job import PART_ROWS, Columns, Job, begun, remove_work
from scoring.output import join
from scoring.parts import Parts
from scoring.progress import Progress
from scoring.reading import Source, check_input, read
from serving.backend.cpu import usable_cores
from serving.backend.engine import Engine
from serving.backend.variant_choice import Wanted, choose_variant
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from tables.blocks import Place

log = logging.getLogger(__name__)


def score(settings: Settings, options: argparse.Namespace) -> None:
    """Score the input files, and write the output.

    Raises:
        PipelineError: an input, the output or the version cannot be used, or parts of a different job exist.
    """
    repository = ModelRepository(settings.model_repository.absolute())
    job = _job(repository, options)
    directory = repository.version_directory(job.version)
    if Bundle.load(directory).quick:
        log.warning(
            "Version %d is a quick first version. Scores get better when the full training, which runs while the "
            "pipeline serves, has replaced it.",
            job.version,
        )
    wanted = Wanted(settings.runtime, settings.precision)
    for file in job.inputs:
        for note in check_input(file, job.columns):
            log.info("%s: %s.", file.path, note)
    with begun(job, options.overwrite):
        parts = Parts(job)
        if parts.rows():
            log.info("Resuming after %s rows that are already scored.", f"{parts.rows():,}")
        try:
            if options.ray:
                from scoring.on_ray import Order, score_on_ray

                progress = score_on_ray(options.ray, Order(job, directory, wanted), parts)
            else:
                progress = _score_here(job, directory, wanted, parts)
        except KeyboardInterrupt:
            log.info("The rows scored so far are in %s. Run the same command again: it resumes.", job.work)
            raise
        parts.refresh()
        rows = parts.rows()
        rejected = join(job, parts, options.escape_formulas)
        remove_work(job)
    scored = f"{rows - rejected:,} of {rows:,} rows" if rejected else f"{rows:,} {'row' if rows == 1 else 'rows'}"
    log.info("Scored %s in %s with version %d into %s.", scored, progress.summary(), job.version, job.output)
    if rejected:
        log.warning("Not scored: %s. %s lists their row numbers and the reasons.", f"{rejected:,}", job.rejected)


def _job(repository: ModelRepository, options: argparse.Namespace) -> Job:
    version = options.version or repository.require_deployed()
    if version not in repository.published():
        known = ", ".join(map(str, sorted(repository.published()))) or "none"
        raise PipelineError(f"Version {version} is not in {repository.model}. Available versions: {known}.")
    output = Path(options.out).absolute()
    added = (f"{options.prefix}label", f"{options.prefix}score", f"{options.prefix}version")
    columns = Columns(options.text_column, added)
    return Job(tuple(find_inputs(options.inputs, output)), output, columns, version, PART_ROWS)


def _score_here(job: Job, directory: Path, wanted: Wanted, parts: Parts) -> Progress:
    """Score the missing parts on all cores of this machine."""
    choice = choose_variant(Bundle.load(directory), wanted)
    log.info(
        "Scoring with version %d: %s on %d cores (%s).", job.version, choice.variant, usable_cores(), choice.reason
    )
    with Engine(directory, choice.variant, usable_cores()) as engine:
        progress = Progress(job, parts)
        for source in classify(engine, job, parts, _unscored(job, parts)):
            progress.add(source.file, source.block.rows, source.block.fraction)
    progress.end()
    return progress


def _unscored(job: Job, parts: Parts) -> Iterator[Source]:
    for file in range(len(job.inputs)):
        done = parts.of(file)
        if not (done and done[-1].last):
            yield from read(job, file, done[-1].end if done else Place())
