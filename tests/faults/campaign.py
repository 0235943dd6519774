"""Faults at random moments, then the same command again: does every run complete with the same adapter?

    python -m tests.faults.campaign --runs 100 --seed 0

Each run starts from an empty store. After its fault the same command runs again, and then must hold: it completes; the
adapter is bit for bit the undisturbed one; no stage that had finished (and was not damaged) is computed again; versions
have no gaps, one champion verifies and is the history's, and one look was spent; no process outlives the fault by 15 s;
no half folder, checkpoint or temporary file is left. A run that fails one of these is lost; its folder is kept.

Runs are forks of this process, which spares them the imports; with --fresh every process starts from nothing.
"""

import argparse
import contextlib
import errno
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults import forked
from tests.faults.bench import (
    Run,
    Server,
    adapter,
    environment,
    leftovers,
    may_mount,
    mount,
    processes,
    stages,
    undecided,
    unmount,
    used_kib,
    write_config,
)

DEATH_SECONDS = 15
OUTAGE_SECONDS = 20


@dataclass
class Bench:
    """What all runs share: how an undisturbed run went."""

    config: Path
    api: str
    fork: bool
    adapter: str = ""
    seconds: float = 0
    operations: int = 0  # files it opened for writing, renamed or made in its store
    kib: int = 0  # what its store took on the disk in the end

    def run(self, store: Path, *command: str, **faults: str) -> Run:
        return Run(self.config, store, self.api, self.fork, command, **faults)


def signalled(number: signal.Signals) -> Callable[..., list[str]]:
    def fault(bench: Bench, store: Path, chance: random.Random) -> list[str]:
        run = bench.run(store)
        if run.wait(chance.uniform(0.2, bench.seconds)) is None:
            run.process.send_signal(number)
            run.wait()
        return []

    return fault


def killed_child(bench: Bench, store: Path, chance: random.Random) -> list[str]:
    """A child process is killed: the run itself goes on from its checkpoint."""
    run, killed = bench.run(store), []
    while run.wait(0.05) is None and not killed:
        if [p for p in processes(store) if p != run.process.pid]:
            run.wait(chance.uniform(0, bench.seconds / 5))
            killed = [p for p in processes(store) if p != run.process.pid]  # this one, or the next stage's
            for child in killed:
                kill(child)
    if not killed:
        return ["no child was found to kill"]
    return [] if run.wait() == 0 else ["the run did not survive the death of its child"]


