"""The commands that start and stop a shadow or canary, and show its results."""

import argparse

from common.errors import PipelineError
from common.settings import Settings
from lifecycle.canary import release
from lifecycle.canary.release_figures import call_ms, parts_of
from lifecycle.cli.printing import print_json, print_table
from storage import releases
from storage.database import Database


def shadow(settings: Settings, options: argparse.Namespace) -> None:
    """Start a shadow: a version also classifies a share of the live texts. No client gets its predictions."""
    _try(settings, options.version, releases.SHADOW)


def canary(settings: Settings, options: argparse.Namespace) -> None:
    """Start a canary: a version answers a growing share of the live texts."""
    _try(settings, options.version, releases.CANARY)


def stop(settings: Settings, options: argparse.Namespace) -> None:
    """End the shadow or canary of a version."""
    release.stop(Database(settings.database), options.version, "by command")
    print(f"Version {options.version} is no longer on trial.")


def show_release(settings: Settings, options: argparse.Namespace) -> None:
    """Print the running or last shadow or canary, and its results."""
    database = Database(settings.database)
    with database.reading() as session:
        found = releases.last(session)
    if found is None:
        raise PipelineError("There was no shadow or canary yet. Start one with `python app.py shadow VERSION`.")
    if options.json:
        print_json(releases.as_json(found))
        return
    state = f"{found.state}: {found.outcome}" if found.outcome else f"{releases.share_of(found):.0%} of the live texts"
    print(f"{found.mode.capitalize()} of version {found.version} beside {found.champion}, {state}.")
    if held := releases.held_because(found):
        print(f"It is held: {held}.")
        print(f"Promote version {found.version}, stop it, or continue it with `python app.py canary {found.version}`.")
    figures = found.figures
    if times := call_ms(figures):
        print(
            f"Mean time of a call: {times[0]:.1f} ms, with version {found.champion} {times[1]:.1f} ms "
            f"({figures['calls']:,} calls)."
        )
    failed = figures.get("failed", 0)
    print(f"{failed:,} of its {failed + figures.get('answered', 0):,} predictions failed.")
    rows = [
        [part.name, f"{part.texts:,}", f"{part.differ:.1%}", f"{part.challenger:.4f}", f"{part.champion:.4f}"]
        for part in parts_of(figures)
    ]
    print_table(["texts", "compared", "differ", "estimated accuracy", f"of version {found.champion}"], rows)
    if options.texts:
        differing = releases.differences(database, found.id, options.texts)
        print()
        print_table(
            [f"version {found.champion}", f"version {found.version}", "text"],
            [
                [
                    f"{item.champion_label} {item.champion_score:.4f}",
                    f"{item.challenger_label} {item.challenger_score:.4f}",
                    " ".join((item.text or "(texts are not stored)").split()),
                ]
                for item in differing
            ],
        )


def _try(settings: Settings, version: int, mode: releases.Mode) -> None:
    release.start(settings, Database(settings.database), version, mode, "by command")
    print(f"The {mode} of version {version} has started.")
