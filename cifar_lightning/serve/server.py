"""The server: an address, uvicorn in a thread, and an orderly end."""

import contextlib
import errno
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from cifar_lightning.errors import UserError

MAX_CONNECTIONS = 500
"""Further ones get 503 at once: systems often let a process have 1,024 open files."""

GRACE_SECONDS = 25
"""What runs when the server is told to end has so long to be done."""

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""Names by which only this machine can call the server."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address; connections are refused until the server runs.

    Args:
        host: Name or address of this machine.
        port: 0 for any that is free.

    Raises:
        UserError: If the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"host={host}: no such name or address; 127.0.0.1 is this machine, 0.0.0.0 all its addresses"
        ) from error
    family, kind, protocol, _, address = found[0]
    # With its protocol, by which asyncio knows TCP and has small answers sent at once, 40 ms earlier.
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as connections of a server before may linger
        listener.bind(address)
    except OSError as error:
        listener.close()
        hint = "port=0 takes a free one" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "see host="
        raise UserError(f"port={port} on {host}: {error.strerror or error}; {hint}") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """The address of a server for a browser, such as ``http://127.0.0.1:8000``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_private(listener: socket.socket) -> bool:
    """Whether only this machine can reach a socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


@contextmanager
def served(app: ASGIApp, listener: socket.socket) -> Iterator[threading.Thread]:
    """Serve an application until the context is left, which waits for what runs by then and takes nothing new.

    Yields:
        The thread that serves; it ends before only if something fails.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        ws="none",
        lifespan="off",
        interface="asgi3",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    # In the main thread uvicorn would take the signals, which are the command's.
    thread = threading.Thread(target=server.run, args=([listener],), name="server")
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield thread
    finally:
        server.should_exit = True
        thread.join()
        with contextlib.suppress(OSError):
            listener.close()
