"""What the campaign runs: one server, a tiny model, and a flow in processes of its own."""

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tasks.errors import UserError
from tasks.promotion import champion
from tasks.publishing.registry import versions
from tests.faults.forked import Forked, process_name
from tests.tiny import make_model, make_rows, write_jsonl

ROOT = Path(__file__).parents[2]
INJECT = Path(__file__).with_name("inject")
LIMIT_SECONDS = 300


class Server:
    """A Prefect server on loopback that can be stopped and started again with what it knew."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.folder = folder
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--no-ui"],
                env=environment(self.folder, ""),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2)
                return
            except OSError:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise
                time.sleep(0.3)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def environment(home: Path, api: str, **more: str) -> dict[str, str]:
    """Nothing leaves the machine; one thread, so that two runs side by side compute the same numbers."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "FAULT_"))}
    return kept | {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{INJECT}{os.pathsep}{ROOT}",
        **({"PREFECT_API_URL": api} if api else {}),
        **more,
    }


def write_config(folder: Path) -> Path:
    """A retrain of seconds, with a checkpoint at every tenth of it so that kills hit their writing as well."""
    data = write_jsonl(folder / "rows.jsonl", make_rows(40))
    model = make_model(folder / "model")
    config = {
        "data": {"path": str(data)},
        "model": {"base": str(model)},
        "training": {"lora_r": 4, "max_steps": 60},
        "evaluation": {"max_rows": 2, "max_new_tokens": 2},
        "promotion": {"error_rate": 0.5, "comparisons": 1},  # two rows suffice to be better than the base
        "execution": {"retry_seconds": 0.5, "checkpoint_steps": 6},
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    return file


class Run:
    """One `qlora-flow run`, or another command, on a store, in a process and with a temporary folder of its own."""

    process: subprocess.Popen[bytes] | Forked

    def __init__(
        self, config: Path, store: Path, api: str, fork: bool = False, command: Sequence[str] = (), **faults: str
    ) -> None:
        temporary = store.parent / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        places = {"QLORA_FLOW_STORE": str(store), "TMPDIR": str(temporary)}
        self.log = store.parent / "run.log"
        with self.log.open("a") as log:
            start = Forked if fork else subprocess.Popen
            self.process = start(
                [sys.executable, "-m", "flows", *(command or ("run", str(config)))],
                env=environment(config.parent, api, **places, **faults),
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, seconds: float = LIMIT_SECONDS) -> int | None:
        """Exit status, or None while it runs on."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


def mount(store: Path, kib: int, remount: bool = False) -> None:
    """Give a store a disk of its own, of so many KiB."""
    options = f"size={kib}k" + (",remount" if remount else "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(store)], check=True, capture_output=True)


def unmount(store: Path) -> None:
    """Take a store's own disk away, also one that a file is still open on."""
    subprocess.run(["umount", "--lazy", str(store)], check=True)


def may_mount() -> bool:
    """Whether this process may make disks."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            mount(Path(folder), 64)
        except (OSError, subprocess.CalledProcessError):
            return False
        unmount(Path(folder))
        return True


def used_kib(store: Path) -> int:
    """What a store takes on its disk."""
    return sum(p.lstat().st_blocks for p in store.rglob("*")) // 2


def stages(store: Path) -> dict[str, int]:
    """Finished results and the inode of their manifests: another inode means computed again.

    Kept answers are no stage's result: they are written anew whenever some are added, first losses, then answers.
    """
    finished = store.glob("artifacts/[!.]*/manifest.json")
    return {file.parent.name: file.stat().st_ino for file in finished if not file.parent.name.startswith("answers-")}


def adapter(store: Path) -> str:
    """sha256 of the adapter that was published last."""
    files = sorted(store.glob("registry/*/v*/adapter_model.safetensors"))
    return hashlib.sha256(files[-1].read_bytes()).hexdigest() if files else "none"


def undecided(store: Path) -> list[str]:
    """What is wrong with versions, champion and history after a run that promotes its version."""
    folder, wrong = store / "registry" / "adapter", []
    names = [path.name for path in versions(folder)]
    if names != [f"v{n:04d}" for n in range(1, len(names) + 1)]:
        wrong.append(f"numbers with gaps: {names}")
    try:
        entries = champion.read(folder)
    except UserError as error:
        return [*wrong, str(error)]
    if not champion.champion_of(entries) or champion.pointer(folder) != champion.champion_of(entries):
        wrong.append(
            f"{champion.pointer(folder) or 'nothing'} is in use, {champion.champion_of(entries)} in the history"
        )
    elif subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder / "champion").returncode:
        wrong.append("the champion does not verify")
    if (looks := sum(entry.what == "look" for entry in entries)) != 1:
        wrong.append(f"{looks} looks instead of 1")
    return wrong


def processes(store: Path) -> list[int]:
    """Processes that work on a store: by their environment, forks by their name."""
    mark, name = f"QLORA_FLOW_STORE={store}\0".encode(), process_name(str(store))
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "comm").read_text().strip() == name or mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def leftovers(store: Path) -> list[str]:
    """What a run that is over should not have left: half folders, checkpoints, temporary files, held locks."""
    half = [p for p in store.rglob(".*") if p.is_dir() or p.name.startswith(".writing")]
    held = [p for p in store.glob("locks/*") if not is_free(p)]
    return [str(p) for p in [*half, *held, *store.glob("work/*"), *(store.parent / "tmp").iterdir()]]


def is_free(lock: Path) -> bool:
    """Whether no process holds a lock of a store."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
