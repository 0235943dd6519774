"""Child processes. GPU work runs in one: its end frees all its memory, and it can be ended at any moment.

Parent: `run_child("tasks.training.worker", job, log)`. Child: `if __name__ == "__main__": main(train, TrainingJob)`.
The child's printed lines become log lines of the task; a UserError comes back as its sentence.
"""

import contextlib
import ctypes
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
from tasks.process.failures import ChildFailed, disk_trouble, is_transient
from tasks.text import visible

GRACE_SECONDS = 12.0
USER_ERROR_EXIT = 3
STOPPED_EXIT = 143  # a child that was asked to end, and saved its work
TRANSIENT_EXIT = 75  # EX_TEMPFAIL
IMPORT_NOTHING_HERE = {"PYTHONSAFEPATH": "1"}
"""Environment with which `python -m` does not import from the working directory, where the user may have a tasks.py.
The processes that a child starts inherit it."""
_PR_SET_PDEATHSIG = 1


def run_child(
    module: str, job: BaseModel | dict[str, Any], log: Callable[[str], None], hang_minutes: float | None = None
) -> None:
    """Run `python -m MODULE` on a job and wait. An interruption of the wait also ends the child and its children.

    Args:
        module: calls `main`.
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
    """Like `run_child`, with a body that runs at the same time. An interruption of the body ends the child.

    Args:
        pass_fds: open file descriptors that the child inherits under the same numbers.
    """
    child = _ahead.pop(module, None)
    if child and child.process.poll() is not None:
        child.discard()
        child = None
    child = child or Child(module, pass_fds)
    child.log, child.latest = log, time.monotonic()
    try:
        with contextlib.suppress(BrokenPipeError), os.fdopen(child.job, "wb") as pipe:  # broken: it has ended
            pipe.write(to_json(job))
        yield child
    except BaseException:
        _end(child.process)
        raise
    finally:
        child.close()


_ahead: dict[str, "Child"] = {}


@contextlib.contextmanager
def ends_children_ahead() -> Iterator[None]:
    """At the end of the body, ends the children that `start_ahead` has started and that got no job."""
    try:
        yield
    finally:
        while _ahead:
            _ahead.popitem()[1].discard()


def start_ahead(*modules: str) -> None:
    """Start children that import their libraries now, while other work runs, and get their jobs later in `run_child`.

    On a GPU machine imports take 15 s, often more than evaluation computes. A child that waits takes no GPU memory.
    """
    for module in modules:
        if module not in _ahead:
            _ahead[module] = Child(module, ahead=True)


class Child:
    """A running child. A thread logs its lines, and keeps the last ones and the time of the latest.

    Args:
        ahead: whether it prepares for a job that it gets later.
    """

    def __init__(self, module: str, pass_fds: tuple[int, ...] = (), ahead: bool = False) -> None:
        self.module, self.log = module, lambda line: None
        self.lines: list[str] = []
        self.latest = time.monotonic()
        job, self.job = os.pipe()
        self.sentence = os.memfd_create("qlora-flow")  # in memory: no kill leaves it behind
        files = [f"/proc/self/fd/{job}", str(os.getpid()), f"/proc/self/fd/{self.sentence}"]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *files, *(["ahead"] if ahead else [])],
                stdin=subprocess.DEVNULL,  # or a library's question would be answered by what is piped into the command
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, **IMPORT_NOTHING_HERE, "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"},
                pass_fds=(job, self.sentence, *pass_fds),
                start_new_session=True,  # so that its whole group can be ended, and Ctrl-C reaches only the parent
            )
        finally:
            os.close(job)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def discard(self) -> None:
        """End it before it has got a job."""
        self.process.kill()
        self.process.wait()
        os.close(self.job)
        self.close()

    def close(self) -> None:
        self.reader.join(timeout=5)
        os.close(self.sentence)

    def finish(self, hang_minutes: float | None = None) -> None:
        """Wait for its end; raises as `run_child` does."""
        if (code := self._wait(hang_minutes)) == USER_ERROR_EXIT:
            raise UserError(*os.pread(self.sentence, 1 << 20, 0).decode().split("\n"))
        if code:
            self.reader.join(timeout=5)  # for its last lines
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            transient = code < 0 or code in (STOPPED_EXIT, TRANSIENT_EXIT)
            raise ChildFailed(f"{self.module} {how}:\n" + "\n".join(self.lines[-25:]), transient)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.latest = time.monotonic()
            if line := visible(line.rstrip()):
                self.lines[:] = [*self.lines[-200:], line]
                self.log(line)

    def _wait(self, hang_minutes: float | None) -> int:
        if hang_minutes is None:
            return self.process.wait()
        while (left := self.latest + 60 * hang_minutes - time.monotonic()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(left)
        raise ChildFailed(f"the child printed nothing for {hang_minutes:g} minutes and was ended", transient=True)


def _end(process: subprocess.Popen[str]) -> None:
    """Send SIGTERM, wait while the child saves a checkpoint, then send SIGKILL to the whole process group."""
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also grandchildren that outlived their parent
    process.wait(5)


def follow_parent(parent: int) -> None:
    """Ask the kernel to send this process SIGTERM when its parent dies; if that is gone already, exit."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before prctl took effect
        sys.exit(STOPPED_EXIT)


def main(
    work: Callable[[Any], None], kind: type[BaseModel] | None = None, prepare: Callable[[], None] | None = None
) -> None:
    """Entry point of a child: read the job, do it, report a UserError as its sentence. It ends when its parent ends.

    Command line: JOB (a JSON file), the parent's process id, the file for the sentence (else standard error), and
    `ahead` if the job comes later.

    Args:
        kind: model of the job; without it `work` gets the parsed JSON.
        prepare: what a child does that is started ahead, while it has no job.
    """
    job, parent, sentence = Path(sys.argv[1]), int(sys.argv[2]), Path([*sys.argv[3:], "/dev/stderr"][0])
    follow_parent(parent)
    try:
        if prepare and sys.argv[4:]:
            prepare()
        given = job.read_bytes()
        work(kind.model_validate_json(given) if kind else json.loads(given))
    except UserError as error:
        sentence.write_text(str(error))
        sys.exit(USER_ERROR_EXIT)
    except Exception as error:
        if said := disk_trouble(error):
            sentence.write_text(said)
            sys.exit(USER_ERROR_EXIT)
        if not (isinstance(error, OSError) and is_transient(error)):
            raise
        print(f"{type(error).__name__}: {error}")
        sys.exit(TRANSIENT_EXIT)
