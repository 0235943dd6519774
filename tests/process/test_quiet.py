"""Where torch.compile keeps what it unpickles later."""

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