def kill(id: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(id, signal.SIGKILL)


def failing(number: int) -> Callable[..., list[str]]:
    def fault(bench: Bench, store: Path, chance: random.Random) -> list[str]:
        nth = str(chance.randint(1, bench.operations))
        counter = store.parent / "operations"
        bench.run(store, FAULT_ERRNO=str(number), FAULT_NTH=nth, FAULT_COUNTER=str(counter)).wait()
        return []

    return fault


def full_disk(bench: Bench, store: Path, chance: random.Random) -> list[str]:
    """The store's disk is too small, whoever writes: Python, Arrow or torch. Then it has room again."""
    store.mkdir()
    mount(store, chance.randint(bench.kib // 20, bench.kib * 9 // 10))
    run = bench.run(store)
    run.wait()
    mount(store, 4 * bench.kib + 65_536, remount=True)
    return [] if "full" in run.log.read_text() else ["the full disk is not named"]


def flipped(bench: Bench, store: Path, chance: random.Random) -> list[str]:
    """One bit of a file of a result turns over, its manifest included; its size and name stay."""
    bench.run(store).wait()
    folder = chance.choice(sorted(store.glob("artifacts/*")))
    file = chance.choice([p for p in sorted(folder.rglob("*")) if p.is_file()])
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return [folder.name]


def unlisted(bench: Bench, store: Path, chance: random.Random) -> list[str]:
    bench.run(store).wait()
    folder = chance.choice(sorted(store.glob("artifacts/*")))
    (folder / "manifest.json").unlink()
    return [folder.name]


def by_hand(bench: Bench, store: Path, chance: random.Random) -> list[str]:
    """Commands that move the champion are killed, one after the other."""
    bench.run(store).wait()
    registry = store / "registry" / "adapter"
    shutil.copytree(registry / "v0001", registry / "v0002")
    for action in ("promote", "rollback", "promote", "rollback"):
        version = "v0002" if action == "promote" else "v0001"
        run = bench.run(store, "adapters", action, f"adapter@{version}", "--reason", "a test")
        if run.wait(chance.uniform(0, bench.seconds / 4)) is None:
            run.process.kill()
            run.wait()
    return []


def clock_back(bench: Bench, store: Path, chance: random.Random) -> list[str]:
    """Killed, and the rest of the attempts live a day earlier."""
    run = bench.run(store)
    if run.wait(chance.uniform(0.5, bench.seconds)) is None:
        run.process.kill()
        run.wait()
    bench.run(store, FAULT_CLOCK="-86400").wait()
    return []


def server_gone(bench: Bench, store: Path, chance: random.Random) -> list[str]:
    """The server of this run alone stops for a while, and comes back with what it knew."""
    store.parent.joinpath("server").mkdir()
    server = Server(store.parent / "server")
    try:
        run = replace(bench, api=server.url).run(store)
        run.wait(chance.uniform(0.5, bench.seconds))
        server.stop()
        time.sleep(OUTAGE_SECONDS)
        server.start()
        run.wait()
    finally:
        server.stop()
    return []


FAULTS: dict[str, tuple[int, Callable[..., list[str]]]] = {
    "SIGKILL": (24, signalled(signal.SIGKILL)),
    "SIGTERM": (18, signalled(signal.SIGTERM)),
    "champion moved": (6, by_hand),
    "child killed": (12, killed_child),
    "ENOSPC": (9, failing(errno.ENOSPC)),
    "EIO": (9, failing(errno.EIO)),
    "disk full": (6, full_disk),
    "bit flipped": (5, flipped),
    "manifest deleted": (4, unlisted),
    "clock a day back": (4, clock_back),
    "server away 20 s": (3, server_gone),
}
"""Name → how many of a hundred runs it strikes, and what it does; it returns the results it damaged."""


def attempt(bench: Bench, name: str, number: int, seed: int) -> list[str]:
    """One fault and the run after it. Returns what is wrong."""
    folder = Path(tempfile.mkdtemp(prefix=f"run-{number}-", dir=bench.config.parent))
    store = folder / "store"
    damaged = FAULTS[name][1](bench, store, random.Random(f"{seed} {number}"))
    wrong = [d for d in damaged if " " in d]
    end = time.monotonic() + DEATH_SECONDS
    while (alive := processes(store)) and time.monotonic() < end:
        time.sleep(0.1)
    if alive:
        wrong.append(f"processes {alive} live on")
    finished = {stage: inode for stage, inode in stages(store).items() if stage not in damaged}
    if (status := bench.run(store).wait()) != 0:
        wrong.append(f"the run after it ended with {status}")
    if again := [stage for stage, inode in finished.items() if stages(store).get(stage) != inode]:
        wrong.append(f"computed again: {', '.join(again)}")
    if adapter(store) != bench.adapter:
        wrong.append("another adapter")
    wrong += undecided(store)
    wrong += [f"left behind: {path}" for path in leftovers(store)]
    if store.is_mount():
        unmount(store)
    if not wrong:
        shutil.rmtree(folder)
    return wrong


def drawn(runs: int, seed: int) -> list[str]:
    """Which fault strikes which run: by shares, at least one of each where there is room and right to it."""
    faults = {name: fault for name, fault in FAULTS.items() if name != "disk full" or may_mount()}
    names = [name for name, (share, _) in faults.items() for _ in range(max(1, round(share * runs / 100)))]
    random.Random(seed).shuffle(names)
    return names[:runs]


def campaign(names: list[str], seed: int, folder: Path, parallel: int, fork: bool = False) -> dict[str, list[str]]:
    """Run the faults; returns run → what is wrong with it."""
    config = write_config(folder)
    server = Server(folder)
    try:
        bench = undisturbed(Bench(config, server.url, fork), folder / "calm")
        print(f"an undisturbed run takes {bench.seconds:.1f} s, {bench.operations} operations on its store", flush=True)

        def one(job: tuple[int, str]) -> tuple[str, list[str]]:
            number, name = job
            began = time.monotonic()
            wrong = attempt(bench, name, number, seed)
            took = time.monotonic() - began
            print(f"{number:4} {name:18} {took:5.1f} s  {'; '.join(wrong) or 'survived'}", flush=True)
            return f"{number} {name}", wrong

        with ThreadPoolExecutor(parallel) as pool:
            return dict(pool.map(one, enumerate(names)))
    finally:
        server.stop()


def undisturbed(bench: Bench, folder: Path) -> Bench:
    """The bench with how a run goes that nothing disturbs."""
    began = time.monotonic()
    counter, store = folder / "operations", folder / "store"
    count = {"FAULT_ERRNO": "0", "FAULT_NTH": "0", "FAULT_COUNTER": str(counter)}  # counts and never fails
    status = bench.run(store, **count).wait()
    seconds = time.monotonic() - began
    made = adapter(store)
    if status != 0 or made == "none" or leftovers(store):
        raise RuntimeError(f"the undisturbed run failed, see {folder / 'run.log'}")
    return replace(bench, adapter=made, seconds=seconds, operations=counter.stat().st_size, kib=used_kib(store))


def table(results: dict[str, list[str]], faults: Iterable[str] = FAULTS) -> str:
    """How many runs of each fault were tried, survived and lost."""
    tried = Counter(run.split(" ", 1)[1] for run in results)
    lost = Counter(run.split(" ", 1)[1] for run, wrong in results.items() if wrong)
    rows = [(name, tried[name], lost[name]) for name in faults] + [("all", tried.total(), lost.total())]
    return "\n".join(
        [f"{'fault':22} {'tried':>6} {'survived':>9} {'lost':>5}"]
        + [f"{name:22} {count:6} {count - bad:9} {bad:5}" for name, count, bad in rows]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side")
    parser.add_argument("--fresh", action="store_true", help="every process imports all anew: four times as long")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="qlora-flow-faults-"))
    began = time.monotonic()
    if not options.fresh:
        os.environ.update(environment(folder, ""))
        forked.preload()
    results = campaign(drawn(options.runs, options.seed), options.seed, folder, options.parallel, not options.fresh)
    print(f"\n{table(results)}\n\n{(time.monotonic() - began) / 60:.1f} minutes, seed {options.seed}")
    if any(results.values()):
        print(f"what is left of the lost runs: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
