"""Prefect's server: for one local run, with which it ends, also when the run is killed, and for `qlora-flow serve`.

The server that Prefect starts by itself survives a killed run, and obeys every user of the machine: whoever changes the
state of a run decides what it reads back. This server asks for a secret, which only the environment of the
run's processes holds.
"""

import atexit
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

from tasks.errors import UserError
from tasks.process.child import IMPORT_NOTHING_HERE, follow_parent

HOST = "127.0.0.1"
START_SECONDS = 180
GRACE_SECONDS = 5


def ensure_server() -> None:
    """Start a server for this process when Prefect's settings name none.

    Raises:
        UserError: it does not come up.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    reach_this_machine_directly()
    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        return
    print("starting a Prefect server for this run", file=sys.stderr, flush=True)
    secret = secrets.token_urlsafe(32)
    server = _Server(secret)
    atexit.register(server.end)
    wait_until_up(server.url, server.process, "Set PREFECT_API_URL to use another one.")
    server.start()
    os.environ.update(
        PREFECT_API_URL=f"{server.url}/api",
        PREFECT_API_AUTH_STRING=secret,
        PREFECT_UI_URL="",  # it has no pages to point to
    )
    refresh_global_settings_context()


def reach_this_machine_directly() -> None:
    """Ask no proxy for this machine's own servers, and keep what the user has named besides."""
    names = ("no_proxy", "NO_PROXY")
    given = [value for name in names for value in os.environ.get(name, "").split(",") if value]
    all_names = ",".join(dict.fromkeys([*given, "localhost", HOST]))  # each once, however often this is called
    os.environ.update(dict.fromkeys(names, "*" if "*" in given else all_names))


def wait_until_up(url: str, process: "subprocess.Popen[bytes]", advice: str) -> None:
    """Raises UserError when a server ends before it answers, or does not answer for `START_SECONDS`."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            direct.open(f"{url}/api/health", timeout=5).close()
            return
        time.sleep(0.1)
    how = f"no answer in {START_SECONDS} s" if process.returncode is None else ended_by(process.returncode)
    raise UserError(f"The Prefect server does not start ({how}). {advice}")


def ended_by(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def end(process: "subprocess.Popen[bytes]", grace_seconds: float) -> None:
    """Ask a process to end, and end it after a time of grace."""
    process.terminate()
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Server(threading.Thread):
    """The server's process; one that ends before the run does is started again.

    Clients notice little: the server keeps its data in a database, and requests wait at the socket, which this process
    keeps open, until the next server answers.
    """

    def __init__(self, secret: str) -> None:
        super().__init__(daemon=True)
        self._listening = socket.create_server((HOST, 0))
        self._environment = {
            **os.environ,
            **IMPORT_NOTHING_HERE,
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
            "PREFECT_SERVER_API_AUTH_STRING": secret,
            "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": "",  # no web page's scripts
        }
        self.url = f"http://{HOST}:{self._listening.getsockname()[1]}"
        self._ending = threading.Event()
        self._changing = threading.Lock()
        self.process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        descriptor = self._listening.fileno()
        return subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(descriptor), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            env=self._environment,
            start_new_session=True,  # Ctrl-C is the run's; the server hears of the end of the run
        )

    def run(self) -> None:
        """Start the server again as often as it ends."""
        while not self._ending.wait(1):
            status = self.process.wait()
            with self._changing:
                if self._ending.is_set():
                    return
                print(f"The run's Prefect server has ended ({ended_by(status)}) and is started again.", file=sys.stderr)
                self.process = self._spawn()

    def end(self) -> None:
        self._ending.set()
        with self._changing:
            end(self.process, GRACE_SECONDS)


def write_in_turn() -> None:
    """Let automations wait for their turn to write to SQLite.

    Prefect's server reads and then writes in one deferred transaction for every event. If another connection writes
    in between, SQLite refuses at once ("database is locked"), whatever its timeout, and the event is evaluated again:
    people are told twice, or never. No setting changes this. An immediate transaction waits first.
    """
    import prefect.server.events.triggers as triggers
    from prefect.server.database.dependencies import provide_database_interface

    @contextlib.asynccontextmanager
    async def session(begin_transaction: bool = False) -> AsyncIterator[Any]:
        context = provide_database_interface().session_context
        async with context(begin_transaction=begin_transaction, with_for_update=begin_transaction) as given:
            yield given

    vars(triggers)["automations_session"] = session  # its own name for it


def main(descriptor: int, parent: int) -> None:
    """Be the server, on a socket that listens already, as long as the parent lives."""
    follow_parent(parent)
    import uvicorn
    from prefect.server.api.server import create_app
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    config = uvicorn.Config(
        lambda: TrustedHostMiddleware(create_app(), [HOST]),  # a web page that calls this machine by a name of its own
        factory=True,
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=GRACE_SECONDS - 1,
    )

    class Quiet(uvicorn.Server):
        def handle_exit(self, *signal: Any) -> None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what is cancelled at the end is no news
            super().handle_exit(*signal)

    Quiet(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    if sys.argv[1] == "start":  # with Prefect's options, as `prefect server start` takes them
        from prefect.cli import app

        write_in_turn()
        sys.argv.insert(1, "server")
        app()
    else:
        main(int(sys.argv[1]), int(sys.argv[2]))
