"""Faults at random moments of publish, decide, promote and rollback: what is in use, and what was decided, stays right.

    python -m tests.faults.promotion --runs 100 --seed 0

Each run starts from a registry with a champion, the version before it and one that was refused; its adapters load on a
tiny base, and their scores are given. One action, or three at once, meets a fault; then the same runs again. It must
complete as if nothing had been, and hold: versions have no gaps, the champion verifies and is the history's, no line of
the history is lost or changed, no look is spent twice, nothing is decided twice or otherwise, the page tells the
history, and no half folder is left.

Actions are forks of this process, which spares them the imports; so are the clean rooms that they start.
"""

import argparse
import errno
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.promotion import champion
from tasks.promotion.task import PAGE, page
from tasks.publishing.registry import versions
from tasks.store.model import BaseModelRef
from tests.faults import forked
from tests.faults.bench import may_mount, mount, unmount, used_kib
from tests.faults.campaign import table

CHANGES = {"open", "os.rename", "os.mkdir", "os.symlink", "os.remove", "os.rmdir"}


@dataclass(frozen=True)
class Action:
    """Something that may move the champion.

    Args:
        do: returns the sentence that a user reads.
        then: what is in use afterwards.
        moves: how often the champion moves.
        published: how many versions there are afterwards.
    """

    do: Callable[[Path], str]
    then: str
    moves: int = 1
    published: int = 3


def retrain(weights: str, shift: float, root: Path) -> str:
    from tests.promotion.registry import run

    base = BaseModelRef.of(root / "base", str(root / "base"), "")
    return run(weights, shift, base=base, adapter=root / "adapter").sentence


def by_hand(action: str, version: str, root: Path) -> str:
    from flows.promote import promote_version, roll_back

    if action == "promote":
        return promote_version("adapter", version, "a test")
    return roll_back("adapter", "a test", version)


ACTIONS = {
    "a better one": Action(functools.partial(retrain, "d", -0.1), "v0004", published=4),
    "a tie": Action(functools.partial(retrain, "e", 0.0), "v0002", 0, 4),
    "promote": Action(functools.partial(by_hand, "promote", "v0003"), "v0003"),
    "rollback": Action(functools.partial(by_hand, "rollback", "v0001"), "v0001"),
}


@dataclass
class Calm:
    """How an action went that nothing disturbed."""

    seconds: float
    operations: int
    kib: int
    sentence: str


