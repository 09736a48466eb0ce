"""From raw photographs to a browser that finds the right person: every step by its command, as the tutorial has it.

Of a pattern the service is asked with a picture that it has not seen. Sixty photographs teach no network to recognise
people, so of a person it is asked with one that the gallery has, turned and framed otherwise.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny
from chromium import Page, find_chromium
from megaclass.cli import main

SHARED = Path(__file__).parents[2] / "shared"
FACES = SHARED / "data/lfw/lfw_pairs_aligned_112.zip"
DETECTOR = SHARED / "models/yunet/yunet_n_640_640.onnx"
PEOPLE, PHOTOGRAPHS = 12, 5


def patterns():
    """Under noise, a directory each; the last of each is asked."""
    random = np.random.default_rng(0)
    for name, pattern in enumerate(random.integers(0, 200, (PEOPLE, 4, 4, 3)).repeat(12, 1).repeat(12, 2)):
        for number in range(PHOTOGRAPHS + 1):
            path = f"raw/pattern-{name}/{number}.png" if number < PHOTOGRAPHS else f"asked/pattern-{name}.png"
            write(path, (pattern + random.integers(0, 56, pattern.shape)).astype(np.uint8))
    return []


def faces():
    """A directory a person; the first of each is asked, as another photograph."""
    if not (FACES.exists() and DETECTOR.exists()):
        pytest.skip("needs the faces of LFW and a YuNet detector")
    by_person = defaultdict(list)
    with zipfile.ZipFile(FACES) as archive:
        for name in archive.namelist():
            if name.endswith(".jpg"):
                by_person[name.split("/")[0]].append(name)
        several = sorted(person for person, names in by_person.items() if len(names) >= PHOTOGRAPHS)
        random = np.random.default_rng(0)
        for person in several[:PEOPLE]:
            for number, name in enumerate(sorted(by_person[person])[:PHOTOGRAPHS]):
                face = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_COLOR)
                write(f"raw/{person}/{number}.png", photograph(face, random))
                if number == 0:
                    write(f"asked/{person}.png", photograph(face, random))
    return ["--align", str(DETECTOR)]


def photograph(face, random):
    """The face, turned and scaled, somewhere on a canvas."""
    matrix = cv2.getRotationMatrix2D((56, 56), random.uniform(-20, 20), random.uniform(1.5, 2.5))
    matrix[:, 2] += random.uniform(80, 140, 2)
    return cv2.warpAffine(face, matrix, (400, 400), borderValue=(90, 120, 60))


def write(path, image):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(path, image)


@pytest.mark.process
@pytest.mark.parametrize("photographs", [patterns, faces])
def test_photographs_become_a_service_that_knows_who_is_on_them(photographs, tmp_path, monkeypatch):
    pytest.importorskip("fastapi")
    if not (program := find_chromium()):
        pytest.skip("needs Chromium")
    monkeypatch.chdir(tmp_path)
    align = photographs()
    people = sorted(path.name for path in Path("raw").iterdir())

    def run(*words):
        assert main([str(word) for word in words]) == 0, words

    source = "raw"
    if align:
        run("data", "align", "raw", "aligned", "--detector", DETECTOR, "--quality", 0)
        source = "aligned"
    run("data", "pack", source, "packed", "--image-size", 48)
    sections = {
        "run": {"output": "run", "checkpoint_every": 200},
        "data": {"path": "packed", "image_size": 48},
        "evaluate": {"task": "verification", "path": "packed", "folds": 2},
        "schedule": {"steps": 200},
        "optim": {"lr": 0.05},
    }
    run("train", tiny.recipe(tmp_path, **sections))
    run("evaluate", "verification", "packed", "--run-dir", "run", "--evaluate.folds", 2)
    run("bundle", "run", "shared")
    run("gallery", "build", "known", "raw", "--run-dir", "shared", *align)
    run("gallery", "search", "known", "asked", "--run-dir", "shared", *align, "--output", "found.csv")
    served = [sys.executable, "-m", "megaclass", "serve", "shared", "--gallery", "known", *align, "--port"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    server = subprocess.Popen([*served, str(port)], env=environment)
    try:
        wait_for(address + "health", server)
        page = Page(program, tmp_path / "profile")
        try:
            found = [who(page, address, Path("asked", f"{person}.png")) for person in people[:3]]
        finally:
            page.close()
    finally:
        server.terminate()
        assert server.wait(30) in (0, -15)
    assert found == people[:3]


def wait_for(address, server):
    for _ in range(600):
        assert server.poll() is None
        try:
            with urllib.request.urlopen(address) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the service does not come up")


def who(page, address, photograph):
    """Who a person with a browser is told is nearest."""
    page.open(address)
    field = page.send("Runtime.evaluate", expression="document.querySelector('#find input')")["result"]
    page.send("DOM.setFileInputFiles", files=[str(photograph.resolve())], objectId=field["objectId"])
    return page.evaluate(
        "new Promise(done => setInterval(() => {"
        " const found = document.querySelector('#find .nearest span, #find .error');"
        " if (found) done(found.innerText); }, 50))"
    )
