"""Check this machine: what would a run lack, and how can it be repaired?"""

import argparse
import fcntl
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from flows.commands.environment import local_settings
from tasks.process.child import main as child
from tasks.process.child import run_child
from tasks.store.root import LITTLE_DISK, existing, store_root
from tasks.text import visible

Finding = tuple[str, str, str]
"""(`ok`, `warning` or `fail`; what was found; how to repair it)"""

PINS = Path(__file__).parents[2] / "constraints.txt"  # where the project is installed from its repository
INSTALL = "pip install -c constraints.txt ."
NO_DISK = 1 << 30
LARGEST_SKEW_SECONDS = 60
DATES: dict[str, str] = {}
"""URL → the `Date` header of a server that answered."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """It takes none."""


def main(options: argparse.Namespace) -> int:
    """Returns 1 if a run would fail, else 0, also with warnings."""
    from flows.server import reach_this_machine_directly

    local_settings()
    reach_this_machine_directly()
    failed = False
    for title, check in CHECKS.items():
        try:
            findings = [*check()]
        except Exception as error:
            findings = [("fail", f"{type(error).__name__}: {error}", "")]
        for status, found, repair in findings:
            failed |= status == "fail"
            print(f"{status:<8} {title:<8} {visible(found)}", flush=True)
            if repair and status != "ok":
                print(f"{'→':>17} {visible(repair)}", flush=True)
    return int(failed)


def _python() -> Iterator[Finding]:
    fits = sys.version_info >= (3, 11) and sys.platform == "linux"
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "ok" if fits else "fail", found, "qlora-flow needs Python 3.11 or newer on Linux."


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    needs = [Requirement(line) for line in importlib.metadata.requires("qlora-flow") or []]
    needs = [need for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    wrong = [
        f"{need.name} {version or 'is missing'} (needs {need.specifier})"
        for need in needs
        if not (version := _installed(need.name)) or not need.specifier.contains(version, prereleases=True)
    ]
    yield "fail" if wrong else "ok", ", ".join(wrong) or f"all {len(needs)} requirements are met", INSTALL
    pins = dict(line.split("==") for line in PINS.read_text().split() if "==" in line) if PINS.is_file() else {}
    others = [
        f"{name} {version}, tested with {pin}"
        for name, pin in pins.items()
        if (version := _installed(name)) and version.partition("+")[0] != pin.partition("+")[0]
    ]
    if others:
        yield "warning", "; ".join(others), INSTALL


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _gpu() -> Iterator[Finding]:
    said: list[str] = []
    try:
        run_child("flows.commands.doctor", {}, said.append, hang_minutes=5)  # CUDA may hang or crash
    except Exception as error:
        yield "fail", f"4-bit forward and backward: {error}", "Install torch and bitsandbytes for this GPU and driver."
        return
    found, driver = json.loads(said[-1]), _driver()
    if found["gpu"]:
        about = f"{found['gpu']}, {found['memory'] / 2**30:.0f} GiB, driver {driver or 'unknown'}, CUDA {found['cuda']}"
        old = "It has no bfloat16 (compute capability below 8.0): set training.compute_dtype to float16."
        yield "ok" if found["capability"] >= 8 else "warning", about, old
    else:
        why = f"torch {found['torch']} sees no GPU" + (f", though driver {driver} is there" if driver else "")
        cpu = "Small bases train on the CPU in minutes to hours; others need an NVIDIA GPU."
        yield "warning", why, f"Install torch for a CUDA version of driver {driver}." if driver else cpu
    works = f"4-bit forward and backward: the gradient is within {found['error']:.1%} of the dequantized layer's"
    yield "ok" if found["error"] < 0.05 else "fail", works, f"bitsandbytes computes wrongly here. {INSTALL}"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.partition("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def probe(job: dict[str, Any]) -> None:
    """In a child: print the GPU, and the error of a 4-bit layer's gradient compared with its dequantized weights."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    device = torch.device("cuda" if gpu else "cpu")
    layer = Linear4bit(256, 256, bias=False, compute_dtype=torch.float32, quant_type="nf4").to(device)
    rows = torch.randn(8, 256, device=device, requires_grad=True)
    packed: Any = layer.weight
    weights = dequantize_4bit(packed.data, packed.quant_state).float()
    (own,) = torch.autograd.grad(layer(rows).square().sum(), rows)
    (expected,) = torch.autograd.grad((rows @ weights.T).square().sum(), rows)
    found = {"error": float((own - expected).norm() / expected.norm()), "torch": torch.__version__}
    found |= {"gpu": gpu.name if gpu else "", "memory": gpu.total_memory if gpu else 0}
    print(json.dumps(found | {"capability": gpu.major if gpu else 0, "cuda": torch.version.cuda}))


