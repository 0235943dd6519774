"""Large files are read once on a machine, changed ones again, and all of them on request."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.store import checked, lines

ROOT = Path(__file__).parents[2]
CODE = """
import sys
from pathlib import Path
from tasks.store import checked, lines
read = []
own = checked.file_digest
checked.file_digest = lambda file: read.append(file) or own(file)
[checked.content_digest(Path(sys.argv[1])) for _ in range(2)]
print(len(read))
"""


def reads(file: Path, **environment: str) -> int:
    """How often a fresh process that asks twice reads the file."""
    command = [sys.executable, "-c", CODE, str(file)]
    return int(subprocess.check_output(command, cwd=ROOT, env={**os.environ, **environment}))


@pytest.fixture
def file(store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    store.mkdir()
    file = store / "weights"
    file.write_bytes(bytes(checked.WORTH))
    return file


def settle(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file as another process finds it that comes later."""
    monkeypatch.setattr(checked, "SETTLED_SECONDS", -1)
    checked.content_digest(file)


def test_a_young_file_is_not_trusted(file: Path) -> None:
    assert [reads(file), (file.parent / "checked.jsonl").exists()] == [1, False]


def test_a_known_file_is_not_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(file, monkeypatch)
    with (file.parent / "checked.jsonl").open("a") as record:
        record.write('["torn')
    assert reads(file) == 0
    assert reads(file, QLORA_FLOW_VERIFY="full") == 1


def test_a_changed_file_is_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(file, monkeypatch)
    status = file.stat()
    file.write_bytes(b"\1" * checked.WORTH)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # even when its date was set back
    assert reads(file) == 1


@pytest.mark.parametrize("value", [[], {}, 1, None, ["which"], ["which", "1", 2, 3, "0"], [[], 1, 2, 3, "0"]])
def test_a_line_of_another_type_vouches_for_nothing(file: Path, value: object) -> None:
    lines.append(file.parent / "checked.jsonl", value)
    assert reads(file) == 1


def test_a_changed_line_vouches_for_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(file, monkeypatch)
    record = file.parent / "checked.jsonl"
    digest = checked.file_digest(file)
    record.write_text(record.read_text().replace(digest, "0" * 64))
    assert reads(file) == 1
    record.write_bytes(b"\xff\0\n" + b"[" * 100_000)
    assert reads(file) == 1
