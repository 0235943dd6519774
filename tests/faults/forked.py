"""Python processes without their start-up time, which is four fifths of a tiny retrain.

The campaign imports the heavy libraries once. Its runs, and the training and evaluation processes they start, are forks
that begin at `python -m MODULE` with everything imported. The rest is as in a process of its own: environment, working
directory, session, descriptors, signals, exit status.
"""

import ctypes
import importlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from tasks.process import child

INJECT = Path(__file__).with_name("inject") / "sitecustomize.py"
_PR_SET_NAME = 15
_is_run = False
"""Whether this process is a run already: faults are inherited by its children."""


def process_name(store: str) -> str:
    """Name of the forks that work on a store, by which they are found: their environment is that of this process."""
    return f"store-{zlib.crc32(store.encode()):08x}"


def preload() -> None:
    """Import what runs and their children import, and have the runs fork their children.

    Nothing may be computed here: a thread that is running at a fork is missing afterwards.
    """
    for name in (
        "flows.retrain",
        "flows.commands.table",
        "tasks.evaluation.answers.generate",
        "tasks.evaluation.metrics",
        "tasks.model.base",
        "tasks.promotion.clean_room",
        "tasks.training.trl_adapter",
    ):
        importlib.import_module(name)

    assert threading.active_count() == 1, threading.enumerate()
    child.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=Forked,
        DEVNULL=subprocess.DEVNULL,
        PIPE=subprocess.PIPE,
        STDOUT=subprocess.STDOUT,
        TimeoutExpired=subprocess.TimeoutExpired,
    )


class Forked:
    """`subprocess.Popen([python, "-m", MODULE, *ARGUMENTS], …)` as a fork, as far as runs need it."""

    def __init__(
        self,
        command: list[str],
        stdout: Any,
        stderr: Any,
        env: dict[str, str],
        cwd: Path | None = None,
        pass_fds: tuple[int, ...] = (),
        start_new_session: bool = True,
        text: bool = True,
        errors: str = "replace",
        stdin: int | None = None,
    ) -> None:
        self.command, self.returncode = command, None
        self.stdout: IO[str] | None = None
        if stdout == subprocess.PIPE:
            reader, output = os.pipe()
            self.stdout = os.fdopen(reader, errors=errors)
        else:
            output = stdout.fileno()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.setsid()
                if stdin == subprocess.DEVNULL:
                    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(output, 1)
                os.dup2(output, 2)
                _let_go_of_all_but((0, 1, 2, *pass_fds))
                _settle(env, cwd)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                status = _be(command[2], command[3:])
            finally:
                os._exit(status)  # whatever happened: the code that forked runs on in the parent alone
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if self.stdout:
            os.close(output)

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, negative for a signal."""
        end = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            id, status = os.waitpid(self.pid, os.WNOHANG)
            if id:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.command, timeout or 0)
            else:
                time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _let_go_of_all_but(kept: tuple[int, ...]) -> None:
    """Give up inherited descriptors, locks above all. Their numbers stay taken: objects here still believe in them."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if descriptor not in kept and descriptor != nothing:
            try:
                os.fstat(descriptor)  # the listing's own is closed by now
                os.dup2(nothing, descriptor)
            except OSError:
                continue


def _settle(environment: dict[str, str], folder: Path | None) -> None:
    """Be as a process is that has just started."""
    global _is_run
    os.chdir(folder or ".")
    os.environ.clear()
    os.environ.update(environment)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, process_name(environment.get("QLORA_FLOW_STORE", "")).encode())
    for number, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)
    tempfile.tempdir = None
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
    if not _is_run:
        from prefect.context import refresh_global_settings_context

        _is_run = True
        refresh_global_settings_context()  # what it read from the environment
        runpy.run_path(str(INJECT))


def _be(module: str, arguments: list[str]) -> int:
    """Run `python -m MODULE ARGUMENTS` in this process; returns its exit status."""
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