def _disk() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for what, folder in (("the store", store_root()), ("models of the Hub", Path(HF_HUB_CACHE))):
        free = shutil.disk_usage(existing(folder)).free
        status = "ok" if free > LITTLE_DISK else "fail" if free < NO_DISK else "warning"
        repair = "A base of 8B takes 16 GB. qlora-flow clean --dry-run lists results that can go."
        yield status, f"{free / 2**30:,.0f} GiB free for {what} in {folder}", repair


def _store() -> Iterator[Finding]:
    from tasks.store.remote import Remote

    try:
        with tempfile.NamedTemporaryFile(dir=existing(store_root())) as file, Path(file.name).open("rb") as other:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield "fail", f"{store_root()}: one lock is granted twice", "Put the store on a local disk or on NFSv4."
            except BlockingIOError:
                yield "ok", f"{store_root()} can be written, and its locks hold", ""
    except OSError as error:
        repair = "Let this user write there, or name another folder by QLORA_FLOW_STORE or --store."
        yield "fail", f"{store_root()} cannot be used: {error.strerror}", repair
    try:
        if remote := Remote.configured():
            remote.manifest("doctor")
            yield "ok", f"{remote.url} can be read", ""
    except Exception as error:  # each file system raises its own
        yield "fail", str(error), "Check QLORA_FLOW_REMOTE, its credentials and the network."


def _hub() -> Iterator[Finding]:
    from huggingface_hub import HfApi, constants, get_session, get_token

    token = get_token()
    who = f"token {token[:3]}…{token[-2:]}" if token else "no token"
    if constants.HF_HUB_OFFLINE:
        yield "ok", f"HF_HUB_OFFLINE is set, so nothing is asked; {who}", ""
        return
    try:
        DATES[constants.ENDPOINT] = get_session().head(constants.ENDPOINT, timeout=10).headers.get("date", "")
    except Exception as error:  # of whichever client the Hub's library uses
        repair = "Files and models on this machine work without it. Check HTTPS_PROXY, or set HF_HUB_OFFLINE=1."
        yield "warning", f"{constants.ENDPOINT} does not answer: {error}", repair
        return
    try:
        who += f" {HfApi().whoami(token)['name']}" if token else ""
    except Exception as error:
        yield "fail", f"{constants.ENDPOINT} refuses the {who}: {error}", "Put a valid token into HF_TOKEN, or none."
        return
    repair = "Gated models, private data and uploads need HF_TOKEN; nothing else does."
    yield "ok" if token else "warning", f"{constants.ENDPOINT} answers; {who}", repair


def _prefect() -> Iterator[Finding]:
    import prefect
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    own, url = prefect.__version__, get_current_settings().api.url
    if not url:
        yield "ok", f"Prefect {own}; PREFECT_API_URL is not set, so each run starts a server of its own", ""
        return
    try:
        with get_client(sync_client=True) as client:
            DATES[url], version = client.hello().headers.get("date", ""), client.api_version()
    except Exception as error:  # of whichever client Prefect uses
        repair = "Start it (qlora-flow serve), or unset PREFECT_API_URL. If it says 401, set PREFECT_API_AUTH_STRING."
        yield "fail", f"{url} does not answer: {error}", repair
        return
    theirs, ours = ([int(part) for part in text.split(".")[:2]] for text in (version, own))
    repair = "Update the server: it should not be older than its clients."
    yield "warning" if theirs < ours else "ok", f"{url} is Prefect {version}; this is {own}", repair


def _clock() -> Iterator[Finding]:
    repair = "Set the clock by NTP (timedatectl set-ntp true): schedules and signed requests depend on it."
    now = time.time()
    for whose, date in DATES.items():
        skew = now - parsedate_to_datetime(date).timestamp() if date else 0
        status = "ok" if abs(skew) < LARGEST_SKEW_SECONDS else "fail"
        yield status, f"{abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} {whose}", repair
    if not DATES:
        status = "ok" if now > Path(__file__).stat().st_mtime else "fail"
        yield status, f"{time.ctime(now)}; no server answers to compare it with", repair


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "Python": _python,
    "packages": _packages,
    "GPU": _gpu,
    "disk": _disk,
    "store": _store,
    "Hub": _hub,
    "Prefect": _prefect,
    "clock": _clock,
}

if __name__ == "__main__":
    child(probe)
