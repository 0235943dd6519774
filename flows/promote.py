"""A person's actions on an adapter's champion: promote, roll back, begin a new life of the test rows."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.flow_run import describe, unattended
from flows.run.logs import readable_logs
from tasks.config import ExecutionConfig, ModelConfig, PublishingConfig
from tasks.download.models import BUNDLED, BUNDLED_SOURCE, present_model
from tasks.errors import UserError
from tasks.promotion import champion
from tasks.promotion.clean_room import try_out
from tasks.promotion.schema import Entry
from tasks.promotion.task import acting, this_run
from tasks.publishing.registry import VERSION, registries, versions
from tasks.store.artifact import ArtifactRef
from tasks.store.manifest import Manifest
from tasks.store.model import BaseModelRef
from tasks.store.root import at_home
from tasks.text import visible

readable_logs()


@flow(name="promote", persist_result=False, validate_parameters=False)
@unattended
def promote(name: str, version: str, reason: str, registry: str = "") -> Any:
    """Put a version of an adapter in use, whatever the gate decided. This is also how a waiting version is approved.

    Args:
        name: Name of the adapter.
        version: Version to use, such as v0007.
        reason: Why; it stands in the history.
        registry: Folder of the registry. Empty: the one in the store, or another that this store published to.
    """
    describe(f"{name} {version}", [name])
    get_run_logger().info(said := promote_version(name, version, reason, registry))
    return Completed(message=said, data=said)


@flow(name="rollback", persist_result=False, validate_parameters=False)
@unattended
def rollback(name: str, reason: str, version: str = "", registry: str = "") -> Any:
    """Go back to the version that was in use before.

    Args:
        name: Name of the adapter.
        reason: Why; it stands in the history.
        version: Version to go back to. Empty: the one before.
        registry: Folder of the registry. Empty: the one in the store, or another that this store published to.
    """
    describe(f"{name} {version}".rstrip(), [name])
    get_run_logger().info(said := roll_back(name, reason, version, registry))
    return Completed(message=said, data=said)


def promote_version(name: str, version: str, reason: str, registry: str = "") -> str:
    """Verify a version, load it in a separate process, and put it in use. Returns what was done, in a sentence.

    Raises:
        UserError: there is no such version, it does not verify, or its base is not on this machine.
    """
    folder, reason = find(name, registry), _reason(reason)
    with acting(folder, moved_by_hand=True) as history:
        ref = named_version(folder, version)
        adapter = champion.weights(folder, version)
        if _is_in_use(history, version, adapter):
            return f"{version} of {name} is in use already."
        try_out(ref.path, base_of(ref.manifest), lambda line: None, ExecutionConfig().hang_minutes)
        decided = [e.said for e in champion.about(history.entries, version, adapter) if e.what == "decision"]
        said = f"Promoted {version} by hand: {reason}. The gate: {decided[-1] if decided else 'it was not compared.'}"
        history.move(version, said)
    return said


def roll_back(name: str, reason: str, version: str = "", registry: str = "") -> str:
    """Put an earlier version in use again, without loading it: it was loaded when it was put in use.

    Raises:
        UserError: no version was in use before, or it does not verify.
    """
    folder, reason = find(name, registry), _reason(reason)
    with acting(folder, moved_by_hand=True) as history:
        before = history.champion
        target = version or earlier(history.entries)
        if not target:
            raise UserError(
                f"No version of {name} was in use before {before or 'now'}, so there is none to go back to."
            )
        named_version(folder, target)
        adapter = champion.weights(folder, target)
        if _is_in_use(history, target, adapter):
            return f"{target} of {name} is in use already."
        if adapter not in [entry.adapter for entry in champion.in_use(history.entries)]:
            raise UserError(
                f"{target} of {name} was never in use, so it was not tried on its base: "
                f"qlora-flow adapters promote {name}@{target} --reason TEXT tries it and puts it in use."
            )
        said = f"Rolled back from {before or 'the base'} to {target}: {reason}."
        history.move(target, said)
    return said


def _is_in_use(history: champion.History, version: str, adapter: str) -> bool:
    last = champion.in_use(history.entries)[-1]
    return (last.version, last.adapter) == (version, adapter) and champion.pointer(history.folder) == version


def renew(name: str, reason: str, registry: str = "") -> str:
    """Begin a new life of the test rows: see `champion.renew`."""
    folder = find(name, registry)
    said = champion.renew(folder, this_run(), _reason(reason))
    with acting(folder, moved_by_hand=True):  # the page follows
        return said


def find(name: str, registry: str = "") -> Path:
    """The folder of an adapter.

    Raises:
        UserError: there is none of this name, or several registries have one.
    """
    places = [at_home(registry, "registry").absolute()] if registry else registries()
    try:
        PublishingConfig(name=name)
        found = [place / name for place in places if versions(place / name)]
    except ValueError:
        found = []
    if len(found) > 1:
        raise UserError(f"Several registries have {name}: {', '.join(map(str, found))}; --registry takes one's folder.")
    if not found:
        names = sorted({folder.name for place in places for folder in place.glob("*") if versions(folder)})
        raise UserError(
            f"There is no adapter {visible(name)!r} in {', '.join(map(str, places))}"
            + (f"; there {_are(names)}." if names else ".")
        )
    return found[0]


def named_version(folder: Path, version: str) -> ArtifactRef:
    """A version that a person names; raises UserError if it does not exist or is damaged."""
    there = [path.name for path in versions(folder)]
    if VERSION.fullmatch(version) and version not in there:
        raise UserError(f"There is no version {version} of {folder.name}; there {_are(there)}.")
    return champion.intact(folder, version)


def _are(names: list[str]) -> str:
    return f"{'is' if len(names) == 1 else 'are'} {', '.join(names)}"


def earlier(entries: list[Entry]) -> str:
    """The version in use before the present one; going back twice goes back two versions."""
    stack: list[str] = []
    for entry in entries:
        if entry.what == "move" and entry.version in stack:
            del stack[stack.index(entry.version) + 1 :]
        elif entry.what == "move" or (entry.what == "opened" and not stack):
            stack.append(entry.version)
    return stack[-2] if len(stack) > 1 else ""


def _reason(reason: str) -> str:
    if not reason.strip():
        raise UserError("--reason takes a sentence for the history: why is this version put in use?")
    return visible(reason.strip(), 500).removesuffix(".")


def base_of(version: Manifest) -> BaseModelRef:
    """The base of a version on this machine; raises UserError if it is not there."""
    if (base := present_model(base_named(version))) is None:
        raise UserError(
            f"The base {version.identity.config['source']} is not on this machine, and a version is loaded on it "
            "before it is put in use."
        )
    return base


def base_named(version: Manifest) -> ModelConfig:
    """The base of a version as a configuration names it."""
    source, revision = (str(version.identity.config.get(name, "")) for name in ("source", "revision"))
    return ModelConfig(base=BUNDLED if source == BUNDLED_SOURCE else source, revision=revision)