class Process:
    """An action in a process of its own, a fork of this one."""

    def __init__(self, root: Path, folder: Path, action: Action, at: int = 0, number: int = 0) -> None:
        """`at`: operation on the store in which it is killed, or, with an error's `number`, fails."""
        self.log = folder / "log"
        self.id = os.fork()
        if self.id == 0:
            status = 1
            try:
                os.setsid()
                output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(output, 1), os.dup2(output, 2)
                os.environ["QLORA_FLOW_STORE"] = str(folder / "store")
                watch(folder, at, number)
                print(f"\n> {action.do(root)}", flush=True)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)

    def wait(self, seconds: float = 300) -> int | None:
        """Exit status, negative for a signal; None while it runs on."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            id, status = os.waitpid(self.id, os.WNOHANG)
            if id:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        return None

    def kill_after(self, seconds: float) -> None:
        if self.wait(seconds) is None:
            os.kill(self.id, signal.SIGKILL)
            os.waitpid(self.id, 0)


def watch(folder: Path, at: int, number: int) -> None:
    """Count what this process changes in the store; the `at`th change is one it does not live to make, or fails."""
    store, counter, me, count = f"{folder}/store/", folder / "operations", os.getpid(), 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in CHANGES or not any(str(part).startswith(store) for part in arguments[:2]) or os.getpid() != me:
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        count += 1
        descriptor = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, str(count).encode())
        os.close(descriptor)
        if count == at:
            if not number:
                os.kill(me, signal.SIGKILL)
            raise OSError(number, os.strerror(number), str(arguments[0]))

    sys.addaudithook(hook)


def killed_in_time(root: Path, folder: Path, action: Action, calm: Calm, chance: random.Random) -> None:
    Process(root, folder, action).kill_after(chance.uniform(0, 1.1 * calm.seconds))


def killed_in_step(root: Path, folder: Path, action: Action, calm: Calm, chance: random.Random) -> None:
    Process(root, folder, action, chance.randint(1, calm.operations)).wait()


def failing(number: int, root: Path, folder: Path, action: Action, calm: Calm, chance: random.Random) -> None:
    Process(root, folder, action, chance.randint(1, calm.operations), number).wait()


def full_disk(root: Path, folder: Path, action: Action, calm: Calm, chance: random.Random) -> None:
    """The disk that the store is on has almost no room; then it has."""
    store, aside = folder / "store", folder / "before"
    store.rename(aside)
    store.mkdir()
    mount(store, used_kib(aside) + chance.randint(0, calm.kib))
    shutil.copytree(aside, store, symlinks=True, dirs_exist_ok=True)
    Process(root, folder, action).wait()
    mount(store, 65_536, remount=True)


def three_at_once(root: Path, folder: Path, action: Action, calm: Calm, chance: random.Random) -> None:
    """The action, another retrain and a rollback; one of them is killed."""
    others = [action, Action(functools.partial(retrain, "f", -0.1), ""), ACTIONS["rollback"]]
    processes = [Process(root, folder, each) for each in others]
    chance.shuffle(processes)
    processes[0].kill_after(chance.uniform(0, 2 * calm.seconds))
    for process in processes[1:]:
        process.wait()
    Process(root, folder, others[1]).wait()


FAULTS: dict[str, tuple[int, Callable[..., None]]] = {
    "SIGKILL at a moment": (35, killed_in_time),
    "SIGKILL at a step": (35, killed_in_step),
    "no space at a step": (8, functools.partial(failing, errno.ENOSPC)),
    "disk error at a step": (4, functools.partial(failing, errno.EIO)),
    "a small disk": (6, full_disk),
    "three at once": (12, three_at_once),
}


def attempt(root: Path, folder: Path, fault: str, name: str, calm: Calm, chance: random.Random) -> list[str]:
    """One run; returns what is wrong afterwards."""
    action, alone = ACTIONS[name], fault != "three at once"
    shutil.copytree(root / "calm" / "store", folder / "store", symlinks=True)
    registry = folder / "store" / "registry" / "adapter"
    before = champion.read(registry)
    FAULTS[fault][1](root, folder, action, calm, chance)
    wrong = []
    if Process(root, folder, action).wait() != 0:
        wrong.append("the action fails when it runs again")
    try:
        entries = champion.read(registry)
    except UserError as error:
        return [*wrong, str(error)]
    if entries[: len(before)] != before:
        wrong.append("the history changed")
    for what in ("look", "decision"):
        keys = Counter(entry.key for entry in entries if entry.what == what)
        wrong += [f"{count} times the same {what}" for count in keys.values() if count > 1]
    names = [path.name for path in versions(registry)]
    if names != [f"v{n:04d}" for n in range(1, len(names) + 1)]:
        wrong.append(f"numbers with gaps: {names}")
    now = champion.champion_of(entries)
    if champion.pointer(registry) != now:
        wrong.append(f"{champion.pointer(registry) or 'nothing'} is in use, {now} in the history")
    for name_ in names:
        if subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=registry / name_).returncode:
            wrong.append(f"{name_} does not verify")
    if (registry / PAGE).read_text() != page(registry.name, entries):
        wrong.append("the page does not tell the history")
    wrong += [f"left behind: {path}" for path in (folder / "store").rglob(".v*")]
    if alone:  # else a look may have lost its champion before it was decided, and is spent
        if {e.key for e in entries if e.what == "look"} != {e.key for e in entries if e.what == "decision"}:
            wrong.append("a look without a decision")
        new = entries[len(before) :]
        if now != action.then or len(names) != action.published:
            wrong.append(f"{now} of {len(names)} is in use instead of {action.then}")
        if (moves := sum(entry.what == "move" for entry in new)) != action.moves:
            wrong.append(f"{moves} moves instead of {action.moves}")
        if calm.sentence not in [entry.said for entry in new]:
            wrong.append(f"it was decided otherwise than {calm.sentence!r}")
    return wrong


def campaign(runs: int, seed: int, root: Path) -> dict[str, list[str]]:
    """Run the faults; returns run → what is wrong with it."""
    setup = Process(root, _folder(root / "calm"), Action(prepare, ""))
    if setup.wait() != 0:
        raise RuntimeError(f"the registry could not be prepared, see {setup.log}")
    calm = {}
    for name, action in ACTIONS.items():
        folder = _folder(root / f"calm {name}")
        shutil.copytree(root / "calm" / "store", folder / "store", symlinks=True)
        began, size = time.monotonic(), used_kib(folder / "store")
        if Process(root, folder, action).wait() != 0:
            raise RuntimeError(f"{name} failed undisturbed, see {folder / 'log'}")
        seconds, said = time.monotonic() - began, (folder / "log").read_text().rpartition("\n> ")[2].strip()
        operations = int((folder / "operations").read_text())
        calm[name] = Calm(seconds, operations, used_kib(folder / "store") - size, said)
        print(f"{name}: {seconds:.1f} s, {operations} operations. {said}", flush=True)
    results = {}
    for number, (fault, name) in enumerate(drawn(runs, seed)):
        folder = _folder(root / f"{number}")
        began = time.monotonic()
        wrong = attempt(root, folder, fault, name, calm[name], random.Random(f"{seed} {number}"))
        results[f"{number} {fault}"] = wrong
        took, what = time.monotonic() - began, "; ".join(wrong) or "survived"
        print(f"{number:4} {fault:22} {name:14} {took:5.1f} s  {what}", flush=True)
        if (folder / "store").is_mount():
            unmount(folder / "store")
        if not wrong:
            shutil.rmtree(folder)
    return results


def prepare(root: Path) -> str:
    """A base, an adapter that is better on its own answers, and a registry: v0002 is in use, v0001 was, v0003 is no
    better."""
    from tests.promotion.registry import adapter_with_answers
    from tests.tiny import make_model

    adapter_with_answers(root / "adapter", make_model(root / "base"))
    for weights, shift in (("a", -0.1), ("b", -0.1), ("c", 0.0)):
        print(retrain(weights, shift, root))
    return "prepared"


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def drawn(runs: int, seed: int) -> list[tuple[str, str]]:
    """Fault and action of each run."""
    faults = {name: share for name, (share, _) in FAULTS.items() if name != "a small disk" or may_mount()}
    chance = random.Random(seed)
    names = [name for name, share in faults.items() for _ in range(max(1, round(share * runs / 100)))]
    chance.shuffle(names)
    return [(name, chance.choice([*ACTIONS])) for name in names[:runs]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", DO_NOT_TRACK="1")
    forked.preload()
    import tests.promotion.registry  # noqa: F401 (before the forks, which then need no import of it)

    root, began = Path(tempfile.mkdtemp(prefix="qlora-flow-faults-")), time.monotonic()
    results = campaign(options.runs, options.seed, root)
    print(f"\n{table(results, FAULTS)}\n\n{(time.monotonic() - began) / 60:.1f} minutes, seed {options.seed}")
    if any(results.values()):
        print(f"what is left of the lost runs: {root}")
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
