"""Sets and files in object stores and on web servers: fetched into a cache of this machine, and read there.

In the cache the files lie in a directory named by the address and what the store says of them, so that what changes in
the store is another set, and one that is there never changes. A file gets its name when it is whole: a fetch that was
broken off goes on with those that are missing. Beside the directory is a lock file: locked by the process that fetches,
shared by all that read the set; its time is that of the last use.
"""

import base64
import contextlib
import errno
import fcntl
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
from megaclass.data.records.reader import record_files
from megaclass.data.shards import braces
from megaclass.data.threads import in_order
from megaclass.errors import UserError, first_line, in_bytes
from megaclass.files import cache_directory

# A Path has lost one of the slashes; digits before the next are a port.
_URL = r"(?:s3|gs|hf|https?|memory):/+[^/:]*(?::\d+)?(?:/[^:]*)?"
_ACCESS = {
    "s3": ": AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL of a store that is not "
    "Amazon's; FSSPEC_S3_ANON=true where everyone may read",
    "gs": ": GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "hf": ": HF_TOKEN, or run `hf auth login`",
}
_ONE_FILE = (".bin", ".zip", ".npz", ".csv", ".tsv", ".txt", ".tar")
_VERSIONS = ("ETag", "etag", "blob_id", "md5Hash", "Last-Modified", "LastModified", "mtime", "created")
_LOOKS, _MOST_FILES, _LEAST_FILES, _MOST_BYTES = 16, 64, 4, 1 << 28  # at once
_TELL_S = 15.0
_held: list[contextlib.ExitStack] = []  # shared locks, until this process ends


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
    with _told(url), contextlib.ExitStack() as held:
        store, name, files = _list(url)
        key = hashlib.sha256(f"{url} {files}".encode(errors="surrogateescape")).hexdigest()[:16]
        home = cache_directory() / "remote" / key
        home.parent.mkdir(parents=True, exist_ok=True)
        lock, root = held.enter_context(home.with_suffix(".lock").open("a")), home / name
        fcntl.flock(lock, fcntl.LOCK_SH)
        while _missing(root, files):
            fcntl.flock(lock, fcntl.LOCK_UN)  # some network file systems would wait for two that want more
            fcntl.flock(lock, fcntl.LOCK_EX)
            if missing := _missing(root, files):  # no other process has fetched them meanwhile
                _make_room(url, home, files, sum(file.size for file in missing.values()))
                _fetch(url, store, missing, root)
            fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(lock.fileno())
        _held.append(held.pop_all())
    return root / next(iter(files)) if url.endswith(_ONE_FILE) and "{" not in url else root


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
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise UserError(f"{url}: {error.strerror}; set MEGACLASS_CACHE to a disk with room") from None
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        why = "there is no such file or directory" if type(cause) is FileNotFoundError else first_line(cause)
        access = _ACCESS.get(url.partition(":")[0], "")
        raise UserError(
            f"{url} cannot be fetched: {why}; check the address, and access to it{access}"
        ) from None


def _list(url: str) -> tuple[Any, str, dict[str, _File]]:
    """The file system, the name of the directory there, and the files to be fetched from it by their names."""
    import fsspec

    options: dict[str, Any] = {}
    if is_web := url.startswith("http"):
        import aiohttp

        # As it comes, it ends every transfer after five minutes.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
        options["client_kwargs"] = {"timeout": timeout}
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # tells with a traceback what it raises as well
    base, _, last = url.rpartition("/")
    is_set = not last.lower().endswith(_ONE_FILE)
    store, base = fsspec.url_to_fs(url if is_set else base, **options)
    if is_set:
        store.ls(base)  # find is silent about what is not there, and on the web about what cannot be read
        infos = _of_a_set(base, store.find(base, detail=True, **({"on_error": "raise"} if is_web else {})))
    else:
        infos = {f"{base}/{name}": {} for name in braces(last)}
        if len(infos) > 1 and not is_web:
            store.ls(base)  # one request for all

    def look(at: str) -> _File:
        info = infos[at] if infos[at].get("size") is not None else store.info(at)
        if info.get("size") is None:
            raise OSError(f"the server does not say how many bytes {at} has")
        version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
        # The ETag of S3 is not always a checksum of the bytes; its library compares those that are.
        sha256 = (info.get("lfs") or {}).get("sha256")
        md5 = info.get("md5Hash") or info.get("Content-MD5") or ""
        checksum = ("sha256", sha256) if sha256 else ("md5", base64.b64decode(md5).hex())
        return _File(at, info["size"], version, checksum)

    name_of = unquote if is_web else str
    found = {name_of(file.at[len(base) + 1 :]): file for file in in_order(look, infos, _LOOKS)}
    if wrong := next((name for name in found if {"", ".", ".."} & set(name.split("/"))), None):
        raise UserError(f"{url} holds {wrong!r}, a name that leads out of its directory; rename it there")
    if not found:
        raise UserError(
            f"{url} holds no record set, no images and no tars; name their directory, or the file"
        )
    # Evaluations are named by the places of their files.
    return store, re.sub(r"[^\w.-]", "_", base.rpartition("/")[2]).lstrip(".") or "set", found


