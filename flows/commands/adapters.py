"""List published adapters, compare versions, put one in use, go back, verify."""

import argparse
import json
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.publishing.facts import VersionFacts
from tasks.store.root import at_home
from tasks.text import visible


def add_arguments(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True)
    for name, (about, _) in ACTIONS.items():
        action = actions.add_parser(name, help=about, description=about, allow_abbrev=False)
        if name != "list":
            what = "NAME@VERSION" if name == "promote" else "NAME, or NAME@VERSION"
            action.add_argument("adapter", metavar="NAME[@VERSION]", help=what)
        if name == "compare":
            action.add_argument("other", nargs="?", default="", metavar="VERSION", help="default: the champion")
        if name in ("promote", "rollback", "renew"):
            action.add_argument("--reason", required=True, metavar="TEXT", help="why; it stands in the history")
        else:
            action.add_argument("--json", action="store_true", help="for programs")
        action.add_argument("--registry", default="", metavar="FOLDER", help="default: the store's, and those it knows")


def main(options: argparse.Namespace) -> int:
    from flows.commands.environment import local_settings

    local_settings()
    return ACTIONS[options.action][1](options)


def _list(options: argparse.Namespace) -> int:
    from tasks.publishing.registry import registries, versions

    places = [at_home(options.registry).absolute()] if options.registry else registries()
    folders = sorted(folder for place in places for folder in place.glob("*") if versions(folder))
    rows = [row for folder in folders for row in _versions(folder)]
    if not rows and not options.json:
        print(f"No adapter is published in {', '.join(map(str, places))}.")
        return 0
    return _show(rows, options.json)


def _show_one(options: argparse.Namespace) -> int:
    from tasks.promotion import champion

    folder, version = named(options)
    entries = champion.read(folder)
    decisions = [
        {"at": entry.at, "by": entry.by, "what": entry.what, "version": entry.version, "reason": entry.said}
        for entry in entries
        if entry.what != "look" and version in ("", entry.version)
    ]
    rows = [row for row in _versions(folder) if version in ("", row["version"])]
    if options.json:
        print(json.dumps({"versions": rows, "history": decisions, "looks": _looks(entries)}, indent=2))
        return 0
    _show(rows, False)
    _show(decisions, False)
    print(
        f"{_looks(entries)} comparisons of this life of the test rows are spent; the champion is {folder / 'champion'}"
    )
    return 0


def _compare(options: argparse.Namespace) -> int:
    from tasks.promotion.champion import champion_of, intact, read

    folder, version = named(options)
    other = options.other or champion_of(read(folder))
    if not version or not other:
        raise UserError(f"Compare two versions: qlora-flow adapters compare {folder.name}@v0002 v0001.")
    sides = {
        name: {s["metric"]: s for s in intact(folder, name).facts(VersionFacts).scores} for name in (version, other)
    }
    rows = [
        {"metric": name, "rows": f"{sides[version][name]['rows']}, {sides[other][name]['rows']}"}
        | {side: sides[side][name]["tuned"] for side in (version, other)}
        | {"difference": sides[version][name]["tuned"] - sides[other][name]["tuned"]}
        for name in sides[version]
        if name in sides[other]
    ]
    _show(rows, options.json)
    if not options.json:
        print(
            "Scores as they were published, each on the test rows of its time; the history has the paired comparisons."
        )
    return 0


def _promote(options: argparse.Namespace) -> int:
    from flows.promote import promote_version

    folder, version = named(options)
    if not version:
        raise UserError(f"Name a version: qlora-flow adapters promote {folder.name}@v0007 --reason TEXT.")
    print(promote_version(folder.name, version, options.reason, str(folder.parent)))
    return 0


def _rollback(options: argparse.Namespace) -> int:
    from flows.promote import roll_back

    folder, version = named(options)
    print(roll_back(folder.name, options.reason, version, str(folder.parent)))
    return 0


