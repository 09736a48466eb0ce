"""A model behind HTTP: answers as of the model itself, limits, keys, batches, and errors in words."""

import asyncio
import contextlib
import socket
import threading
import zlib

import cv2
import numpy as np
import pytest

import megaclass
import tiny
from megaclass.cli import main
from megaclass.gallery.gallery import Gallery, build
from megaclass.gallery.store import Manifest
from megaclass.inference.vectors import Block

testclient = pytest.importorskip("fastapi.testclient")
pytest.importorskip("prometheus_client")

from megaclass.serve import app, service, uploads  # noqa: E402 - of an extra
from megaclass.serve.uploads import Limits  # noqa: E402

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One with class centres and a threshold, ``margin``, and one of a linear head, ``linear``."""
    root = tmp_path_factory.mktemp("serve")
    verified = {"task": "verification", "path": str(root / "records"), "folds": 2, "flip": True}
    for kind, evaluate in (("margin", verified), ("linear", {"task": "none"})):
        run = {"output": str(root / kind), "checkpoint_every": 5}
        head = {"kind": kind} if kind == "linear" else {"scale": 16.0}
        assert main(["train", tiny.recipe(root, run=run, head=head, evaluate=evaluate)]) == 0
    return {kind: megaclass.load(root / kind, device="cpu", threads=1) for kind in ("margin", "linear")}


@contextlib.contextmanager
def serving(model, **options):
    with testclient.TestClient(
        app.build(service.Service(model, **options)), raise_server_exceptions=False
    ) as client:
        yield client


@pytest.fixture(scope="module")
def client(models):
    with serving(
        models["margin"], threshold=0.5, limits=Limits(size=100_000, images=3, pixels=10_000)
    ) as client:
        yield client


def pixels(number, side=40):
    return np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)


def png(number, side=40):
    return cv2.imencode(".png", pixels(number, side)[..., ::-1])[1].tobytes()


def files(*contents, name="images"):
    return [(name, (f"{number}.png", content)) for number, content in enumerate(contents)]


@pytest.mark.parametrize("kind", ["margin", "linear"])
def test_answers_are_those_of_the_model(models, kind):
    model, images = models[kind], [pixels(0), pixels(1)]
    with serving(model, threshold=0.3) as client:
        sent = files(png(0), png(1))
        embeddings = client.post("/embed", files=sent).json()["embeddings"]
        np.testing.assert_allclose(embeddings, model.embed(images), atol=1e-6)
        answer = client.post("/compare", files=sent).json()
        assert answer["cosine"] == pytest.approx(model.compare(*images), abs=1e-6)
        assert (answer["threshold"], answer["same"]) == (0.3, answer["cosine"] >= 0.3)
        answer = client.post("/classify?top=2", files=sent).json()
        assert answer["measure"] == model.measure
        for found, guesses in zip(answer["images"], model.classify(images, top=2), strict=True):
            assert [guess["score"] for guess in found["nearest"]] == pytest.approx(
                [g.score for g in guesses], abs=1e-6
            )
            assert [guess["name"] for guess in found["nearest"]] == [g.name or str(g.label) for g in guesses]
            unknown = kind == "margin" and guesses[0].score < 0.3
            assert found["identity"] == (None if unknown else found["nearest"][0]["name"])


def test_search_finds_what_the_gallery_holds_and_what_others_add_to_it(models, tmp_path):
    model, ours = models["margin"], {"fingerprint": "", "model": "m"}
    block = Block(["0.png", "1.png"], model.embed([pixels(0), pixels(1)]), np.arange(2))
    build(tmp_path / "known", Manifest(**ours), [block], ["ann", "bob"])
    with serving(model, gallery=Gallery(tmp_path / "known"), threshold=0.99999) as client:
        first, third = client.post("/search", files=files(png(1), png(2))).json()["images"]
        assert first["identity"] == "bob" and first["nearest"][0]["score"] == pytest.approx(1, abs=1e-5)
        assert third["identity"] is None and {found["name"] for found in third["nearest"]} == {"ann", "bob"}
        Gallery(tmp_path / "known", model).add("cid", [pixels(2)], ["2.png"])
        assert client.post("/search", files=files(png(2))).json()["images"][0]["identity"] == "cid"


def huge_png():
    """A few bytes that claim 81 million pixels."""
    encoded = bytearray(png(0))
    encoded[16:24] = (9_000).to_bytes(4, "big") * 2
    encoded[29:33] = zlib.crc32(encoded[12:29]).to_bytes(4, "big")
    return bytes(encoded)


MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"json": {}}, 415, "no multipart/form-data"),
        ({"files": files(png(0), name="image")}, 400, "0 of 1 parts are images"),
        ({"data": {"images": "photo.jpg"}, "files": files(png(0))}, 400, "1 of 2 parts are images"),
        ({"content": b"--x--\r\n", "headers": MULTIPART}, 400, "parts named images"),
        ({"content": b"nonsense", "headers": MULTIPART}, 400, "curl -F images=@photo.jpg"),
        ({"files": files(*[png(0)] * 4)}, 400, "Maximum number of files is 3"),
        ({"files": files(b"GIF89a" + bytes(9))}, 415, "image 1 is none of JPEG, PNG, WEBP"),
        ({"files": files(png(0), png(0)[:900])}, 400, "image 2: damaged image"),
        ({"files": files(png(0, side=101))}, 413, "101 x 101 pixels, more than 10,000"),
        ({"files": files(huge_png())}, 413, "9000 x 9000 pixels"),
        ({"files": files(bytes(100_001))}, 413, "larger than 100.0 kB"),
        ({"content": (bytes(1000) for _ in range(101)), "headers": MULTIPART}, 413, "larger than 100.0 kB"),
        ({"files": files(png(0)), "params": {"top": 0}}, 400, "query.top"),
    ],
)
def test_what_is_refused_is_told_in_words(client, monkeypatch, request_, status, words):
    if "9000" in words:
        monkeypatch.setattr(service, "decode", None)  # nothing is decoded
    answer = client.post("/classify", **request_)
    assert answer.status_code == status and words in answer.json()["error"], answer.text


def test_paths_without_an_answer(client):
    assert client.post("/compare", files=files(png(0))).json()["error"].startswith("1 images; send two")
    assert "--gallery" in client.post("/search", files=files(png(0))).json()["error"]
    assert client.get("/nothing").json() == {"error": "Not Found"}


def test_a_fault_is_no_traceback_and_the_next_request_is_served(models, monkeypatch):
    with serving(models["margin"]) as client:
        monkeypatch.setattr(service, "features", None)
        answer = client.post("/embed", files=files(png(0)))
        assert (answer.status_code, answer.json()) == (500, {"error": "the server failed; its log says why"})
        monkeypatch.undo()
        assert client.post("/embed", files=files(png(0))).status_code == 200
        assert client.get("/health").json()["ready"]


def test_keys_are_asked_for_before_a_body_is_read(models, tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\nfedcba9876543210\n")
    with serving(models["margin"], keys=uploads.read_keys(file), limits=Limits(size=10)) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            assert client.post("/embed", files=files(png(0)), headers=headers).status_code == 401
            assert client.get("/metrics", headers=headers).status_code == 401
        known = {"Authorization": f"Bearer {KEY}"}
        assert client.post("/embed", files=files(png(0)), headers=known).status_code == 413
        assert client.get("/metrics", headers=known).status_code == client.get("/health").status_code == 200


def test_no_image_goes_to_a_file(client, models, monkeypatch):
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", None)
    with serving(models["margin"]) as client:
        assert client.post("/embed", files=files(png(0, side=900), png(1, side=900))).status_code == 200


def test_every_reply_is_counted_and_lets_nothing_from_elsewhere_in(client):
    for path in ("/", "/page.js", "/health", "/nothing", "/openapi.json"):
        policy = client.get(path).headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "http" not in policy
    client.post("/embed", files=files(png(0)))
    text = client.get("/metrics").text
    for line in (
        'megaclass_request_seconds_count{path="/embed",status="200"} ',
        "megaclass_batch_images_count ",
    ):
        assert float(text.split(line)[1].split("\n")[0]) >= 1
    assert 'path="other",status="404"' in text and "/nothing" not in text


def test_images_of_many_requests_share_batches_and_none_waits_long(models, monkeypatch):
    sizes = []
    monkeypatch.setattr(service.BATCHES, "observe", sizes.append)

    async def ask(wait_s, counts):
        served = service.Service(models["margin"], batch=4, wait_s=wait_s)
        async with served.running():
            return await asyncio.gather(*(served([png(n) for n in range(count)]) for count in counts))

    rows = asyncio.run(ask(60.0, [1, 2, 5]))
    assert sizes == [4, 4, 4]  # the first prepares what is made once
    for found in rows:
        np.testing.assert_allclose(found, rows[2][: len(found)], atol=1e-5)
    assert len(asyncio.run(asyncio.wait_for(ask(0.01, [1]), 30))[0]) == 1
    assert sizes[-1] == 1


def test_more_requests_than_the_queue_takes_are_told_to_come_again(models, monkeypatch):
    begun, go_on, features = threading.Event(), threading.Event(), service.features

    def slow(*arguments):
        begun.set()
        assert go_on.wait(30)
        return features(*arguments)

    with serving(models["margin"], limits=Limits(requests=1)) as client:
        monkeypatch.setattr(service, "features", slow)
        first = threading.Thread(target=lambda: answers.append(client.post("/embed", files=files(png(0)))))
        answers = []
        first.start()
        assert begun.wait(30)
        refused = client.post("/embed", files=files(png(0)))
        go_on.set()
        first.join()
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert answers[0].status_code == 200


def test_what_cannot_be_served_is_one_line(tmp_path, capsys):
    short, taken = tmp_path / "keys", socket.create_server(("127.0.0.1", 0))
    short.write_text("short\n")
    port = str(taken.getsockname()[1])
    cases = {
        ("nowhere", "--port", "0"): "nowhere: no model there",
        ("nowhere", "--port", port): f"127.0.0.1:{port} cannot be had",
        ("nowhere", "--key-file", str(short)): "needs keys of 16 letters",
        ("nowhere", "--key-file", "lost"): "lost cannot be read",
        ("nowhere", "--queue", "0"): "--queue: 0 lets nothing in",
    }
    with taken:
        for words, told in cases.items():
            assert main(["serve", *words]) == 2
            error = capsys.readouterr().err
            assert told in error and error.count("\n") == 1
