"""A metric of the user's own: found in installed packages alone, in the key, and its mistakes are sentences."""

import sys
from pathlib import Path

import pytest

from tasks.config import TRUSTED, EvaluationConfig
from tasks.errors import UserError
from tasks.evaluation import identity
from tasks.evaluation.metrics import try_own
from tasks.evaluation.metrics.own import own_scores
from tasks.evaluation.task import check_scorable
from tasks.store.artifact import ArtifactRef
from tasks.store.model import BaseModelRef

IDS, ANSWERS, REFERENCES = ["a", "b", "c"], ["x", "yy", ""], [["x"], ["y", "z"], ["w"]]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that every Python process of the test looks for packages in."""
    (tmp_path / "site" / "judge").mkdir(parents=True)
    (tmp_path / "site" / "judge" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name in ("judge", "judge.rules"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    identity.own_metric.cache_clear()
    return tmp_path / "site" / "judge" / "rules.py"


def test_each_row_gets_what_the_function_returns(installed: Path) -> None:
    installed.write_text("def long(predictions, references):\n    return [len(p) for p in predictions]")
    assert own_scores("judge.rules:long", IDS, ANSWERS, REFERENCES) == [1.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return [1 / len(p) for p in predictions]", "fails on row 'c': ZeroDivisionError: division by zero"),
        ("raise SystemExit(1)", "fails on row 'a': SystemExit: 1"),
        ("assert len(predictions) < 3, 'many'\n    return [0]", "fails on all rows together, but on no single row"),
        ("return [0.5]", "returned 1 values for 3 rows, 'a' to 'c'"),
        ("return 0.5", "fails on row 'a': TypeError: 'float' object is not iterable"),
        ("return [0, float('nan'), 1]", "returned nan for row 'b'; a number below 1e100 is right"),
        ("return [0, 1e200, 1]", "returned 1e+200 for row 'b'"),  # its square is no number
        ("return [0, 1, float('inf')]", "returned inf for row 'c'"),
        ("return [0, None, 1]", "returned None for row 'b'"),
        ("return [0, '1', 1]", "returned '1' for row 'b'"),
        ("return [0, 1, 10**400]", "returned 1000"),  # no float is as large
        ("raise ValueError('one line' + chr(10) + 'and another')", r"ValueError: one line\nand another"),
    ],
)
def test_a_function_that_fails_is_named_with_the_row(installed: Path, body: str, sentence: str) -> None:
    installed.write_text(f"def judge(predictions, references):\n    {body}")
    with pytest.raises(UserError) as caught:
        own_scores("judge.rules:judge", IDS, ANSWERS, REFERENCES)
    assert str(caught.value).startswith("evaluation.metrics: judge.rules:judge ")
    assert sentence in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_it_is_tried_before_anything_is_generated(installed: Path) -> None:
    installed.write_text("def judge(predictions):\n    return [1]")
    with pytest.raises(UserError, match="row 'a': TypeError"):
        try_own({"id": "a", "references": ["x", "y"]}, ["rougeL", "judge.rules:judge"])


def test_one_that_is_not_installed_ends_the_run_before_training() -> None:
    config = EvaluationConfig.model_validate({"metrics": ["no_such:judge"]}, context=TRUSTED)
    unread = ArtifactRef(name="tokens", digest="0" * 64, rows=1)
    with pytest.raises(UserError, match="no installed package has no_such:judge"):
        check_scorable(unread, unread, BaseModelRef.model_construct(), config)


def test_what_it_does_to_its_lists_changes_no_row(installed: Path) -> None:
    installed.write_text("def judge(predictions, references):\n    references[0].clear()\n    return [1, 1, 1]")
    own_scores("judge.rules:judge", IDS, ANSWERS, REFERENCES)
    assert REFERENCES[0] == ["x"]


def test_its_whole_package_is_in_the_key(installed: Path) -> None:
    installed.write_text("from judge.words import judge")
    (installed.parent / "words.py").write_text("def judge(predictions, references): ...")
    before = identity.own_metric("judge.rules:judge")
    (installed.parent / "words.py").write_text("def judge(predictions, references): pass")
    identity.own_metric.cache_clear()
    assert identity.own_metric("judge.rules:judge") != before


def test_the_working_directory_is_no_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stray.py").write_text("def judge(predictions, references): ...")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    with pytest.raises(UserError, match="no installed package has stray:judge: ModuleNotFoundError"):
        identity.own_metric("stray:judge")
