"""A model behind HTTP: answers as of the model itself, limits, keys, batches, and errors in words."""

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import psutil
import pytest

import megaclass
import tiny
from chromium import Page, find_chromium
from megaclass.cli import main
from megaclass.errors import UserError
from megaclass.gallery.gallery import Gallery
from megaclass.inference.embedding import metadata
from megaclass.inference.model import GivenLogits

testclient = pytest.importorskip("fastapi.testclient")
httpx = pytest.importorskip("httpx")
app, service, uploads = (pytest.importorskip(f"megaclass.serve.{name}") for name in ("app", "service", "uploads"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with class centres and a threshold, ``margin``, and one of a linear head, ``linear``."""
    root = tmp_path_factory.mktemp("serve")
    verified = {"task": "verification", "path": str(root / "records"), "folds": 2, "flip": True}
    for kind, evaluate in (("margin", verified), ("linear", {"task": "none"})):
        run = {"output": str(root / kind), "checkpoint_every": 10}
        head = {"kind": kind} if kind == "linear" else {"scale": 16.0}
        assert main(["train", tiny.recipe(root, run=run, head=head, evaluate=evaluate)]) == 0
    return root


@pytest.fixture(scope="module")
def models(runs):
    return {kind: megaclass.load(runs / kind, device="cpu", threads=1) for kind in ("margin", "linear")}


def serving(model, **options):
    built = app.build(service.Service(model, **options))
    return testclient.TestClient(built, raise_server_exceptions=False)


def pixels(number, side=40):
    return np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)


def png(number, side=40):
    return cv2.imencode(".png", pixels(number, side)[..., ::-1])[1].tobytes()


def files(*contents, name="images"):
    return {"files": [(name, (f"{number}.png", content)) for number, content in enumerate(contents)]}


@pytest.fixture(scope="module")
def known(runs):
    """A gallery of ann, image 0, and bob, image 1."""
    for number, name in enumerate(("ann", "bob")):
        (runs / "people" / name).mkdir(parents=True)
        (runs / "people" / name / "one.png").write_bytes(png(number))
    path, people = str(runs / "known"), str(runs / "people")
    assert main(["gallery", "build", path, people, "--run-dir", str(runs / "margin")]) == 0
    return Gallery(path)


@pytest.mark.parametrize("kind", ["margin", "linear"])
def test_answers_are_those_of_the_model(models, kind):
    model, images, sent = models[kind], [pixels(0), pixels(1)], files(png(0), png(1))
    with serving(model, threshold=0.3) as client:
        embeddings = client.post("/embed", **sent).json()["embeddings"]
        np.testing.assert_allclose(embeddings, model.embed(images), atol=1e-6)
        answer = client.post("/compare", **sent).json()
        assert answer["cosine"] == pytest.approx(model.compare(*images), abs=1e-6)
        assert (answer["threshold"], answer["same"]) == (0.3, answer["cosine"] >= 0.3)
        answer = client.post("/classify?top=2", **sent).json()
    assert answer["measure"] == model.measure
    for found, guesses in zip(answer["images"], model.classify(images, top=2), strict=True):
        assert [guess["score"] for guess in found["nearest"]] == pytest.approx([g.score for g in guesses], abs=1e-6)
        assert [guess["name"] for guess in found["nearest"]] == [g.name or str(g.label) for g in guesses]
        unknown = kind == "margin" and guesses[0].score < 0.3
        assert found["identity"] == (None if unknown else found["nearest"][0]["name"])


def test_logits_are_not_taken_for_embeddings(models):
    model = replace(models["linear"], head=GivenLogits())
    with serving(model) as client:
        for path in ("/embed", "/compare"):
            answer = client.post(path, **files(png(0), png(1)))
            assert answer.status_code == 404 and "ask /classify" in answer.json()["error"]
    with pytest.raises(UserError, match="gives classes alone"):
        metadata(model)  # as embed and gallery ask for it first


def test_search_finds_what_the_gallery_holds_and_what_others_add_to_it(models, known):
    with serving(models["margin"], gallery=known, threshold=0.99999) as client:
        first, third = client.post("/search", **files(png(1), png(2))).json()["images"]
        assert first["identity"] == "bob" and first["nearest"][0]["score"] == pytest.approx(1, abs=1e-5)
        assert third["identity"] is None and {found["name"] for found in third["nearest"]} == {"ann", "bob"}
        Gallery(known.directory, models["margin"]).add("cid", [pixels(2)], ["2.png"])
        assert client.post("/search", **files(png(2))).json()["images"][0]["identity"] == "cid"


def huge():
    """A few bytes that claim 81 million pixels."""
    encoded = bytearray(png(0))
    encoded[16:24] = (9_000).to_bytes(4, "big") * 2
    encoded[29:33] = zlib.crc32(encoded[12:29]).to_bytes(4, "big")
    return bytes(encoded)


PARTS = {"Content-Type": "multipart/form-data; boundary=x"}
REFUSED = {
    "no multipart/form-data": (415, "/embed", {"json": {}}),
    "0 of 1 parts are images": (400, "/embed", files(png(0), name="image")),
    "1 of 2 parts are images": (400, "/embed", {"data": {"images": "photo.jpg"}} | files(png(0))),
    "curl -F images=@photo.jpg": (400, "/embed", {"content": b"nonsense", "headers": PARTS}),
    "Maximum number of files is 3": (400, "/embed", files(*[png(0)] * 4)),
    "image 1 is none of JPEG, PNG, WEBP": (415, "/embed", files(b"GIF89a" + bytes(9))),
    "image 2: damaged image": (400, "/embed", files(png(0), png(0)[:900])),
    "9000 x 9000 pixels": (413, "/embed", files(huge())),
    "larger than 100.0 kB": (413, "/embed", files(bytes(100_001))),
    "larger than 100 kB": (413, "/embed", {"content": (bytes(1000) for _ in range(101)), "headers": PARTS}),
    "query.top": (400, "/classify?top=0", files(png(0))),
    "1 images; send two": (400, "/compare", files(png(0))),
    "--gallery": (404, "/search", files(png(0))),
    "Method Not Allowed": (405, "/nothing", files(png(0))),
}


def test_what_is_refused_is_told_in_words_and_counted(models, monkeypatch):
    with serving(models["margin"], limits=uploads.Limits(size=100_000, images=3, pixels=10_000)) as client:
        for words, (status, path, request) in REFUSED.items():
            answer = client.post(path, **request)
            assert answer.status_code == status, answer.text
            assert words.replace("100 kB", "100.0 kB") in answer.json()["error"]
        monkeypatch.setattr(service, "features", None)  # a fault of ours: no traceback, and the server goes on
        answer = client.post("/embed", **files(png(0)))
        assert (answer.status_code, answer.json()) == (500, {"error": "the server failed; its log says why"})
        monkeypatch.undo()
        assert client.post("/embed", **files(png(0))).status_code == 200 and client.get("/health").json()["ready"]
        for path in ("/", "/page.js", "/metrics"):  # nothing from elsewhere is let in
            policy = client.get(path).headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "http" not in policy
        text = client.get("/metrics").text
    for path, status in (("/embed", 200), ("/embed", 413), ("/embed", 500), ("other", 405)):
        assert f'megaclass_request_seconds_count{{path="{path}",status="{status}"}}' in text
    assert "megaclass_batch_images_count" in text and "/nothing" not in text


def test_keys_are_asked_for_before_a_body_is_read_and_no_image_goes_to_a_file(models, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", None)
    key = "0123456789abcdef"
    (tmp_path / "keys").write_text(f"# ours\n{key}\n\nfedcba9876543210\n")
    with serving(models["margin"], keys=uploads.read_keys(str(tmp_path / "keys"))) as client:
        for given in ("", "Bearer wrong", f"Basic {key}"):
            answer = client.post("/embed", json={}, headers={"Authorization": given})
            assert answer.status_code == 401 and "Bearer KEY" in answer.json()["error"]
            assert client.get("/metrics", headers={"Authorization": given}).status_code == 401
        large = client.post("/embed", **files(png(0, side=900)), headers={"Authorization": f"Bearer {key}"})
        assert large.status_code == client.get("/health").status_code == 200


def test_images_of_many_requests_share_batches_and_none_waits_long(models, monkeypatch):
    sizes = []
    monkeypatch.setattr(service.BATCHES, "observe", sizes.append)

    async def ask(wait_s, *counts):
        served = service.Service(models["margin"], batch=4, wait_s=wait_s)
        async with served.running():
            return await asyncio.gather(*(served([png(n) for n in range(count)]) for count in counts))

    rows = asyncio.run(ask(60.0, 1, 2, 5))
    assert sizes == [4, 4, 4]  # the first is that of a server that starts
    for found in rows:
        np.testing.assert_allclose(found, rows[2][: len(found)], atol=1e-5)
    assert len(asyncio.run(asyncio.wait_for(ask(0.01, 1), 30))[0]) == sizes[-1] == 1


def test_more_requests_than_the_queue_takes_are_told_to_come_again(models, monkeypatch):
    begun, go_on, features = threading.Event(), threading.Event(), service.features
    with (
        serving(models["margin"], limits=uploads.Limits(requests=1)) as client,
        ThreadPoolExecutor(1) as other,
    ):
        monkeypatch.setattr(service, "features", lambda *a: (begun.set(), go_on.wait(30), features(*a))[2])
        first = other.submit(client.post, "/embed", **files(png(0)))
        assert begun.wait(30)
        refused = client.post("/embed", **files(png(0)))
        go_on.set()
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert first.result().status_code == 200


def test_what_cannot_be_served_is_one_line(refused, tmp_path):
    (tmp_path / "keys").write_text("short\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for option, value, told in (
            ("--port", "0", "nowhere: no model there"),
            ("--port", port, f"127.0.0.1:{port} cannot be had"),
            ("--key-file", str(tmp_path / "keys"), "needs keys of 16 letters"),
            ("--key-file", "lost", "lost cannot be read"),
            ("--queue", "0", "--queue and --max-mb: 0 lets nothing in"),
        ):
            refused(["serve", "nowhere", option, value], told)


# -- processes ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(*words):
    """A server of its own: its process and address."""
    command = [sys.executable, "-m", "megaclass", "serve", *map(str, words), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, re.search(r"http://\S+", process.stderr.readline())[0]
        finally:
            process.kill()


@pytest.mark.process
def test_at_sigterm_requests_at_work_get_their_answers(runs):
    with started(runs / "margin", "--deadline-ms", "1500") as (process, url), ThreadPoolExecutor(1) as other:
        asked = other.submit(httpx.post, f"{url}/embed", **files(png(0)), timeout=60)
        while "megaclass_requests_at_work 1.0" not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert asked.result().status_code == 200
        assert process.wait(30) == 0 and process.stderr.read() == ""


@pytest.mark.slow
def test_memory_stays_over_20_000_requests(runs):
    """Of eight clients, most of whose requests are answered and some refused."""
    sent = [files(png(0)), files(png(1), png(2)), files(b"none")]

    def ask(url, count):
        with httpx.Client() as client:
            return [client.post(f"{url}/embed", **sent[n % 3], timeout=60).status_code for n in range(count)]

    with started(runs / "margin") as (process, url), ThreadPoolExecutor(8) as clients:
        memory = []
        for _ in range(5):
            for statuses in clients.map(ask, [url] * 8, [500] * 8):
                assert statuses[:3] == [200, 200, 415]
            memory.append(psutil.Process(process.pid).memory_info().rss)
        assert memory[-1] - memory[0] < 10_000_000, memory


@pytest.mark.process
@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium, maybe named by $MEGACLASS_CHROMIUM")
def test_a_person_uses_the_page_by_keyboard_on_a_phone(runs, known, tmp_path):
    contents = {"0.png": png(0), "1.png": png(1), "none.png": b"none"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    page = Page(find_chromium(), tmp_path / "profile")

    def choose(tabs, name, result):
        """Go on by so many tabs, open the dialog of files and choose one; what then stands in the result."""
        for press in [{"key": "Tab", "windowsVirtualKeyCode": 9}] * tabs + [{"key": "Enter", "text": "\r"}]:
            page.send("Input.dispatchKeyEvent", type="keyDown", **press)
            page.send("Input.dispatchKeyEvent", type="keyUp", key=press["key"])
        page.evaluate("new Promise(done => setTimeout(done, 300))")
        node = [what for event, what in page.events if event == "Page.fileChooserOpened"][-1]["backendNodeId"]
        page.send("DOM.setFileInputFiles", files=[str(tmp_path / name)], backendNodeId=node)
        found = f"document.querySelector('{result}')"
        return page.evaluate(f"new Promise(done => setInterval(() => {found} && done({found}.innerText), 50))")

    with started(runs / "margin", "--gallery", known.directory, "--threshold", "0.99999") as (_, url):
        page.show(390, 844, "dark")
        page.send("Page.setInterceptFileChooserDialog", enabled=True)
        page.open(url)
        choose(1, "0.png", "#compare .filled")
        assert choose(1, "0.png", "#compare .verdict").endswith("Same")
        assert "bob" in choose(1, "1.png", "#find .verdict")
        assert "none of JPEG" in choose(0, "none.png", "#find .error")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wrong = {"Runtime.exceptionThrown", "Network.loadingFailed"} & {name for name, _ in page.events}
    page.close()
    assert wrong == set()