def _of_a_set(base: str, infos: dict[str, Any]) -> dict[str, Any]:
    """Of all that lies under a directory, what is opened there: see :func:`megaclass.data.open.kind_of`."""
    names = {at[len(base) + 1 :]: at for at in infos if at.startswith(f"{base}/") and "?" not in at}
    records = [file.name for file in record_files(Path("train.rec")) if file.name in names]
    seen = [name for name in names if not name.startswith(".") and "/." not in name]
    images = [name for name in seen if name.lower().endswith(IMAGE_SUFFIXES)]
    tars = [name for name in seen if name.endswith(".tar") and "/" not in name]
    return {names[name]: infos[names[name]] for name in (records if "train.rec" in names else images or tars)}


def _missing(root: Path, files: dict[str, _File]) -> dict[str, _File]:
    return {name: file for name, file in files.items() if _size(root / name) != file.size}


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return -1


def _bytes_under(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _make_room(url: str, home: Path, files: dict[str, _File], left: int) -> None:
    """Take the sets that were used longest ago out of the cache, until there is room. What is in use stays."""
    total, stated = sum(file.size for file in files.values()), os.environ.get("MEGACLASS_CACHE_GB")
    locks = sorted(home.parent.glob("*.lock"), key=lambda lock: lock.stat().st_mtime)
    sizes = {lock: _bytes_under(lock.with_suffix("")) for lock in locks if lock.stem != home.name}
    room = shutil.disk_usage(home.parent).free + sum(sizes.values()) + total - left
    limit = min(room, int(float(stated) * 1e9)) if stated else room // 2
    for lock in list(sizes):
        if total <= limit < total + sum(sizes.values()):
            with lock.open("a") as theirs, contextlib.suppress(BlockingIOError):
                fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                del sizes[lock]
    if total + sum(sizes.values()) > limit:
        raise UserError(
            f"{url} has {in_bytes(total)}; the cache {home.parent} may have {in_bytes(limit)}, and others use "
            f"{in_bytes(sum(sizes.values()))} of it; set MEGACLASS_CACHE_GB, or MEGACLASS_CACHE to another disk"
        )


def _fetch(url: str, store: Any, files: dict[str, _File], root: Path) -> None:
    names, total = list(files), sum(file.size for file in files.values())
    began = told = time.monotonic()
    print(
        f"fetching {url}: {len(names):,} files, {in_bytes(total)}, into {root}", file=sys.stderr, flush=True
    )
    for left in root.parent.glob("parts*"):  # by a process that was killed
        shutil.rmtree(left)
    step = max(_LEAST_FILES, min(_MOST_FILES, _MOST_BYTES * len(files) // max(total, 1)))
    for start in range(0, len(names), step):
        _fetch_some(store, {name: files[name] for name in names[start : start + step]}, root)
        now, left_over = time.monotonic(), names[start + step :]
        if now > told + _TELL_S or not left_over:
            told, came = now, total - sum(files[name].size for name in left_over)
            rate = f"{in_bytes(came / (now - began))} a second"
            print(f"fetched {in_bytes(came)} of {in_bytes(total)}, {rate}", file=sys.stderr, flush=True)


def _fetch_some(store: Any, files: dict[str, _File], root: Path) -> None:
    """Files into place, each when it is whole. OSError for one that is not."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="parts", dir=root.parent, ignore_cleanup_errors=True) as parts:
        missing = _missing(root, files)
        places = [Path(parts, str(number)) for number in range(len(missing))]
        store.get([file.at for file in missing.values()], [str(place) for place in places])
        for place, (name, file) in zip(places, missing.items(), strict=True):
            algorithm, checksum = file.checksum
            with place.open("rb") as part:
                if (size := place.stat().st_size) != file.size:
                    raise OSError(f"of {file.at} {size:,} bytes came, not {file.size:,}")
                if checksum and hashlib.file_digest(part, algorithm).hexdigest() != checksum:
                    raise OSError(f"{file.at} came with another {algorithm} than the store states")
                os.fsync(part.fileno())
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            place.replace(root / name)
