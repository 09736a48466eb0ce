"""Sets in stores: read as if they were here, fetched once and whole, within the room that there is."""

import base64
import errno
import functools
import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import pytest

import tiny
from megaclass.cli import main
from megaclass.data import remote
from megaclass.data.open import open_dataset, split_paths
from megaclass.errors import UserError
from tars import write_tars

MEMORY = type(fsspec.filesystem("memory"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGACLASS_CACHE", str(tmp_path / "cache"))
    another_process()
    yield tmp_path / "cache/remote"
    another_process()


def another_process():
    """What this one has fetched is forgotten."""
    remote._fetched.cache_clear()


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A record set, the same as a folder and as tars, among files that are of none of them."""
    folder = tmp_path_factory.mktemp("sets")
    records = open_dataset(tiny.write_records(folder / "records"))
    for number in range(len(records)):
        encoded, label = records.read(number)
        path = folder / f"folder/class {label}/{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
    write_tars(folder / "tars", records)
    for name in ("records", "folder", "tars"):
        (folder / name / "README.md").write_text("no part of it")
        (folder / name / ".hidden.jpg").write_text("nor this")
    return folder


@pytest.fixture
def memory(sets):
    store = fsspec.filesystem("memory")
    store.put(f"{sets}/", "/bucket/", recursive=True)
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


@pytest.fixture
def web(sets):
    pytest.importorskip("aiohttp")
    fetched = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            fetched.append(self.path) if self.command == "GET" else None

    handler = functools.partial(Handler, directory=sets)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", fetched
        server.shutdown()


@pytest.fixture
def s3(sets, monkeypatch):
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    store.mkdir("bucket")
    store.put(f"{sets}/", "bucket/", recursive=True)
    yield "s3://bucket"
    server.stop()


@pytest.mark.parametrize("store", ["memory", "web", "s3"])
def test_a_set_in_a_store_is_read_as_one_that_is_here(store, sets, request, capfd):
    found = request.getfixturevalue(store)
    base = found[0] if store == "web" else found
    for name in ("records", "folder", "tars", "tars/part-{0..2}.tar"):
        there, wanted = open_dataset(f"{base}/{name}"), open_dataset(sets / name)
        assert [there.read(n) for n in range(len(there))] == [wanted.read(n) for n in range(len(wanted))]
        assert getattr(there, "classes", None) == getattr(wanted, "classes", None)
    joined = f"{base}/records:{sets}/folder:{base}/tars/"
    assert [path.name for path in split_paths(joined)] == ["records", "folder", "tars"]
    assert open_dataset(Path(joined)).num_classes == 3 * tiny.CLASSES  # a Path has lost slashes
    assert "fetched" in capfd.readouterr().err


def test_a_run_trains_and_evaluates_on_what_is_in_a_store(memory, tmp_path):
    evaluation = {"task": "verification", "path": f"{memory}/folder", "pairs": 20, "folds": 2}
    job = tiny.job(tmp_path, data={"path": f"{memory}/tars"}, evaluate=evaluation)
    assert job.num_classes == tiny.CLASSES and job.epoch_samples == tiny.CLASSES * tiny.SAMPLES
    assert job.evaluator(job.backbone, None).metrics["pairs"] == 20
    assert job.config.data.path == f"{memory}/tars"  # what the run's directory will say


def test_what_is_here_is_not_fetched_again_and_what_changed_is(memory, cache, monkeypatch):
    first = remote.local(f"{memory}/records")
    another_process()
    with monkeypatch.context() as patched:
        patched.setattr(MEMORY, "get", None)
        assert remote.local(f"{memory}/records/") == first
    another_process()
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/records/property", store.cat("/bucket/records/property"))  # at another time
    assert remote.local(f"{memory}/records") != first and first.exists()
    another_process()
    (first / "train.rec").write_bytes(b"cut")
    assert open_dataset(f"{memory}/records")


def test_a_set_called_as_parts_are_is_completed(memory, monkeypatch):
    """What a killed process left of others is taken away, and not the set itself."""
    fsspec.filesystem("memory").copy("/bucket/records", "/bucket/parts-1", recursive=True)
    (remote.local(f"{memory}/parts-1") / "train.idx").unlink()
    another_process()
    fetched = []
    with monkeypatch.context() as patched:
        patched.setattr(MEMORY, "get", lambda *words: (fetched.extend(words[1]), MEMORY_GET(*words)))
        assert open_dataset(f"{memory}/parts-1") and fetched == ["/bucket/parts-1/train.idx"]


def lost(store, sources, targets):
    MEMORY_GET(store, sources, targets)
    os.truncate(targets[-1], 10)


def changed(store, sources, targets):
    MEMORY_GET(store, sources, targets)
    with Path(targets[0]).open("r+b") as file:
        file.write(b"else")


def full(store, sources, targets):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


MEMORY_GET = MEMORY.get


@pytest.mark.parametrize(
    ("get", "message"),
    [
        (lost, r"records cannot be fetched: of /bucket/records/\S+ 10 bytes came, not [\d,]+; check"),
        (changed, "came with another md5 than the store states"),
        (full, r"fetched: /\S+: No space left on device; mend that, or set MEGACLASS_CACHE to a disk"),
    ],
)
def test_what_does_not_come_whole_is_not_taken(memory, sets, cache, monkeypatch, get, message):
    find = MEMORY.find

    def with_checksums(store, *words, **options):
        found = find(store, *words, **options)
        for name in found if options.get("detail") else ():
            found[name]["md5Hash"] = base64.b64encode(hashlib.md5(store.cat(name)).digest()).decode()
        return found

    monkeypatch.setattr(MEMORY, "find", with_checksums)
    with pytest.raises(UserError, match=message), monkeypatch.context() as patched:
        patched.setattr(MEMORY, "get", get)
        remote.local(f"{memory}/records")
    here = {path.name: path.read_bytes() for path in cache.rglob("*.*") if path.suffix != ".lock"}
    assert all(content == (sets / "records" / name).read_bytes() for name, content in here.items())
    assert len(open_dataset(f"{memory}/records")) == tiny.CLASSES * tiny.SAMPLES


def test_processes_that_want_a_set_at_once_fetch_it_once(web):
    code = "import sys; from megaclass.data.remote import local; print(local(sys.argv[1]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    base, fetched = web
    words = [sys.executable, "-c", code, f"{base}/records"]
    options = {"stdout": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen(words, **options) for _ in range(2)]
    assert len({process.communicate(timeout=60)[0] for process in processes}) == 1
    assert fetched.count("/records/train.rec") == 1


def test_the_cache_keeps_to_its_limit(memory, monkeypatch):
    here = remote.local(f"{memory}/folder")
    monkeypatch.setenv("MEGACLASS_CACHE_GB", "1e-6")
    with pytest.raises(UserError, match=r"tars: \d+\.\d kB are to be fetched, and \S+ has room for 0 "):
        remote.local(f"{memory}/tars")
    another_process()
    assert remote.local(f"{memory}/folder") == here  # what is there needs no room
    monkeypatch.setenv("MEGACLASS_CACHE_GB", "much")
    with pytest.raises(UserError, match="MEGACLASS_CACHE_GB: 'much' is no number"):
        remote.local(f"{memory}/records")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://bucket/gone", "gone cannot be fetched: there is no such file or directory; check"),
        ("memory://bucket/gone.bin", "gone.bin cannot be fetched: there is no such file"),
        (r"memory://bucket/tars/part-{0..3}.tar", "cannot be fetched: there is no such file"),
        ("memory://bucket/empty", "holds no record set, images or tars"),
        ("gs://bucket/set", "gcsfs.*: pip install 'megaclass\\[remote\\]'"),
    ],
)
def test_what_cannot_be_had_is_one_line(memory, address, message, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    fsspec.filesystem("memory").pipe("/bucket/empty/notes.txt", b"")
    assert main(["data", "info", address]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_names_that_lead_out_of_the_cache_are_refused(memory, cache, monkeypatch):
    names = {f"/bucket/records/{name}": {"size": 1} for name in ("../../x.jpg", ".././x.jpg", "a//x.jpg")}
    leads_out = pytest.raises(UserError, match=r"'a//x.jpg', a name that leads out of its directory")
    with leads_out, monkeypatch.context() as patched:
        patched.setattr(MEMORY, "find", lambda *_, **__: names)
        remote.local(f"{memory}/records")
