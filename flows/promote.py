"""Which version of an adapter is in use, decided by a person: promote, roll back, begin a new life of the test rows."""

import time
from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger

from flows.logs import readable_logs
from tasks.config import ModelConfig, PublishingConfig
from tasks.download.models import BUNDLED, BUNDLED_SOURCE, present_model
from tasks.errors import UserError
from tasks.promotion import champion
from tasks.promotion.clean_room import try_out
from tasks.promotion.task import announce, this_run
from tasks.publishing.registry import registries, versions
from tasks.store.manifest import Manifest
from tasks.store.model import BaseModelRef
from tasks.text import visible

readable_logs()


@flow(name="promote", flow_run_name="{name}", persist_result=False)
def promote(name: str, version: str, reason: str, registry: str = "") -> None:
    """Put a version of an adapter in use, whatever the gate said: also the approval of one that waits.

    Args:
        name: Name of the adapter.
        version: Version to use, such as v0007.
        reason: Why; it stands in the history.
        registry: Folder of the registry. Empty: the one in the store, or another that this store published to.
    """
    get_run_logger().info(promote_version(name, version, reason, registry))


@flow(name="rollback", flow_run_name="{name}", persist_result=False)
def rollback(name: str, reason: str, version: str = "", registry: str = "") -> None:
    """Go back to the version that was in use before.

    Args:
        name: Name of the adapter.
        reason: Why; it stands in the history.
        version: Version to go back to. Empty: the one before.
        registry: Folder of the registry. Empty: the one in the store, or another that this store published to.
    """
    get_run_logger().info(roll_back(name, reason, version, registry))


def promote_version(name: str, version: str, reason: str, registry: str = "") -> str:
    """Verify a version, try it in a process of its own, and put it in use. Returns what was done, in a sentence.

    Raises:
        UserError: there is no such version, it does not verify, or its base is not on this machine.
    """
    folder, reason = find(name, registry), _reason(reason)
    with champion.held(folder, this_run(), moved_by_hand=True) as history:
        before, thinks = history.champion, opinion(history.entries, version)
        ref = champion.intact(folder, version)
        if version == before and champion.pointer(folder) == version:
            return f"{version} of {name} is in use already."
        try_out(ref.path, _base(ref.manifest), lambda line: None)
        said = f"Promoted {version} by hand: {reason}. The gate: {thinks}"
        history.move(version, said, champion.weights(folder, version))
    announce(name, version, before, said)
    return said


def roll_back(name: str, reason: str, version: str = "", registry: str = "") -> str:
    """Put the version in use that was before, or an earlier one: it was tried when it was new.

    Raises:
        UserError: there was none before, or it does not verify.
    """
    folder, reason = find(name, registry), _reason(reason)
    with champion.held(folder, this_run(), moved_by_hand=True) as history:
        before = history.champion
        target = version or earlier(history.entries)
        if not target:
            raise UserError(
                f"No version of {name} was in use before {before or 'now'}, so there is none to go back to."
            )
        champion.intact(folder, target)
        if target == before and champion.pointer(folder) == target:
            return f"{target} of {name} is in use already."
        said = f"Rolled back from {before or 'the base'} to {target}: {reason}"
        history.move(target, said)
    announce(name, target, before, said)
    return said


def renew(name: str, reason: str, registry: str = "") -> str:
    """Begin a new life of the test rows: looks are counted anew. A damaged history is kept beside the new one.

    Raises:
        UserError: see `champion.held`.
    """
    folder, reason = find(name, registry), _reason(reason)
    try:
        champion.read(folder)
    except UserError:
        with champion.writable(folder):
            kept = folder / f"{champion.HISTORY}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
            (folder / champion.HISTORY).rename(kept)
            now = champion.pointer(folder)
            history = champion.History(folder, this_run())
            history.add(
                "opened", version=now if now != "?" else "", reason=f"{reason}; the damaged history is {kept.name}"
            )
        return (
            f"A new history of {name} begins with {history.champion or 'no version'} in use; the damaged one is {kept}."
        )
    with champion.held(folder, this_run()) as history:
        history.add("opened", version=history.champion, reason=reason)
        return f"A new life of the test rows of {name} begins; {history.champion or 'no version'} stays in use."


def find(name: str, registry: str = "") -> Path:
    """The folder of an adapter.

    Raises:
        UserError: there is none of this name, or several registries have one.
    """
    places = [Path(registry).expanduser().absolute()] if registry else registries()
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
            + (f"; there {'is' if len(names) == 1 else 'are'} {', '.join(names)}." if names else ".")
        )
    return found[0]


def earlier(entries: list[champion.Entry]) -> str:
    """The version that was in use before the present one; going back twice goes back two versions."""
    stack: list[str] = []
    for entry in entries:
        if entry.what == "move" and entry.version in stack:
            del stack[stack.index(entry.version) + 1 :]
        elif entry.what == "move" or (entry.what == "opened" and not stack):
            stack.append(entry.version)
    return stack[-2] if len(stack) > 1 else ""


def opinion(entries: list[champion.Entry], version: str) -> str:
    """What the gate decided about a version last."""
    decided = [entry for entry in entries if entry.what == "decision" and entry.version == version]
    if not decided:
        return "it was not compared."
    return f"better, {decided[-1].reason}." if decided[-1].better else decided[-1].reason


def _reason(reason: str) -> str:
    if not reason.strip():
        raise UserError("--reason takes a sentence for the history: why is this version put in use?")
    return visible(reason.strip(), 500).removesuffix(".")


def _base(manifest: Manifest) -> BaseModelRef:
    source, revision = (str(manifest.identity.config.get(name, "")) for name in ("source", "revision"))
    base = present_model(ModelConfig(base=BUNDLED if source == BUNDLED_SOURCE else source, revision=revision))
    if base is None:
        raise UserError(
            f"The base {source} is not on this machine, and a version is tried on it before it is put in use."
        )
    return base
