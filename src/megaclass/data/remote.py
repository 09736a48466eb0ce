"""Sets and files in object stores and on web servers: fetched into a cache of this machine, and read there.

The files lie in a directory named by the address and what the store says of them, so that what changes in
the store is another set, and one that is there never changes. A file gets its name when it is whole: a fetch that was
broken off goes on with those that are missing. Beside the directory is a lock file, locked by the process that fetches.
"""

import base64
import contextlib
import errno
import functools
import hashlib
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from megaclass.data.folder import IMAGE_SUFFIXES
from megaclass.data.shards import braces
from megaclass.data.threads import in_order
from megaclass.errors import UserError, first_line, in_bytes
from megaclass.files import cache_directory, locked

_URL = r"(?:s3|gs|hf|https?|memory):/+[^/:]*(?::\d+)?(?:/[^:]*)?"  # of its slashes a Path has lost one; \d: a port
_ACCESS = {
    "s3": ": AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL of a store that is not "
    "Amazon's; FSSPEC_S3_ANON=true where everyone may read",
    "gs": ": GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "hf": ": HF_TOKEN, or run `hf auth login`",
}
_ONE_FILE = (".bin", ".zip", ".npz", ".csv", ".tsv", ".txt", ".tar")
_RECORDS = ("train.rec", "train.idx", "property", "classes.txt")
_VERSIONS = ("ETag", "etag", "blob_id", "md5Hash", "Last-Modified", "LastModified", "mtime", "created")
_LOOKS, _MOST_FILES, _LEAST_FILES, _MOST_BYTES = 16, 64, 4, 1 << 28  # at once
_TELL_S = 15.0


class _File(NamedTuple):
    at: str  # its name in the store
    size: int
    version: str
    checksum: tuple[str, str]  # algorithm and hexadecimal, where the store states one


def split_addresses(paths: str) -> list[str]:
    """What stands between the ``:`` of several paths, some of which may be addresses."""
    return [found[1] for found in re.finditer(rf"(?:^|:)({_URL}|[^:]*)", paths)]


def local(path: str | Path) -> Path:
    """A path as it is; for an address, where on this machine its set or file lies, fetched if it has to be.

    One process of a machine fetches, the others wait for it. Raises UserError for what cannot be had.
    """
    url = re.sub(":/+", "://", str(path), count=1).rstrip("/")
    return _fetched(url) if re.fullmatch(_URL, str(path)) else Path(path)