def _renew(options: argparse.Namespace) -> int:
    from flows.promote import renew

    folder, _ = named(options)
    print(renew(folder.name, options.reason, str(folder.parent)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    """Checksums of versions, history and pointer; returns 1 when one is wrong."""
    from tasks.promotion.champion import champion_of, current, intact, pointer, read
    from tasks.publishing.registry import versions

    folder, version = named(options)
    rows, entries = [], []
    try:
        entries = read(folder)
        said = champion_of(entries)
        there = pointer(folder)
        right = "" if there == said else f"points to {there or 'nothing'}, and the history says {said or 'nothing'}"
    except UserError as error:
        right = str(error)
    rows.append({"what": "history and pointer", "found": right or "intact"})
    said = champion_of(entries)
    names = [path.name for path in versions(folder)]
    for name in [version] if version else [*names, *([said] if said and said not in names else [])]:
        try:
            current(folder) if name == said else intact(folder, name)
            rows.append({"what": name, "found": "intact"})
        except UserError as error:
            rows.append({"what": name, "found": str(error)})
    _show(rows, options.json)
    return int(any(row["found"] != "intact" for row in rows))


def named(options: argparse.Namespace) -> tuple[Path, str]:
    """Folder and version of NAME[@VERSION]; the version may be empty."""
    from flows.promote import find
    from tasks.publishing.registry import VERSION

    name, at, version = options.adapter.partition("@")
    folder = find(name, options.registry)
    for one in (version if at else "v0001", getattr(options, "other", "") or "v0001"):
        if not VERSION.fullmatch(one):
            raise UserError(f"{visible(one)!r} names no version of {folder.name}; a version is called v0001.")
    return folder, version


def _versions(folder: Path) -> list[dict[str, Any]]:
    """A row for each version, oldest first."""
    from tasks.promotion.champion import champion_of, decision_about, read, weights
    from tasks.publishing.registry import versions
    from tasks.store.manifest import DamagedArtifact, read_manifest

    try:
        entries, damaged = read(folder), ""
    except UserError:
        entries, damaged = [], "the history is damaged"
    rows = []
    for path in versions(folder):
        row: dict[str, Any] = {
            "adapter": folder.name,
            "version": path.name,
            "champion": path.name == champion_of(entries),
        }
        try:
            manifest = read_manifest(path)
            row |= {"published": manifest.created, "rows": 0, "scores": {}}
            scores = manifest.facts(VersionFacts).scores
            row["rows"] = max((score["rows"] for score in scores), default=0)
            row["scores"] = {score["metric"]: score["tuned"] for score in scores}
            decided = decision_about(entries, path.name, weights(folder, path.name))
        except (DamagedArtifact, OSError, KeyError):
            row |= {"published": "damaged", "rows": 0, "scores": {}}
            decided = ""
        rows.append(row | {"decision": damaged or decided})
    return rows


def _looks(entries: list[Any]) -> int:
    opened = max((entry.number for entry in entries if entry.what == "opened"), default=0)
    return sum(entry.what == "look" for entry in entries[opened:])


def _show(rows: list[dict[str, Any]], as_json: bool) -> int:
    """Print rows as a table, or as JSON."""
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*(list(rows[0]) if rows else []))
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    Console().print(table)
    return 0


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "*" if value else ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {score:.3f}" for name, score in [*value.items()][:3])
    return visible(value)


ACTIONS = {
    "list": ("versions with scores and decision; * marks the champion", _list),
    "show": ("an adapter's versions and the history of its decisions", _show_one),
    "compare": ("published scores of two versions", _compare),
    "promote": ("put a version in use, whatever the gate said; also the approval of one that waits", _promote),
    "rollback": ("go back to the version that was in use before, or to the one named", _rollback),
    "renew": ("begin a new life of the test rows, in which comparisons are counted anew", _renew),
    "verify": ("checksums of versions, history and pointer", _verify),
}
