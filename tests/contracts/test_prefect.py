"""Prefect and the server it runs on: settings, loggers and environment variables that are known by name."""

import asyncio
import inspect
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import prefect
import prefect.server.events.triggers as triggers
import pytest
import sqlalchemy
import uvicorn
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.logging.loggers import flow_run_logger, task_run_logger
from prefect.serializers import Serializer, UnknownSerializer
from prefect.server.database.dependencies import provide_database_interface
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings
from prefect.utilities.dispatch import get_registry_for_type
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.testclient import TestClient

from flows.flow_run import typed
from flows.server import write_in_turn
from tasks.store.caching import cached
from tasks.store.identity import Identity


def after_refresh(expression: str, **variables: str) -> Any:
    """An expression over `settings` in a fresh process that sets variables once Prefect has read its settings.

    A test server's own settings hide the environment's in a process that has one.
    """
    code = (
        "import json, os, sys; from prefect.context import refresh_global_settings_context as refresh; "
        "from prefect.settings import get_current_settings; get_current_settings(); "
        "os.environ.update(json.loads(sys.argv[1])); refresh(); settings = get_current_settings(); "
        f"print(json.dumps({expression}))"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-c", code, json.dumps(variables)]
    said = subprocess.run(
        command, env=clean | {"PREFECT_HOME": os.environ["PREFECT_HOME"]}, capture_output=True, text=True
    )
    return json.loads(said.stdout)


def test_refresh_global_settings_context_reads_the_environment_again() -> None:
    expression = "[str(settings.api.url), settings.api.auth_string.get_secret_value()]"
    variables = {"PREFECT_API_URL": "http://127.0.0.1:1/api", "PREFECT_API_AUTH_STRING": "secret"}
    assert after_refresh(expression, **variables) == ["http://127.0.0.1:1/api", "secret"]


@pytest.mark.parametrize("enabled", [False, True])
def test_server_ephemeral_enabled_and_api_url_say_whether_a_server_is_named(enabled: bool) -> None:
    expression = "[settings.server.ephemeral.enabled, bool(settings.api.url)]"
    assert after_refresh(expression, PREFECT_SERVER_EPHEMERAL_ENABLED=str(enabled).lower()) == [enabled, False]


def test_results_local_storage_path_is_where_records_lie(tmp_path: Any) -> None:
    expression = "str(settings.results.local_storage_path.expanduser())"
    assert after_refresh(expression, PREFECT_RESULTS_LOCAL_STORAGE_PATH=str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(
    "variable, part, argument",
    [("PREFECT__SERVER_EPHEMERAL", "create_ui_app", "ephemeral"), ("PREFECT__SERVER_FINAL", "create_api_app", "final")],
)
def test_variable_of_the_server(
    variable: str, part: str, argument: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ephemeral: without pages and services. Final: nothing is kept for a second server in the process."""
    from prefect.server.api import server

    made, make = [], getattr(server, part)

    def noted(*given: Any, **named: Any) -> Any:
        made.append(inspect.signature(make).bind(*given, **named).arguments[argument])
        return make(*given, **named)

    monkeypatch.setattr(server, part, noted)
    for name in ("PREFECT__SERVER_EPHEMERAL", "PREFECT__SERVER_FINAL"):
        monkeypatch.delenv(name, raising=False)
    if asked:
        monkeypatch.setenv(variable, "1")
    server.create_app(ignore_cache=True)
    assert made == [asked]


def test_trusted_host_middleware_refuses_other_names() -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    client = TestClient(TrustedHostMiddleware(answer, ["127.0.0.1"]))
    assert client.get("/", headers={"host": "127.0.0.1:4200"}).status_code == 200
    assert client.get("/", headers={"host": "attacker.example"}).status_code == 400


def test_handle_exit_of_uvicorn_gets_the_signal_and_sockets_are_those_given() -> None:
    handled: list[Any] = []

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            with socket.create_connection(address, timeout=5):
                os.kill(os.getpid(), signal.SIGTERM)

        def handle_exit(self, *given: Any) -> None:
            handled.extend(given[:1])
            self.should_exit = True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("nobody asks")

    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    config = uvicorn.Config(app, lifespan="off", log_level="critical", timeout_graceful_shutdown=1)
    Server(config).run(sockets=[listening])
    assert handled == [signal.SIGTERM]


def test_loggers_of_flow_and_task_runs_have_these_names() -> None:
    """The filter that makes their lines readable is put on them."""
    run = SimpleNamespace(id=uuid4(), name="run", flow_run_id=uuid4(), task_key="task")
    task: Any = SimpleNamespace(name="task")
    assert flow_run_logger(flow_run_id=run.id).logger is logging.getLogger("prefect.flow_runs")
    assert task_run_logger(task_run=run, task=task).logger is logging.getLogger("prefect.task_runs")  # type: ignore[arg-type]


def test_cache_key_fn_is_given_the_tasks_arguments_by_name() -> None:
    def identity(rows: str) -> Identity:
        return Identity(stage="test", inputs={"rows": rows})

    policy = cached(identity)["cache_policy"]
    assert isinstance(policy, CacheKeyFnPolicy)
    key = policy.compute_key(task_ctx=None, inputs={"rows": "a", "other": 1}, flow_parameters={})  # type: ignore[arg-type]
    assert key == identity("a").key


def test_registry_of_serializers_is_what_a_record_is_read_by() -> None:
    """The dictionary itself, not a copy: what is put into it is what a name stands for."""
    registry = get_registry_for_type(Serializer)
    assert registry is not None and registry is get_registry_for_type(Serializer)

    class Named(Serializer):
        type: str = "of-this-test"

        def dumps(self, obj: Any) -> bytes:
            return b""

        def loads(self, blob: bytes) -> Any:
            return "read"

    try:
        assert registry["of-this-test"] is Named
        assert Serializer(type="of-this-test").loads(b"") == "read"
        registry["of-this-test"] = UnknownSerializer
        with pytest.raises(RuntimeError, match="not available"):
            Serializer(type="of-this-test", any_option=1).loads(b"")
    finally:
        del registry["of-this-test"]


def test_names_that_nobody_typed_are_known() -> None:
    from prefect.utilities.names import generate_slug

    made_up = [generate_slug(2) for _ in range(300)]
    assert not [name for name in made_up if typed(name)]
    ui = Path(prefect.__file__).parent / "server"
    old = next(text for file in ui.glob("ui/assets/index*.js") if "alpha.alpha2" in (text := file.read_text()))
    first = re.search("`(alpha\\.alpha2[^`]+)`", old)
    second = re.search("`(andromedae[^`]+)`", old)
    assert first and second
    proposed = [f"{greek.replace('RANDOM', '77')}-sadr-x" for greek in first[1].split(".")]
    proposed += [f"mu2-{star}".rstrip("-") for star in second[1].split(".")]
    assert not [name for name in proposed if typed(name)]
    new = next(text for file in ui.glob("ui-v2/assets/*.js") if "Ergonomic" in (text := file.read_text()))
    adjectives = re.search("\\[(`Awesome`[^\\]]+)\\]", new)
    assert adjectives
    assert not [name for name in re.findall("`(\\w+)`", adjectives[1]) if typed(f"{name}-Mangrove Snake")]
    for name in ("my-run", "first-try", "nightly", "alphabet", "run 2", "Ergonomic"):
        assert typed(name)


def test_placeholders_of_deployments_are_as_the_command_deploy_reads_them() -> None:
    from prefect.utilities.templating import PlaceholderType, find_placeholders

    from flows.commands.deploy import FILLED_IN

    for text in (
        "{{ a }}",
        "{{row.a}}",
        "{{ a|trim }}",
        "{{- a }}",
        "{{ $HOME }}",
        "{{ prefect.variables.a }}",
        "{ a }",
    ):
        emptied = any(found.type is PlaceholderType.STANDARD for found in find_placeholders(text))
        assert bool(FILLED_IN.search(text)) == emptied, text


def test_automations_wait_for_their_turn_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "automations_session", triggers.automations_session)  # as it was, afterwards
    write_in_turn()

    async def work() -> int:
        database = provide_database_interface()
        run = database.session_context

        async def write() -> None:
            async with run(begin_transaction=True) as session:
                await session.execute(sqlalchemy.text("insert into t values (1)"))

        async with run(begin_transaction=True) as session:
            await session.execute(sqlalchemy.text("create table t (n)"))
        async with triggers.automations_session(begin_transaction=True) as session:
            await session.execute(sqlalchemy.text("select * from t"))
            other = asyncio.create_task(write())
            await asyncio.wait([other], timeout=0.5)
            await session.execute(sqlalchemy.text("insert into t values (2)"))  # without waiting: database is locked
        await other
        async with run() as session:
            return len((await session.execute(sqlalchemy.text("select * from t"))).all())

    with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{tmp_path}/own.db"}):
        assert asyncio.run(work()) == 2
