"""A change of code that can change results is confirmed or raises the stage's version; any other is not noticed."""

from pathlib import Path

import pytest

from tests import stage_versions

PROJECT = {
    "writer": '''"""Writes."""
from tasks.helper import LIMIT, scale
import tasks.other as other

def write(rows: list[int], log: object) -> int:
    """Write rows."""
    log("writing")
    if not rows:
        raise ValueError(f"no rows in {rows}")
    return scale(rows[0]) + LIMIT + other.used()
''',
    "helper": """
LIMIT = 3  # rows
UNUSED = 1

def scale(x):
    from tasks.deep import factor
    return factor() * x
""",
    "other": "from json import dumps\n\ndef used():\n    return len(dumps(CHILD))\n\nCHILD = 'tasks.child'\n",
    "deep": "def factor():\n    return 2\n",
    "child": "def work():\n    return 1\n",
}
SAME = {
    "docstring": ("writer", '"""Write rows."""', '"""Write all rows."""'),
    "comment": ("helper", "# rows", "# at most"),
    "log line": ("writer", 'log("writing")', 'log("writing rows")'),
    "text of an error": ("writer", "no rows in {rows}", "rows are missing"),
    "annotation": ("writer", "list[int]", "tuple[int, ...]"),
    "what the stage does not use": ("helper", "UNUSED = 1", "UNUSED = 2"),
    "a function that moved": ("helper", "from tasks.deep import factor", "from tasks.moved import factor"),
}
OTHER = {
    "its own code": ("writer", "rows[0]", "rows[-1]"),
    "a constant": ("helper", "LIMIT = 3", "LIMIT = 4"),
    "behind an import in a function": ("deep", "return 2", "return 3"),
    "in a child process": ("child", "return 1", "return 2"),
    "a condition": ("writer", "if not rows", "if rows"),
    "another library's function of the same name": ("other", "from json", "from yaml"),
}


@pytest.fixture
def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def digest(module: str = "", old: str = "", new: str = "") -> str:
        monkeypatch.setattr(stage_versions, "ROOT", tmp_path)
        for name, text in {**PROJECT, "moved": PROJECT["deep"]}.items():
            assert name != module or old in text
            (tmp_path / "tasks").mkdir(exist_ok=True)
            (tmp_path / "tasks" / f"{name}.py").write_text(text.replace(old, new) if name == module else text)
        return fresh(["tasks.writer"])

    yield digest
    monkeypatch.undo()
    stage_versions._module.cache_clear()
    stage_versions._file.cache_clear()


def fresh(entries: list[str]) -> str:
    stage_versions._module.cache_clear()
    stage_versions._file.cache_clear()
    return stage_versions.digest(entries)


@pytest.mark.parametrize("edit", SAME.values(), ids=SAME)
def test_an_edit_that_cannot_change_results_is_not_noticed(digest, edit: tuple[str, str, str]) -> None:
    assert digest(*edit) == digest()


@pytest.mark.parametrize("edit", OTHER.values(), ids=OTHER)
def test_an_edit_that_can_change_results_is_noticed(digest, edit: tuple[str, str, str]) -> None:
    assert digest(*edit) != digest()


@pytest.mark.parametrize("stage", stage_versions.entries())
def test_code_that_decides_results_is_as_confirmed(stage: str) -> None:
    assert stage_versions.current(stage) in stage_versions.recorded(), (
        f"The code that decides the result of {stage} is not what was confirmed last. If the same inputs can now give "
        f"another result, raise the stage's version (VERSION in its identity.py). Then, in either case, run "
        "`make confirm` and commit tests/stage_versions.txt."
    )


def test_what_workers_load_by_name_is_among_the_code_of_their_stage() -> None:
    def modules(stage: str) -> set[str]:
        return {module.name for module, _ in stage_versions.reachable(stage_versions.entries()[stage][1])}

    assert {"tasks.formatting.rows", "tasks.process.pool", "tasks.store.ledger"} <= modules("format")
    assert "tasks.download.convert" in modules("model")
    assert {"tasks.model.lora", "tasks.training.packing", "tasks.tokenization.fill"} <= modules("train")
    assert "tasks.evaluation.metrics.chrf.chrf" in modules("evaluate")
