"""What the end-to-end tests share: one server with a worker, and a run of seconds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.served import Served
from tests.tiny import make_rows, write_jsonl


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.end()


@pytest.fixture
def parameters(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    """A run of seconds in place of the example, published to a registry of the test's own."""
    return {
        "data": {"path": str(write_jsonl(tmp_path / "rows.jsonl", make_rows(40)))},
        "model": {"base": str(tiny_model)},
        "training": {"max_steps": 2, "lora_r": 4},
        "evaluation": {"max_new_tokens": 4},
        "publishing": {"registry": str(tmp_path / "registry")},
    }
