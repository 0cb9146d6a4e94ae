"""Request bodies with limits: bytes, seconds, decompressed size.

Pictures go to anonymous files in memory.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import zlib
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from basnet_runtime.serve.problems import Problem
from basnet_torch.files import Closing

__all__ = ["BodyLimits", "PictureBytes", "body_bytes", "picture_form"]

_READ_AWAY = 1 << 20  # of a body that is refused, so that simple clients see the answer instead of a reset
_READ_AWAY_SECONDS = 2.0
_FIELDS = 8
_CLOSE = {"Connection": "close"}  # else a client that sends on and the server that reads no more wait for each other
_RAW_TYPES = ("image/", "application/octet-stream", "application/x-www-form-urlencoded", "video/")


class PictureBytes(Closing):
    """A picture's bytes under a private path for decoders; `close` frees them."""

    def __init__(self, data: bytes = b"") -> None:
        self.size = 0
        if hasattr(os, "memfd_create"):
            self._descriptor = os.memfd_create("picture")
            self.path = Path(f"/proc/self/fd/{self._descriptor}")
        else:
            self._descriptor, name = tempfile.mkstemp(prefix="basnet-serve-")
            self.path = Path(name)
        self.append(data)

    def append(self, data: bytes) -> None:
        """Add bytes at the end."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._descriptor, left) :]
        self.size += len(data)

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        if not self.path.is_relative_to("/proc"):
            self.path.unlink(missing_ok=True)


class BodyLimits:
    """Limits of bodies: bytes and seconds of each, bytes of all together.

    They wait in memory.
    """

    def __init__(
        self,
        *,
        each: int,
        together: int,
        seconds: float,
        busy: Callable[[int, str, str], Problem],
        timed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`busy` creates a refusal of status, text, reason; `timed` wraps reading."""
        self.each = each
        self.seconds = seconds
        self._together = together
        self._busy = busy
        self._timed = timed
        self._held = 0

    def take(self, request: Request, size: int) -> None:
        """Count bytes that a request holds from now on.

        Raises:
            Problem: 413 or 429: its own are too many, or those of all.
        """
        own = request.state.body_bytes + size
        if own > self.each:
            raise Problem(
                413,
                f"body: larger than {self.each:,} bytes. Send a smaller picture, or raise --max-bytes",
                headers=_CLOSE,
            )
        if self._held + size > self._together:
            problem = self._busy(429, f"bodies: more than {self._together:,} bytes together", "bodies")
            problem.headers |= _CLOSE
            raise problem
        request.state.body_bytes = own
        self._held += size

    def give_back(self, request: Request) -> None:
        """End what `take` counted for a request."""
        self._held -= request.state.body_bytes

    @asynccontextmanager
    async def in_time(self) -> AsyncGenerator[None]:
        """Bound and measure the reading of a body.

        Raises:
            Problem: 408: it is late.
        """
        try:
            with self._timed():
                async with asyncio.timeout(self.seconds):
                    yield
        except TimeoutError:
            detail = f"body: not received within {self.seconds:g} s. Send it faster"
            raise Problem(408, detail, reason="slow", headers=_CLOSE) from None


async def body_bytes(request: Request, limits: BodyLimits) -> bytes:
    """The whole body, decompressed.

    Raises:
        Problem: 400, 408, 413, 415 or 429: broken, late, too large, compressed in an unknown way, or one too many.
        ClientDisconnect: The caller left.
    """
    async with limits.in_time():
        return b"".join([chunk async for chunk in _limited(request, limits)])


@asynccontextmanager
async def picture_form(request: Request, limits: BodyLimits) -> AsyncGenerator[dict[str, PictureBytes]]:
    """Yield the pictures of a request by field name.

    A body that is no form is the field `image`.

    Raises:
        Problem: As of `body_bytes`, and 422 where the form has no field `image`.
        ClientDisconnect: The caller left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if kind and not kind.startswith(_RAW_TYPES):
            raise Problem(
                415, f"content type: {kind[:80]}, must be image/*, application/octet-stream or multipart/form-data"
            )
        # Bytes go to the file as they come: kept in pieces, they would leave a heap that never shrinks.
        with PictureBytes() as image:
            async with limits.in_time():
                async for chunk in _limited(request, limits):
                    image.append(chunk)
            yield {"image": image}
        return
    async with limits.in_time():
        form = await _parsed(request.headers, _limited(request, limits), limits.each)
    with ExitStack() as held:
        try:
            pictures = {name: held.enter_context(PictureBytes(data)) for name, data in (await _pictures(form)).items()}
        finally:
            await form.close()
        yield pictures


async def _parsed(headers: Headers, stream: AsyncGenerator[bytes, None], max_bytes: int) -> FormData:
    parser = MultiPartParser(headers, stream, max_files=_FIELDS, max_fields=_FIELDS, max_part_size=max_bytes)
    parser.spool_max_size = max_bytes + 1  # stays in memory: a container's file system may be read-only
    try:
        return await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        detail = getattr(error, "message", "") or "it cannot be parsed"
        raise Problem(
            400, f"form: {detail.rstrip('.')[:120]}. Send multipart/form-data with the field image"
        ) from error


async def _pictures(form: FormData) -> dict[str, bytes]:
    pictures: dict[str, bytes] = {}
    for name, value in form.multi_items():
        if name not in ("image", "background"):
            raise Problem(422, f"form field: {name[:40]!r}, must be image or background. Options go into the query")
        if not isinstance(value, UploadFile):
            raise Problem(422, f"form field {name}: is text, must be a file. Nothing is fetched by address")
        if name in pictures:
            raise Problem(422, f"form field {name}: is there twice. Send one picture a request")
        pictures[name] = await value.read()
    if "image" not in pictures:
        raise Problem(422, "form field image: is missing. Send the picture as the file of that field")
    return pictures


async def _limited(request: Request, limits: BodyLimits) -> AsyncGenerator[bytes, None]:
    """Chunks of the body, decompressed, none of them kept beyond the limits."""
    inflate = _decompressor(request.headers.get("content-encoding", "").strip().lower())
    declared = request.headers.get("content-length", "")
    try:
        if declared.isdigit() and int(declared) > limits.each:
            limits.take(request, int(declared))
        async for chunk in request.stream():
            plain = chunk if inflate is None else _inflated(inflate, chunk, limits.each - request.state.body_bytes)
            limits.take(request, len(plain))
            yield plain
    except Problem:
        await _read_away(request)
        raise
    if inflate is not None and not inflate.eof:
        raise Problem(400, "body: its gzip stream is cut off. Send it again")


def _decompressor(encoding: str) -> Any:
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "deflate"):
        return zlib.decompressobj(wbits=47 if encoding == "gzip" else 15)
    raise Problem(415, f"content encoding: {encoding[:40]}, must be gzip or deflate")


def _inflated(inflate: Any, chunk: bytes, left: int) -> bytes:
    """What a chunk expands to, at most one byte more than may come: a small body may expand to gigabytes."""
    try:
        plain = bytes(inflate.decompress(chunk, left + 1)) if chunk else b""
    except zlib.error as error:
        raise Problem(400, "body: it is no valid gzip or deflate stream. Send it again") from error
    if inflate.unused_data:
        raise Problem(400, "body: something comes after its compressed stream. Send one stream", headers=_CLOSE)
    return plain


async def _read_away(request: Request) -> None:
    left = _READ_AWAY
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(_READ_AWAY_SECONDS):
            while left > 0:
                message = await request.receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