@functools.cache
def _fetched(url: str) -> Path:
    with _told(url):
        store, name, files = _list(url)
        key = hashlib.sha256(f"{url} {files}".encode(errors="surrogateescape")).hexdigest()[:16]
        home = cache_directory() / "remote" / key
        home.parent.mkdir(parents=True, exist_ok=True)
        root = home / name
        with locked(home.with_suffix(".lock")):
            if missing := _missing(root, files):  # no other process has fetched them meanwhile
                _require_room(url, home.parent, _bytes(missing))
                _fetch(url, store, missing, root)
    return root / next(iter(files)) if url.lower().endswith(_ONE_FILE) and "{" not in url else root


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """Within the block, whatever a store's library raises (each has types of its own) is a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{url}: {first_line(error)}: pip install 'megaclass[remote]'") from None
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        why, access = first_line(cause), _ACCESS.get(url.partition(":")[0], "")
        advice = f"check the address, and access to it{access}"
        if isinstance(cause, OSError) and (cause.filename or cause.errno in (errno.ENOSPC, errno.EDQUOT)):
            why = f"{cause.filename or cache_directory()}: {cause.strerror}"
            advice = "mend that, or set MEGACLASS_CACHE to a disk with room"
        elif type(cause) is FileNotFoundError:
            why = "there is no such file or directory"
        raise UserError(f"{url} cannot be fetched: {why}; {advice}") from None


def _list(url: str) -> tuple[Any, str, dict[str, _File]]:
    """The file system, the name of the directory there, and the files to be fetched from it by their names."""
    import fsspec

    # Of what is raised as well, and of what Ctrl-C leaves behind, they would tell in many lines.
    for library in ("gcsfs", "asyncio"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {}
    if is_web := url.startswith("http"):
        import aiohttp

        # As it comes, it ends every transfer after five minutes.
        options["timeout"] = aiohttp.ClientTimeout(sock_connect=30, sock_read=60)
    base, _, last = url.rpartition("/")
    is_set = not last.lower().endswith(_ONE_FILE)
    store, base = fsspec.url_to_fs(url if is_set else base, **options)
    infos = {f"{base}/{name}": dict[str, Any]() for name in braces(last)}
    if is_set or (len(infos) > 1 and not is_web):
        store.ls(base)  # which tells what cannot be read, as find does not; and is one request for many names
    if is_set:
        infos = _of_a_set(base, store.find(base, detail=True, **({"on_error": "raise"} if is_web else {})))

    def look(at: str) -> _File:
        info = infos[at] if infos[at].get("size") is not None else store.info(at)
        if info.get("size") is None:
            raise OSError(f"the server does not say how many bytes {at} has")
        version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
        # The ETag of S3 is not always a checksum of the bytes; its library compares those that are.
        sha256 = (info.get("lfs") or {}).get("sha256")
        md5 = base64.b64decode(info.get("md5Hash") or info.get("Content-MD5") or "").hex()
        return _File(at, info["size"], version, ("sha256", sha256) if sha256 else ("md5", md5))

    name_of = unquote if is_web else str
    found = {name_of(file.at[len(base) + 1 :]): file for file in in_order(look, infos, _LOOKS)}
    if wrong := next((name for name in found if {"", ".", ".."} & set(name.split("/"))), None):
        raise UserError(f"{url} holds {wrong!r}, a name that leads out of its directory; rename it there")
    if not found:
        raise UserError(f"{url} holds no record set, images or tars; name their directory, or the file")
    # Evaluations are named by the places of their files.
    return store, re.sub(r"[^\w.-]", "_", base.rpartition("/")[2]).lstrip(".") or "set", found


def _of_a_set(base: str, infos: dict[str, Any]) -> dict[str, Any]:
    """Of all that lies under a directory, what is opened there: see :func:`megaclass.data.open.kind_of`."""
    names = {at[len(base) + 1 :]: at for at in infos if at.startswith(f"{base}/") and "?" not in at}
    seen = [name for name in names if not name.startswith(".") and "/." not in name]
    images = [name for name in seen if name.lower().endswith(IMAGE_SUFFIXES)]
    tars = [name for name in seen if name.endswith(".tar") and "/" not in name]
    taken = [name for name in _RECORDS if name in names] if _RECORDS[0] in names else images or tars
    return {names[name]: infos[names[name]] for name in taken}


def _bytes(files: dict[str, _File]) -> int:
    return sum(file.size for file in files.values())


def _sizes(directory: Path) -> dict[str, int]:
    found = {}
    for folder, _, names in os.walk(directory):
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(OSError):  # another process may be moving it
                found[str(path.relative_to(directory))] = path.stat().st_size
    return found


def _missing(root: Path, files: dict[str, _File]) -> dict[str, _File]:
    here = _sizes(root)
    return {name: file for name, file in files.items() if here.get(name) != file.size}


def _require_room(url: str, cache: Path, size: int) -> None:
    """UserError where so many bytes more do not fit the disk, or the limit that was set for the cache."""
    room, stated = shutil.disk_usage(cache).free, os.environ.get("MEGACLASS_CACHE_GB")
    try:
        limit = float(stated) * 1e9 - sum(_sizes(cache).values()) if stated else room
    except ValueError:
        raise UserError(f"MEGACLASS_CACHE_GB: {stated!r} is no number of gigabytes") from None
    if size > (left := max(0, min(room, limit))):
        raise UserError(
            f"{url}: {in_bytes(size)} are to be fetched, and {cache} has room for {in_bytes(left)}; "
            "remove sets there that are not in use, or set MEGACLASS_CACHE_GB, or MEGACLASS_CACHE to another disk"
        )


def _fetch(url: str, store: Any, files: dict[str, _File], root: Path) -> None:
    names, total, came, began = list(files), _bytes(files), 0, time.monotonic()
    _say(f"fetching {url}: {len(names):,} files, {in_bytes(total)}, into {root}")
    for left in root.parent.glob(".parts*"):  # by a process that was killed; no set's name has the dot
        shutil.rmtree(left)
    step, told = max(_LEAST_FILES, min(_MOST_FILES, _MOST_BYTES * len(files) // max(total, 1))), began
    for start in range(0, len(names), step):
        some = {name: files[name] for name in names[start : start + step]}
        _fetch_some(store, some, root)
        came, now = came + _bytes(some), time.monotonic()
        if now > told + _TELL_S or came == total:
            _say(f"fetched {in_bytes(came)} of {in_bytes(total)}, {in_bytes(came / (now - began))} a second")
            told = now


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fetch_some(store: Any, files: dict[str, _File], root: Path) -> None:
    """Files into place, each when it is whole. OSError for one that is not."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".parts", dir=root.parent, ignore_cleanup_errors=True) as parts:
        places = [Path(parts, str(number)) for number in range(len(files))]
        store.get([file.at for file in files.values()], list(map(str, places)))
        for place, (name, file) in zip(places, files.items(), strict=True):
            algorithm, checksum = file.checksum
            with place.open("rb") as part:
                if (size := place.stat().st_size) != file.size:
                    raise OSError(f"of {file.at} {size:,} bytes came, not {file.size:,}")
                if checksum and hashlib.file_digest(part, algorithm).hexdigest() != checksum:
                    raise OSError(f"{file.at} came with another {algorithm} than the store states")
                os.fsync(part.fileno())
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            place.replace(root / name)
