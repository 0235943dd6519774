"""Start a Prefect server, its deployments and a worker on this machine, until Ctrl-C."""

import argparse
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from flows.clean import shorten
from flows.commands.arguments import a_path
from flows.commands.deploy import FILE, check_file, deploy, prefect
from flows.commands.environment import homes_in_store, local_settings
from flows.server import HOST, end, ended_by, reach_this_machine_directly, wait_until_up
from tasks.errors import UserError
from tasks.process.child import IMPORT_NOTHING_HERE, follow_parent
from tasks.store.root import store_root

SECRET = "prefect.secret"
GRACE_SECONDS = 60
"""For the worker's run to save a checkpoint."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--file", type=a_path, default=FILE, metavar="FILE.yaml", help=f"deployments [default {FILE}]")
    command.add_argument("--port", type=int, default=4200, metavar="N", help="of the server [default 4200]")


def main(options: argparse.Namespace) -> int:
    content = check_file(options.file)
    _check_port(options.port)
    homes_in_store()
    local_settings()
    file, secret = _secret()
    url = f"http://{HOST}:{options.port}"
    os.environ.update(
        PREFECT_API_URL=f"{url}/api",
        PREFECT_API_AUTH_STRING=secret,
        PREFECT_SERVER_API_AUTH_STRING=secret,
        PREFECT_SERVER_API_HOST=HOST,
        PREFECT_SERVER_API_PORT=str(options.port),
        # a run keeps its place in a limit when the server restarts
        PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE="prefect.server.concurrency.lease_storage.filesystem",
    )
    os.environ.setdefault("PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED", "events,flow_runs")  # old rows are removed
    reach_this_machine_directly()
    pool = content["deployments"][0]["work_pool"]["name"]
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell lets background jobs ignore SIGINT
        signal.signal(number, signal.default_int_handler)
    try:
        with _started("server", [sys.executable, "-P", "-m", "flows.server", "start"]) as server:
            wait_until_up(url, server, f"Its output is in {_log('server')}.")
            print(*deploy(options.file), sep="\n", flush=True)
            with _started("worker", prefect("worker", "start", "--pool", pool)) as worker:
                print(f"\nPrefect UI: {url}\nIts password is in {file}. Ctrl-C ends server and worker.", flush=True)
                while True:
                    for name, process in (("server", server), ("worker", worker)):
                        shorten(_log(name))
                        if process.poll() is not None:
                            how = ended_by(process.returncode)
                            raise UserError(f"The {name} has ended ({how}); its output is in {_log(name)}.")
                    time.sleep(0.5)
    except KeyboardInterrupt:
        return 0


def _check_port(port: int) -> None:
    try:
        socket.create_server((HOST, port or -1)).close()  # 0 would be any port
    except (OSError, OverflowError) as error:
        raise UserError(f"--port: {port} cannot be used ({error}). Does another server run there?") from error


def _secret() -> tuple[Path, str]:
    """The server's password, the same at each start; only this user can read it."""
    file = store_root() / SECRET
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() or not file.read_text().strip():  # a killed process may leave an empty one
        file.unlink(missing_ok=True)
        file.touch(0o600)
        file.write_text(secrets.token_hex(32))
    return file, file.read_text().strip()


def _log(name: str) -> Path:
    return store_root() / f"{name}.log"


@contextlib.contextmanager
def _started(name: str, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run Prefect's server or worker while the body runs. At the end, its runs have time to save their work."""
    own = os.getpid()

    def as_a_child() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Prefect turns SIGTERM into it
        follow_parent(own)

    with _log(name).open("ab") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **IMPORT_NOTHING_HERE},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is this command's, which ends the worker before its server
            preexec_fn=as_a_child,
        )
    try:
        yield process
    finally:
        end(process, GRACE_SECONDS)
