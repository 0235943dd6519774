"""A Prefect server for one local run. It ends with the run, whatever ends that.

Prefect can start one by itself, which a killed run leaves behind for ever.
"""

import atexit
import os
import socket
import subprocess
import sys
import urllib.request
from typing import Any

from tasks.child import follow_parent
from tasks.errors import UserError

START_SECONDS = 180
GRACE_SECONDS = 5


def ensure_server() -> None:
    """Start a server for this process when Prefect's settings name none.

    Raises:
        UserError: it does not come up.
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        return
    print("starting a Prefect server for this run", file=sys.stderr, flush=True)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # clients queue here until the server answers
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(listening.fileno()), str(os.getpid())],
            pass_fds=(listening.fileno(),),
            env={**os.environ, "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"},
            start_new_session=True,  # Ctrl-C is the run's; the server hears of the end of the run
        )
    atexit.register(_end, server)
    try:
        urllib.request.urlopen(f"{url}/health", timeout=START_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"The Prefect server for this run does not come up ({error}). Set PREFECT_API_URL to use another one."
        ) from error
    os.environ.update(PREFECT_API_URL=url, PREFECT_UI_URL="")  # it has no pages to point to
    refresh_global_settings_context()


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def main(descriptor: int, parent: int) -> None:
    """Be the server, on a socket that listens already, as long as the parent lives."""
    follow_parent(parent)
    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
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
    main(int(sys.argv[1]), int(sys.argv[2]))
