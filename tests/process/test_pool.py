"""Work over several processes: results in order, and one end for all of them."""

import contextlib
import textwrap
from pathlib import Path

import psutil
import pytest

from tasks.errors import UserError
from tasks.process import pool
from tasks.process.failures import ChildFailed
from tests.process.test_child import ROOT, gone

HEAD = """
import os, signal, time
import pyarrow as pa
from tasks.errors import UserError
from tasks.process.pool import Result, serve
def work(job, units):
    for unit in units:
{body}
        yield Result(pa.record_batch({{"unit": [unit] * job["rows"]}}), {{"process": os.getpid()}})
if __name__ == "__main__":
    serve(work)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setattr(pool, "cores", lambda: 3)

    def make(body: str) -> str:
        text = HEAD.format(body=textwrap.indent(body, "        "))
        (tmp_path / "spread_by_a_test.py").write_text(text)
        return "spread_by_a_test"

    return make


def test_results_come_in_order_from_several_processes(module) -> None:
    found = list(pool.spread(module("time.sleep(0.1 * (unit % 3 == 0))"), {"rows": 50_000}, 14, print))
    assert [result.rows["unit"][0].as_py() for result in found] == list(range(14))
    assert len({result.notes["process"] for result in found}) == 3


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("if unit == 7: raise UserError('row 9 is wrong')", UserError, "^row 9 is wrong$"),
        ("if unit == 7: raise RuntimeError('broken')", ChildFailed, "(?s)exit code 1.*broken"),
        ("if unit == 7: os.kill(os.getpid(), signal.SIGKILL)", ChildFailed, "ended by SIGKILL"),
        ("if unit == 7: os._exit(0)", ChildFailed, "ended before its work was done"),
    ],
)
def test_what_ends_one_process_ends_the_work(module, body: str, error: type[Exception], message: str) -> None:
    seen = []
    with (
        pytest.raises(error, match=message),
        contextlib.closing(pool.spread(module(body), {"rows": 1}, 14, print)) as results,
    ):
        seen.extend(results)
    assert 1 <= len(seen) <= 7
    assert all(gone(result.notes["process"]) for result in seen)


def test_who_stops_reading_ends_the_processes(module) -> None:
    with contextlib.closing(pool.spread(module("pass"), {"rows": 1_000_000}, 14, print)) as results:
        processes = {next(results).notes["process"] for _ in range(3)}
        assert all(psutil.pid_exists(process) for process in processes)
    assert all(gone(process) for process in processes)
