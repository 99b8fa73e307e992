"""The bytes of a request in files of the server's own, counted while they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from medkd.core.errors import DataError
from medkd.serving.limits import Limits, TooSlowError
from medkd.serving.segmenter import AbandonedError

_PART = "scan"
_DRAIN_SECONDS, _DRAIN_BYTES = 10.0, 2**28


async def receive(request: Request, folder: Path, channels: int, limits: Limits) -> tuple[Path, ...]:
    """Store what a client sends: a multipart form with one part ``scan`` per channel, or one file as the body.

    Args:
        request: whose body was not read yet; names that it gives to files are passed over.
        folder: new files are made here.
        channels: most files.
        limits: of bytes and seconds.

    Raises:
        TooLargeError: there are more bytes.
        TooSlowError: they do not come in time.
        DataError: it is no form that can be read.
        AbandonedError: the client has left.
    """
    stated = request.headers.get("content-length", "")
    limits.check_upload(int(stated) if stated.isdecimal() else 0)
    form = request.headers.get("content-type", "").startswith("multipart/form-data")
    read = _form(request, folder, channels, limits) if form else _body(request, folder, limits)
    try:
        return await asyncio.wait_for(read, limits.seconds)
    except asyncio.TimeoutError as error:
        raise TooSlowError(f"The upload took longer than {limits.seconds:g} seconds; send it again.") from error
    except ClientDisconnect as error:
        raise AbandonedError from error


async def drain(request: Request) -> None:
    """Read on what a refused client is still sending, some of it, since many look for an answer only afterwards."""
    if "expect" in request.headers and not hasattr(request.state, "begun"):
        return  # this one asks before it sends, and was not told to
    try:
        await asyncio.wait_for(_discard(request), _DRAIN_SECONDS)
    except (asyncio.TimeoutError, ClientDisconnect, RuntimeError):
        return  # RuntimeError: all of it was read before


async def _discard(request: Request) -> None:
    size = 0
    async for block in request.stream():
        size += len(block)
        if size >= _DRAIN_BYTES:
            return


async def _body(request: Request, folder: Path, limits: Limits) -> tuple[Path, ...]:
    path = folder / "upload_0"
    with path.open("wb") as file:
        async for block in _counted(request, limits):
            file.write(block)
    return (path,)


async def _form(request: Request, folder: Path, channels: int, limits: Limits) -> tuple[Path, ...]:
    parser = MultiPartParser(request.headers, _counted(request, limits), max_files=channels + 1, max_fields=8)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise DataError(f"The form cannot be read ({error.message.rstrip('.')}); send it again.") from error
    paths = []
    try:
        for number, part in enumerate(form.getlist(_PART)):
            if isinstance(part, str):
                raise DataError(f"The part '{_PART}' of the form must be a file; send the scan itself.")
            paths.append(folder / f"upload_{number}")
            await asyncio.to_thread(_store, part.file, paths[-1])
    finally:
        await form.close()
    return tuple(paths)


def _store(source: Any, path: Path) -> None:
    with path.open("wb") as file:
        while block := source.read(2**20):
            file.write(block)


async def _counted(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    size = 0
    request.state.begun = True
    async for block in request.stream():
        size += len(block)
        limits.check_upload(size)
        yield block
