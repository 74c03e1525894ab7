"""Run the application under uvicorn: bind the address first, and end cleanly on SIGINT and SIGTERM."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from velatura.errors import BadSettings
from velatura.server.app import create_app
from velatura.server.settings import ServerSettings
from velatura.server.state import ServerState

if TYPE_CHECKING:
    from velatura.compare.cluster import Cluster

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 30
CLOSE_SECONDS = 5  # for which the end waits for answers that are being sent
MAX_CONNECTIONS = 512
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppableServer(uvicorn.Server):
    """uvicorn's server, which tells the workers of a signal at once, and ends without raising it again."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self._state = state

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Handle signals until the server has ended."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        earlier = {number: signal.signal(number, self.handle_exit) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second SIGINT does not wait for answers any more."""
        self._state.begin_stop()
        super().handle_exit(sig, frame)


def serve(settings: ServerSettings, on_ready: Callable[[str], None], *, ray: str | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: The server's settings.
        on_ready: Called with the address once requests are answered; the base may still be opening.
        ray: Address of a Ray cluster that paints, see `velatura.compare.cluster.connect`. None: this process paints.

    Raises:
        BadSettings: The address cannot be used, no Ray cluster answers at its address, or Ray is not installed.
        VelaturaError: The base cannot be opened, or another server uses the output folder.
    """
    listener = _bind(settings)
    with contextlib.closing(listener), _connect(ray) as cluster:
        app = create_app(settings, cluster)
        state: ServerState = app.state.velatura
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            proxy_headers=False,
            backlog=BACKLOG,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
        server = StoppableServer(config, state)
        state.on_failure = lambda: server.handle_exit(signal.SIGTERM, None)
        on_ready(address_of(settings, listener))
        server.run(sockets=[listener])
        if state.failure is not None:
            raise state.failure


@contextlib.contextmanager
def _connect(address: str | None) -> Generator[Cluster | None]:
    """Connect to the Ray cluster at an address, if one is given."""
    if address is None:
        yield None
        return
    from velatura.compare.cluster import connect

    with connect(address) as cluster:
        yield cluster


def address_of(settings: ServerSettings, listener: socket.socket) -> str:
    """Return the address that a browser opens, with the token if one is needed."""
    host, port = listener.getsockname()[:2]
    if settings.listen and host in {"0.0.0.0", "::"}:
        host = socket.gethostname()
    token = f"?token={settings.token.get_secret_value()}" if settings.token else ""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{token}"


def _bind(settings: ServerSettings) -> socket.socket:
    """Return a socket that listens at the address.

    Raises:
        BadSettings: It cannot: the port is taken, or the host is not this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise BadSettings(
            f"{settings.host}:{settings.port} cannot be used ({error.strerror or error}): choose another --port"
        ) from None
    return listener
