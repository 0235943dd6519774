"""Child processes. GPU work runs in one: when it ends its memory is free, and it can be ended at any moment.

Parent: `run_child("tasks.training.worker", job, log)`. Child: `if __name__ == "__main__": main(train, TrainingJob)`.
The child's printed lines become log lines of the task; a UserError comes back as its sentence.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from tasks.errors import UserError
from tasks.process.failures import ChildFailed, full_disk, is_transient
from tasks.text import visible

GRACE_SECONDS = 12.0
USER_ERROR_EXIT = 3
STOPPED_EXIT = 143  # a child that was asked to end, and saved its work
TRANSIENT_EXIT = 75  # EX_TEMPFAIL
IMPORT_NOTHING_HERE = {"PYTHONSAFEPATH": "1"}
"""With this environment `python -m` does not import from the working directory, where a tasks.py may be the user's own.
The processes that a child starts inherit it."""
_PR_SET_PDEATHSIG = 1


def run_child(
    module: str, job: BaseModel | dict[str, Any], log: Callable[[str], None], hang_minutes: float | None = None
) -> None:
    """Run `python -m MODULE` on a job and wait; whatever interrupts the wait also ends the child and its children.

    Args:
        module: importable module that calls `main`.
        job: goes to the child as JSON.
        log: receives every line the child prints.
        hang_minutes: a child that prints nothing for this long is ended.
    Raises:
        UserError: the child found a mistake in configuration or data.
        ChildFailed: the child failed.
    """
    with started(module, job, log) as child:
        child.finish(hang_minutes)


@contextlib.contextmanager
def started(
    module: str, job: BaseModel | dict[str, Any], log: Callable[[str], None], pass_fds: tuple[int, ...] = ()
) -> Iterator["Child"]:
    """Like `run_child`, with a body that runs meanwhile; whatever interrupts the body ends the child.

    Args:
        pass_fds: open files that the child gets as well, under the same numbers.
    """
    with _memory_file() as job_file, _memory_file() as sentence:
        os.write(job_file, to_json(job))
        process = subprocess.Popen(
            [sys.executable, "-m", module, f"/proc/self/fd/{job_file}", str(os.getpid()), f"/proc/self/fd/{sentence}"],
            stdin=subprocess.DEVNULL,  # no library's question is answered by what is piped into the command
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **IMPORT_NOTHING_HERE, "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"},
            pass_fds=(job_file, sentence, *pass_fds),
            start_new_session=True,  # so that its whole group can be ended, and Ctrl-C reaches only the parent
        )
        child = Child(module, process, _Output(process, log), sentence)
        try:
            yield child
        except BaseException:
            _end(process)
            raise
        finally:
            child.output.join(timeout=5)


@dataclasses.dataclass(frozen=True)
class Child:
    """A running child."""

    module: str
    process: subprocess.Popen[str]
    output: "_Output"
    sentence: int
    """Where it writes the sentence about a user's mistake."""

    def finish(self, hang_minutes: float | None = None) -> None:
        """Wait for its end; raises as `run_child` does."""
        code = _wait(self.process, self.output, hang_minutes)
        if code == 0:
            return
        if code == USER_ERROR_EXIT:
            raise UserError(*os.pread(self.sentence, 1 << 20, 0).decode().split("\n"))
        self.output.join(timeout=5)  # its last lines
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        transient = code < 0 or code in (STOPPED_EXIT, TRANSIENT_EXIT)
        raise ChildFailed(f"{self.module} {how}:\n" + "\n".join(self.output.lines[-25:]), transient)


@contextlib.contextmanager
def _memory_file() -> Any:
    """A file in memory, which no kill leaves behind."""
    descriptor = os.memfd_create("qlora-flow")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _Output(threading.Thread):
    """Reads a child's lines: logs them, keeps the last ones and the time of the latest."""

    def __init__(self, process: subprocess.Popen[str], log: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self.process, self.log = process, log
        self.lines: list[str] = []
        self.latest = time.monotonic()
        self.start()

    def run(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.latest = time.monotonic()
            if line := visible(line.rstrip()):
                self.lines[:] = [*self.lines[-200:], line]
                self.log(line)


def _wait(process: subprocess.Popen[str], output: _Output, hang_minutes: float | None) -> int:
    if hang_minutes is None:
        return process.wait()
    while True:
        silence_left = output.latest + 60 * hang_minutes - time.monotonic()
        if silence_left <= 0:
            raise ChildFailed(f"the child printed nothing for {hang_minutes:g} minutes and was ended", transient=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(silence_left)


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM, a grace period to save a checkpoint, then SIGKILL for the whole process group."""
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also grandchildren that outlived their parent
    process.wait(5)


def follow_parent(parent: int) -> None:
    """Have the kernel send this process SIGTERM when its parent dies, for whatever reason.

    Args:
        parent: process id; this process exits when it is gone already.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before prctl took effect
        sys.exit(STOPPED_EXIT)


def main(work: Callable[[Any], None], kind: type[BaseModel] | None = None) -> None:
    """Entry of a child: read the job, end when the parent ends, report a UserError as its sentence.

    Command line: JOB (a JSON file), the parent's process id, and where to write the sentence (standard error).

    Args:
        kind: model of the job; without one `work` gets the JSON as it is.
    """
    job, parent, sentence = Path(sys.argv[1]), int(sys.argv[2]), Path(*sys.argv[3:] or ["/dev/stderr"])
    follow_parent(parent)
    try:
        given = job.read_bytes()
        work(kind.model_validate_json(given) if kind else json.loads(given))
    except UserError as error:
        sentence.write_text(str(error))
        sys.exit(USER_ERROR_EXIT)
    except Exception as error:
        if full := full_disk(error):
            sentence.write_text(full)
            sys.exit(USER_ERROR_EXIT)
        if not (isinstance(error, OSError) and is_transient(error)):
            raise
        print(f"{type(error).__name__}: {error}")
        sys.exit(TRANSIENT_EXIT)
