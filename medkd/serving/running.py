"""The socket and the loop of the server."""

from __future__ import annotations

import ipaddress
import socket

import uvicorn
from fastapi import FastAPI

from medkd.core.errors import RunError


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        RunError: the address is not this machine's, or in use.
    """
    if not 0 <= port < 65536:
        raise RunError(f"--port expects a number from 0 to 65535, found {port}.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise RunError(f"Cannot listen on {host}:{port}: {error.strerror or error}; choose another --port.") from error


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(application: FastAPI, listener: socket.socket) -> None:
    """Answer until the process is asked to stop (Ctrl-C, SIGTERM); requests that are there are answered first."""
    settings = uvicorn.Config(application, log_level="warning", server_header=False, date_header=False)
    uvicorn.Server(settings).run(sockets=[listener])
