"""Nothing a test does leaves the machine or the test's own folder."""

import contextlib
import importlib
import io
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# before Prefect or a Hub library is imported
os.environ.update(
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_HOME=tempfile.mkdtemp(prefix="qlora-flow-prefect-"),
    HF_HUB_OFFLINE="1",
    HF_HOME=tempfile.mkdtemp(prefix="qlora-flow-hf-"),
    QLORA_FLOW_STORE=tempfile.mkdtemp(prefix="qlora-flow-store-"),
    PYTHONPATH=str(Path(__file__).parents[1]),  # some children are modules of the tests
)
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker has one core: more threads wait for one another, many times as long
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from pydantic import BaseModel

from tests.tiny import make_model

SLOWEST_FIRST = ("e2e", "flows", "faults", "training", "evaluation", "tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files begin first, so that no worker is left alone with one."""
    folders = {item: item.path.parent.name for item in items}
    items.sort(key=lambda item: SLOWEST_FIRST.index(folders[item]) if folders[item] in SLOWEST_FIRST else 99)


def pytest_unconfigure() -> None:
    for name in ("PREFECT_HOME", "HF_HOME", "QLORA_FLOW_STORE"):
        shutil.rmtree(os.environ[name], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store that the test has for itself."""
    folder = tmp_path / "store"
    monkeypatch.setenv("QLORA_FLOW_STORE", str(folder))
    return folder


@pytest.fixture(scope="session")
def prefect_server():
    """A Prefect server for tests that run tasks and flows in this process."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    quiet = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None, PREFECT_LOGGING_TO_API_ENABLED: False}
    with temporary_settings(quiet), prefect_test_harness(server_startup_timeout=600):
        yield


class Lines(io.StringIO):
    """Passes on what is printed, as a child's output is passed on."""

    def __init__(self, log: Callable[[str], None]) -> None:
        super().__init__()
        self.log, self.begun = log, ""

    def write(self, text: str) -> int:
        *whole, self.begun = (self.begun + text).split("\n")
        for line in filter(None, whole):
            self.log(line)
        return len(text)


def run_here(module: str, job: Any, log: Callable[[str], None], hang_minutes: float | None = None) -> None:
    """`run_child` in the tests' own process, which has imported torch already; a child takes seconds to import it."""
    worker = importlib.import_module(module)
    work = worker.train_in_one_process if module == "tasks.training.worker" else worker.evaluate
    environment, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(Lines(log)):
            work(job if isinstance(job, BaseModel) else json.loads(json.dumps(job)))
    finally:
        signal.signal(signal.SIGTERM, handler)
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture(scope="module")
def children_here() -> Iterator[None]:
    """Training and evaluation by `run_here`. tests/e2e, test_execution.py and tests/training start real children."""

    from tasks.evaluation import task as evaluation_room
    from tasks.training import task as training_room

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_room, "run_child", run_here)
        patch.setattr(evaluation_room, "run_child", run_here)
        yield
