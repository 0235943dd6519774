"""List published adapters, compare versions, put one in use, go back, verify."""

import argparse
import json
from pathlib import Path
from typing import Any

from flows.commands.arguments import a_path, add_store
from tasks.errors import UserError
from tasks.publishing.facts import VersionFacts
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
        add_store(action, argparse.SUPPRESS)  # also before the action's name
        action.add_argument(
            "--registry", type=a_path, metavar="FOLDER", help="default: the store's, and those it knows"
        )


def main(options: argparse.Namespace) -> int:
    from flows.commands.environment import local_settings

    local_settings()
    return ACTIONS[options.action][1](options)


def _list(options: argparse.Namespace) -> int:
    from tasks.publishing.registry import registries, versions

    places = [options.registry.absolute()] if options.registry else registries()
    folders = sorted(folder for place in places for folder in place.glob("*") if versions(folder))
    rows = [row for folder in folders for row in _versions(folder)]
    if rows or options.json:
        _show(rows, options.json)
    else:
        print(f"No adapter is published in {', '.join(map(str, places))}.")
    return 0


def _show_one(options: argparse.Namespace) -> int:
    from tasks.promotion.champion import looks, read

    folder, version = named(options)
    entries = read(folder)
    decisions = [
        {"at": entry.at, "by": entry.by, "what": entry.what, "version": entry.version, "reason": entry.said}
        for entry in entries
        if entry.what != "look" and version in ("", entry.version)
    ]
    rows, spent = [row for row in _versions(folder) if version in ("", row["version"])], len(looks(entries))
    if options.json:
        print(json.dumps({"versions": rows, "history": decisions, "looks": spent}, indent=2))
        return 0
    _show(rows, False)
    for each in decisions:
        about = " ".join(filter(None, (each["at"], each["what"], each["version"])))
        print(visible(f"{about}: {each['reason']} ({each['by']})", 2000))
    print(f"Comparisons spent in this life of the test rows: {spent}. The champion is {folder / 'champion'}.")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from flows.promote import named_version
    from tasks.promotion.champion import champion_of, read

    folder, version = named(options)
    other = options.other or champion_of(read(folder))
    if not version or not other:
        raise UserError(f"Compare two versions: qlora-flow adapters compare {folder.name}@v0002 v0001.")
    ours, theirs = (
        {s["metric"]: s for s in named_version(folder, name).facts(VersionFacts).scores} for name in (version, other)
    )
    rows = [
        {
            "metric": name,
            "rows": f"{ours[name]['rows']}, {theirs[name]['rows']}",
            version: ours[name]["tuned"],
            other: theirs[name]["tuned"],
            "difference": ours[name]["tuned"] - theirs[name]["tuned"],
        }
        for name in ours
        if name in theirs
    ]
    _show(rows, options.json)
    if not options.json:
        print("Each version's scores when it was published, on the test rows of that time. The history has the")
        print("comparisons on the same rows.")
    return 0


def _act(options: argparse.Namespace) -> int:
    """Promote, roll back or renew."""
    from flows.promote import promote_version, renew, roll_back

    folder, version = named(options)
    name, registry = folder.name, str(folder.parent)
    if options.action == "rollback":
        print(roll_back(name, options.reason, version, registry))
    elif options.action == "renew":
        print(renew(name, options.reason, registry))
    elif version:
        print(promote_version(name, version, options.reason, registry))
    else:
        raise UserError(f"Name a version: qlora-flow adapters promote {name}@v0007 --reason TEXT.")
    return 0


def _verify(options: argparse.Namespace) -> int:
    """Check versions, history and pointer; returns 1 if one is wrong."""
    from tasks.promotion.champion import champion_of, current, intact, pointer, read
    from tasks.publishing.registry import versions

    folder, version = named(options)
    said = ""
    try:
        said, there = champion_of(read(folder)), pointer(folder)
        wrong = "" if there == said else f"points to {there or 'nothing'}, and the history says {said or 'nothing'}"
    except UserError as error:
        wrong = str(error)
    rows = [{"what": "history and pointer", "found": wrong or "intact"}]
    for name in (
        [version] if version else dict.fromkeys([*(path.name for path in versions(folder)), *filter(None, [said])])
    ):
        try:
            current(folder) if name == said else intact(folder, name)
            wrong = ""
        except UserError as error:
            wrong = str(error)
        rows.append({"what": name, "found": wrong or "intact"})
    _show(rows, options.json)
    return int(any(row["found"] != "intact" for row in rows))


def named(options: argparse.Namespace) -> tuple[Path, str]:
    """Folder and version of NAME[@VERSION]; the version may be empty."""
    from flows.promote import find
    from tasks.publishing.registry import VERSION

    name, at, version = options.adapter.partition("@")
    folder = find(name, str(options.registry or ""))
    for one in ([version] if at else []) + ([other] if (other := getattr(options, "other", "")) else []):
        if not VERSION.fullmatch(one):
            raise UserError(f"{visible(one)!r} names no version of {folder.name}; a version is called v0001.")
    return folder, version


def _versions(folder: Path) -> list[dict[str, Any]]:
    """A row for each version, oldest first."""
    from tasks.promotion.champion import about, champion_of, read, weights
    from tasks.publishing.registry import versions
    from tasks.store.manifest import DamagedArtifact, read_manifest

    entries, damaged = [], ""
    try:
        entries = read(folder)
    except UserError:
        damaged = "the history is damaged"
    rows = []
    for path in versions(folder):
        row: dict[str, Any] = {
            "adapter": folder.name,
            "version": path.name,
            "champion": path.name == champion_of(entries),
            "published": "damaged",
            "rows": 0,
            "scores": {},
            "decision": damaged,
        }
        try:
            manifest = read_manifest(path)
            scores = manifest.facts(VersionFacts).scores
            decisions = about(entries, path.name, weights(folder, path.name))
            row |= {
                "published": manifest.created,
                "rows": max((score["rows"] for score in scores), default=0),
                "scores": {score["metric"]: score["tuned"] for score in scores},
                "decision": damaged or (decisions[-1].said if decisions else ""),
            }
        except (DamagedArtifact, OSError, KeyError):
            pass
        rows.append(row)
    return rows


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows as a table with the decisions below it, or as JSON."""
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from flows.commands.table import as_wide_as_needed, table_of

    decisions = [(f"{row['adapter']} {row['version']}", row["decision"]) for row in rows if row.get("decision")]
    shown = [{name: value for name, value in row.items() if name != "decision"} for row in rows]
    for row in shown:
        row |= {"published": row["published"][:16]} if "published" in row else {}  # to the minute
    lines = [list(shown[0]), *([_cell(value) for value in row.values()] for row in shown)] if shown else []
    if lines:
        as_wide_as_needed().print(table_of(lines, "left"))
    for name, said in decisions:
        print(visible(f"{name}: {said}", 2000))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "*" if value else ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {score:.3f}" for name, score in [*value.items()][:2])
    return visible(value)


ACTIONS = {
    "list": ("versions with scores and decision; * marks the champion", _list),
    "show": ("an adapter's versions and the history of its decisions", _show_one),
    "compare": ("published scores of two versions", _compare),
    "promote": ("put a version in use, whatever the gate decided; also how a waiting version is approved", _act),
    "rollback": ("go back to the version that was in use before, or to the one named", _act),
    "renew": ("begin a new life of the test rows, in which comparisons are counted anew", _act),
    "verify": ("checksums of versions, history and pointer", _verify),
}
