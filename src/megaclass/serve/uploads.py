"""What clients send: a key, and images within limits. Nothing of it is written to a disk."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from megaclass.data.dataset import read_text
from megaclass.data.decode import check_header, format_of
from megaclass.errors import UserError, in_bytes

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what clients get wrong
_BODY_S = 30  # for a whole request to arrive
_HOW = "send files as multipart/form-data in parts named images: curl -F images=@photo.jpg"

# For OpenAPI: the body is read here, in memory and within limits, where FastAPI would put it on a disk.
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_SCHEMA = {"type": "object", "required": ["images"], "properties": {"images": _FILES}}
BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _SCHEMA}}}}


@dataclass(frozen=True)
class Limits:
    """Bytes and images of a request, pixels of an image, and requests that are at work at once."""

    size: int = 20_000_000
    images: int = 32
    pixels: int = 50_000_000
    requests: int = 64

    def check(self, encoded: bytes, where: str) -> None:
        """Refuse an image by its header, before it is decoded: a few kilobytes may claim billions of pixels."""
        if format_of(encoded) not in ("JPEG", "PNG", "WEBP"):
            raise HTTPException(415, f"{where} is none of JPEG, PNG, WEBP; convert it")
        height, width = check_header(encoded, where)
        if height * width > self.pixels:
            told = f"{where} has {width} x {height} pixels, more than {self.pixels:,}; shrink it"
            raise HTTPException(413, told)


def read_keys(path: str) -> list[bytes]:
    """Digests of the keys in a file, one a line; lines that begin with ``#`` are none. Raises UserError."""
    lines = map(str.strip, read_text(Path(path), "--key-file").splitlines())
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or min(map(len, keys)) < 16:
        raise UserError(f"--key-file: {path} needs keys of 16 letters or more; `openssl rand -hex 32` makes one")
    return [hashlib.sha256(key.encode()).digest() for key in keys]


async def read_images(request: Request, limits: Limits) -> list[bytes]:
    """The images of a request, still encoded."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, f"the body is no multipart/form-data; {_HOW}")
    told = f"the request is larger than {in_bytes(limits.size)}; send smaller or fewer images"
    too_large = HTTPException(413, told, {"Connection": "close"})  # else all the rest would be read
    if int(request.headers.get("content-length", 0)) > limits.size:
        raise too_large
    stream = _bounded(request, limits.size, too_large)
    parser = MultiPartParser(request.headers, stream, max_files=limits.images, max_fields=8)
    parser.spool_max_size = limits.size  # so that none goes to a file
    try:
        async with asyncio.timeout(_BODY_S):
            parts = (await parser.parse()).multi_items()
    except MultiPartException as error:
        raise HTTPException(400, f"{error.message} {_HOW}") from None
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {_BODY_S} seconds; send it again") from None
    found = [await part.read() for name, part in parts if name == "images" and isinstance(part, UploadFile)]
    if not found or len(found) < len(parts):
        raise HTTPException(400, f"{len(found)} of {len(parts)} parts are images; {_HOW}")
    return found


async def _bounded(request: Request, most: int, too_large: HTTPException) -> AsyncGenerator[bytes, None]:
    count = 0
    async for chunk in request.stream():
        if (count := count + len(chunk)) > most:
            raise too_large
        yield chunk
