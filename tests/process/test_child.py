"""The child process: its lines, its mistakes, and its end whatever ends the parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tasks.errors import UserError
from tasks.process.child import ends_children_ahead, run_child, start_ahead
from tasks.process.failures import ChildFailed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`child(body)`: name of a module whose work is `body`, importable in a child."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")

    def make(body: str) -> str:
        text = textwrap.indent(textwrap.dedent(body), "    ")
        (tmp_path / "work_of_a_test.py").write_text(
            "import os, signal, subprocess, sys, time\n"
            "from tasks.process.child import main\nfrom tasks.errors import UserError\n"
            f"def work(job):\n{text}\nmain(work)\n"
        )
        return "work_of_a_test"

    return make


def gone(id: int) -> bool:
    """Waits as long as a busy machine may need; what is waited for sleeps for an hour otherwise."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        if not psutil.pid_exists(id) or psutil.Process(id).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_lines_become_log_lines(child) -> None:
    said: list[str] = []
    run_child(child("print('hello', job['name']); print('über', file=sys.stderr)"), {"name": "you"}, said.append)
    assert said == ["hello you", "über"]


def test_a_mistake_travels_back_as_its_sentence(child) -> None:
    with pytest.raises(UserError, match=r"^row 3 has no answer$"):
        run_child(child("raise UserError('row 3 has no answer')"), {}, print)


def test_a_full_disk_travels_back_as_a_sentence(child) -> None:
    with pytest.raises(UserError, match=r"^A disk is full \(.*no room.*\)"):
        run_child(child("import errno; raise OSError(errno.ENOSPC, 'no room')"), {}, print)


def test_nothing_is_read_from_standard_input(child) -> None:
    said: list[str] = []
    run_child(child("print(repr(sys.stdin.read()), os.readlink('/proc/self/fd/0'))"), {}, said.append)
    assert said == ["'' /dev/null"]


@pytest.mark.parametrize(
    ("body", "message", "transient"),
    [
        ("raise RuntimeError('broken')", "exit code 1", False),
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL", True),
        ("sys.exit(143)", "exit code 143", True),
        ("import errno; raise OSError(errno.EIO, 'disk')", "exit code 75", True),
    ],
)
def test_the_way_it_ended_says_whether_to_try_again(child, body: str, message: str, transient: bool) -> None:
    with pytest.raises(ChildFailed, match=message) as caught:
        run_child(child(body), {}, lambda line: None)
    assert caught.value.transient is transient


def test_a_silent_child_is_ended(child) -> None:
    said: list[str] = []
    before = psutil.Process().children()  # a test server, say
    with pytest.raises(ChildFailed, match="printed nothing") as caught:
        run_child(child("print(os.getpid()); time.sleep(3600)"), {}, said.append, hang_minutes=2 / 60)
    assert caught.value.transient
    assert all(gone(int(line)) for line in said) and set(psutil.Process().children()) <= set(before)


def test_an_interrupted_wait_ends_the_child_and_its_children(child) -> None:
    said: list[int] = []

    def interrupt(line: str) -> None:
        said.extend(map(int, line.split()))
        os.kill(os.getpid(), signal.SIGINT)

    body = "other = subprocess.Popen(['sleep', '3600']); print(os.getpid(), other.pid); time.sleep(3600)"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            run_child(child(body), {}, interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(said) == 2
    assert all(gone(id) for id in said)


def test_a_killed_parent_takes_the_child_with_it(child, tmp_path: Path) -> None:
    module = child("print(os.getpid(), flush=True); time.sleep(3600)")
    code = (
        f"from tasks.process.child import run_child; run_child('{module}', {{}}, lambda line: print(line, flush=True))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    id = int(parent.stdout.readline())
    parent.kill()
    assert gone(id)


def test_a_child_that_is_started_ahead_prepares_and_gets_its_job_later(child, tmp_path: Path) -> None:
    module, marks, said = child("print(os.getpid(), len(job['long']))"), tmp_path / "marks", list[str]()
    file = tmp_path / f"{module}.py"
    ready = f"lambda: print(os.getpid(), file=open({str(marks)!r}, 'w'), flush=True)"
    file.write_text(file.read_text().replace("main(work)", f"main(work, prepare={ready})"))
    job = {"long": "x" * 300_000}  # more than a pipe holds

    def waits() -> int:
        while not (marks.exists() and marks.read_text().endswith("\n")):
            time.sleep(0.05)
        id = int(marks.read_text())
        marks.unlink()
        return id

    with ends_children_ahead():
        start_ahead(module)
        start_ahead(module)  # once is enough
        first = waits()
        run_child(module, job, said.append)
        run_child(module, job, said.append)  # another one, which does not prepare
        assert said[0] == f"{first} 300000" and said[1].endswith(" 300000") and said[1] != said[0]
        assert not marks.exists()
        start_ahead(module)
        os.kill(killed := waits(), signal.SIGKILL)
        assert gone(killed)
        run_child(module, job, said.append)  # a new one, since the one that waited is dead
        assert said[2].endswith(" 300000")
        start_ahead(module)
        last = waits()
    assert gone(last)
