"""GPU work runs in a child process of its own: its memory is really freed, and it can be ended at any moment.

Parent: `run_child("tasks.training.worker", job, logger)`. Child: `if __name__ == "__main__": main(train)`.
A child's printed lines become log lines of the task; a user's mistake travels back as one sentence.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.errors import UserError

GRACE_SECONDS = 12.0
USER_ERROR_EXIT = 3
_PR_SET_PDEATHSIG = 1


class ChildFailed(RuntimeError):
    """The child ended with an error that is nobody's typing mistake; the message holds its last lines."""


def run_child(module: str, job: dict[str, Any], log: Callable[[str], None]) -> None:
    """Run `python -m MODULE` on a job and wait; whatever interrupts the wait also ends the child and its children.

    Args:
        module: importable module that calls `main`.
        job: JSON-serializable arguments.
        log: receives every line the child prints.
    Raises:
        UserError: the child found a mistake in configuration or data.
        ChildFailed: the child ended otherwise than by finishing.
    """
    with tempfile.TemporaryDirectory(prefix="qlora-flow-") as folder:
        job_file = Path(folder, "job.json")
        job_file.write_text(json.dumps(job))
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(job_file), str(os.getpid())],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,  # so that its whole group can be ended, and Ctrl-C reaches only the parent
        )
        lines: list[str] = []
        pump = threading.Thread(target=_pump, args=(process, lines, log), daemon=True)
        pump.start()
        try:
            code = process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            pump.join(timeout=5)
        message = Path(folder, "error")
        if code == USER_ERROR_EXIT and message.exists():
            raise UserError(message.read_text())
        if code != 0:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise ChildFailed(f"{module} {how}:\n" + "\n".join(lines[-25:]))


def _pump(process: subprocess.Popen[str], lines: list[str], log: Callable[[str], None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line := line.rstrip():
            lines[:] = [*lines[-200:], line]
            log(line)


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM, a grace period to save a checkpoint, then SIGKILL for the whole process group."""
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # grandchildren that outlived their parent


def main(work: Callable[[dict[str, Any]], None]) -> None:
    """Entry of a child: read the job, follow the parent into death, turn mistakes into one sentence."""
    job_file, parent = Path(sys.argv[1]), int(sys.argv[2])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before prctl took effect
        sys.exit(1)
    try:
        work(json.loads(job_file.read_text()))
    except UserError as error:
        job_file.with_name("error").write_text(str(error))
        sys.exit(USER_ERROR_EXIT)
