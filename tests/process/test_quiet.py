"""Where torch.compile keeps what it unpickles later, and what a child keeps in memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from tasks.process.quiet import compile_cache


def test_compiled_code_is_kept_in_a_folder_of_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = compile_cache()
    assert folder.is_relative_to(tmp_path) and folder.stat().st_mode & 0o777 == 0o700
    assert compile_cache() == folder  # and is found again


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_cache().chmod(0o777)
    folder = compile_cache()
    assert not folder.is_relative_to(tmp_path / "qlora-flow") and folder.stat().st_mode & 0o777 == 0o700


def test_no_home_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    folder = compile_cache()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_matrix_products_of_many_shapes_do_not_fill_the_memory() -> None:
    program = """
from tasks.process.quiet import silence
silence()
import pathlib, torch
def mib(): return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) // 256
rows, weight = torch.ones(700, 96).bfloat16(), torch.ones(96, 96).bfloat16()
rows @ weight
before = mib()
for n in range(300, 700):
    rows[:n] @ weight
print(mib() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 130  # 260 where torch and oneDNN keep every shape
