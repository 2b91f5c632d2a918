"""The commands that have a version tried on live texts, and show what was found."""

import argparse

from errors import PipelineError
from lifecycle import release
from lifecycle.printing import print_json, print_table
from lifecycle.release_figures import call_ms, parts_of
from settings import Settings
from storage import releases
from storage.database import Database


def shadow(settings: Settings, options: argparse.Namespace) -> None:
    """Put a share of the live texts to a version too, which answers nobody."""
    _try(settings, options.version, releases.SHADOW)


def canary(settings: Settings, options: argparse.Namespace) -> None:
    """Have a version answer a growing share of the live texts."""
    _try(settings, options.version, releases.CANARY)


def stop(settings: Settings, options: argparse.Namespace) -> None:
    """End the trial of a version."""
    release.stop(Database(settings.database), options.version, "by command")
    print(f"Version {options.version} is not tried any more.")


def show_release(settings: Settings, options: argparse.Namespace) -> None:
    """Print what is being tried on live texts, or was last, and what was found."""
    database = Database(settings.database)
    with database.reading() as session:
        found = releases.last(session)
    if found is None:
        raise PipelineError("Nothing was tried on live texts yet; `python app.py shadow VERSION` begins.")
    if options.json:
        print_json(releases.as_json(found))
        return
    state = f"{found.state}: {found.outcome}" if found.outcome else f"{releases.share_of(found):.0%} of the live texts"
    print(f"{found.mode.capitalize()} of version {found.version} beside {found.champion}, {state}.")
    figures = found.figures
    if times := call_ms(figures):
        told = f"A call took {times[0]:.1f} ms, and of version {found.champion} {times[1]:.1f} ms"
        print(f"{told} ({figures['calls']} calls).")
    print(f"Of its answers {figures.get('failed', 0)} failed, {figures.get('answered', 0)} did not.")
    rows = [
        [part.name, str(part.texts), f"{part.differ:.1%}", f"{part.challenger:.4f}", f"{part.champion:.4f}"]
        for part in parts_of(figures)
    ]
    print_table(["texts of", "compared", "other label", "estimated accuracy", f"of version {found.champion}"], rows)
    if options.texts:
        differing = releases.differences(database, found.id, options.texts)
        print()
        print_table(
            [f"version {found.champion}", f"version {found.version}", "text"],
            [
                [
                    f"{item.champion_label} {item.champion_score:.4f}",
                    f"{item.challenger_label} {item.challenger_score:.4f}",
                    " ".join((item.text or "(texts are not kept)").split()),
                ]
                for item in differing
            ],
        )


def _try(settings: Settings, version: int, mode: releases.Mode) -> None:
    release.start(settings, Database(settings.database), version, mode, "by command")
    print(f"Version {version} is tried on live texts ({mode}).")
