"""What a run would do, and why: compares the identity of each stage with the store. Nothing runs or is fetched.

A stage whose input does not exist yet has no key: it runs because its input runs first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.run.continued import to_begin_from, to_replay, unless_trained
from flows.stages import BY_NAME, STAGES
from tasks.config import TrainingConfig
from tasks.download.identity import pin
from tasks.download.models import present_model
from tasks.promotion.champion import opponent
from tasks.publishing.identity import registry_folder
from tasks.publishing.registry import versions
from tasks.store.artifact import ArtifactRef, check_folder, reference
from tasks.store.identity import Identity
from tasks.store.manifest import DamagedArtifact, Manifest, latest, read_manifest, readable
from tasks.store.model import BaseModelRef, Source
from tasks.store.origins import by_digest, results
from tasks.store.remote import Remote
from tasks.store.root import store_root
from tasks.training.start import NotFetched, Start, adapter_folder


@dataclass(frozen=True)
class Planned:
    """One stage of a plan.

    Args:
        stage: its name.
        reused: whether its result exists.
        why: the reason why it runs; empty if it is reused.
        last: manifest of the result that is reused, else of this adapter's last result, else of any adapter's: its
            numbers show what to expect.
    """

    stage: str
    reused: bool
    why: str
    last: Manifest | None


def plan(groups: dict[str, Any], begun: Source | None = None) -> Iterator[Planned]:
    """The stages in order.

    Args:
        groups: the flow's parameters, as `flows.config_file.load` returns them.
        begun: rows and base to start from instead of the first stage.
    Raises:
        UserError: the source does not exist.
    """
    data, model = (groups["data"], groups["model"]) if begun else pin(groups["data"], groups["model"])
    base: Any = begun.model if begun else present_model(model)  # None: no later stage has its input
    found: dict[str, ArtifactRef] = {"download": begun.rows} if begun else {}
    registry = registry_folder(groups["publishing"])
    before = _lineage(registry)
    remote, fetched = Remote.configured(), False
    for stage in STAGES[bool(begun) :]:
        name, missing = stage.name, [each for each in BY_NAME if each in stage.inputs.values() and each not in found]
        folders = versions(registry) if name == "publish" else [*store_root().glob(f"artifacts/{name}-*")]
        last = before.get(name) or latest(folders)
        if missing:
            yield Planned(name, False, f"{missing[-1]} is fetched first" if fetched else f"{missing[-1]} runs", last)
            continue
        earlier: ArtifactRef | Start | None = None
        if name == "download":
            earlier = to_replay(data, registry)
        elif name == "train":
            try:
                earlier = _start(groups["training"], registry, found["tokenize"], base)
            except NotFetched:
                yield Planned(name, False, "the adapter of training.start_from is fetched first", last)
                continue
        elif name == "evaluate":
            earlier = opponent(registry, found["train"].part("adapter"))
        identity = stage.identity(found, base, {**groups, "data": data}, earlier)
        folder, why = _found(identity, folders, last)
        if why and remote and remote.manifest(identity.key):
            why, fetched = f"its result is fetched from {remote.url}", True
        if folder and (name != "download" or base):
            found[name] = reference(folder, read_manifest(folder))
        if name == "download" and not base:
            why = why or "the base model is not on this machine yet"
        yield Planned(name, not why, why, read_manifest(found[name].path) if name in found else last)


def _start(training: TrainingConfig, registry: Path, tokens: ArtifactRef, base: BaseModelRef) -> Start | None:
    folder = adapter_folder(training.start_from, local_files_only=True)
    start = to_begin_from(training, registry, folder, base)
    return unless_trained(start, registry, tokens, base, training)


def _lineage(registry: Path) -> dict[str, Manifest]:
    """Stage → manifest of the result that this adapter's newest version was made from, where the result is kept."""
    newest = list(readable(versions(registry)).values())[-1:]
    manifests = results() if newest else {}
    holding, stages = by_digest(manifests), dict[str, Manifest]()
    while newest:
        manifest = newest.pop(0)
        stages.setdefault(manifest.identity.stage, manifest)
        origins = (holding.get(digest, []) for digest in manifest.identity.inputs.values())
        newest += [manifests[folders[0]] for folders in origins if folders]
    return stages


def _found(identity: Identity, folders: list[Path], last: Manifest | None) -> tuple[Path | None, str]:
    """The intact result of an identity, or why there is none: the differences from the last one."""
    for folder in folders:
        try:
            if read_manifest(folder).key == identity.key:
                check_folder(folder)
                return folder, ""
        except DamagedArtifact as error:
            if folder.name == identity.key:
                return None, str(error)
    if last is None:
        return None, "it has not run yet"
    return None, "; ".join(differences(last.identity, identity)) or "its result is damaged"


def differences(before: Identity, now: Identity) -> Iterator[str]:
    """The differences between two identities, a phrase each, with the values of fields and versions."""
    for name in sorted(before.inputs.keys() | now.inputs.keys()):
        if before.inputs.get(name) != now.inputs.get(name):
            yield f"{name} changed"
    for was, wanted in ((before.config, now.config), (before.libraries, now.libraries)):
        for name in sorted(was.keys() | wanted.keys()):
            old, new = was.get(name), wanted.get(name)
            if old != new:
                yield f"{name}: {_short(old)} → {_short(new)}"
    if before.version != now.version:
        yield f"its code changed (version {before.version} → {now.version})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"
