"""Faces aligned: the transform by its definition, EXIF, rules, and photographs made of LFW's in which to find them."""

import csv
import io
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from megaclass.cli import main
from megaclass.data.dataset import DamagedSampleError
from megaclass.data.decode import decode
from megaclass.data.faces import Aligned, Face, FaceDetector, Rules, similarity, template, upright, warped
from megaclass.data.imagelist import ImageList
from megaclass.errors import UserError

# Beside the project, and never in it: the licences are others'.
SHARED = Path(os.environ.get("MEGACLASS_SHARED") or Path(__file__).parents[4] / "shared")
YUNET, LFW = SHARED / "models/yunet/yunet_n_640_640.onnx", SHARED / "data/lfw/lfw_pairs_aligned_112.zip"
needs_faces = pytest.mark.skipif(not (YUNET.exists() and LFW.exists()), reason=f"no {YUNET} or no {LFW}")
PEOPLE = ["Aaron_Peirsol/Aaron_Peirsol_0001.jpg", "Abdoulaye_Wade/Abdoulaye_Wade_0001.jpg"]
NOISE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (200, 300, 3)).astype(np.uint8), (0, 0), 4)
HEADER = "path,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5\n"


def umeyama(source_P2, target_P2):
    """The paper's equations 34 to 43, by a singular value decomposition."""
    source, target = source_P2 - source_P2.mean(0), target_P2 - target_P2.mean(0)
    u, d, vt = np.linalg.svd(target.T @ source / len(source))
    s = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation, scale = u @ s @ vt, np.trace(np.diag(d) @ s) / source.var(0).sum()
    return np.column_stack([scale * rotation, target_P2.mean(0) - scale * rotation @ source_P2.mean(0)])


def at(x=50.0, y=50.0, size=112.0, degrees=0.0):
    turn = cv2.getRotationMatrix2D((0, 0), degrees, size / 112)
    return Face((template(112, 112) - 56) @ turn[:, :2].T + [x, y])


# The nose half as far from the middle as the eyes are from one another: 45 degrees to the side.
ASIDE = Face(np.array([[10.0, 10], [60, 10], [60, 35], [15, 60], [55, 60]]))


def line(name, face):
    return ",".join([name, *map(str, face.points_P2.ravel())]) + "\n"


@pytest.mark.parametrize("seed", range(3))
def test_similarity_is_that_of_umeyama(seed):
    rng = np.random.default_rng(seed)
    source_P2, target_P2 = rng.normal(size=(2, 5, 2)) * 100
    np.testing.assert_allclose(similarity(source_P2, target_P2), umeyama(source_P2, target_P2), atol=1e-6)


@pytest.mark.parametrize(
    ("size", "ratio", "offset"),
    [((112, 112), 1, 0), ((224, 224), 2, 0), ((128, 128), 1, 8), ((256, 256), 2, 16), ((112, 96), 1, -8)],
)
def test_templates_of_other_sizes_are_those_of_insightface(size, ratio, offset):
    np.testing.assert_allclose(template(*size), template(112, 112) * ratio + [offset, 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_as_viewers_show_them(orientation):
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(NOISE[:5, :7]).save(file, "JPEG", exif=exif, quality=100)
    shown = cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(upright(file.getvalue(), "x"), shown)


@pytest.mark.parametrize(
    ("rules", "found", "chosen", "kind"),
    [
        (Rules(), [], [], "no face found"),
        (Rules(min_size=30), [at(size=29)], [], "face too small"),
        (Rules(max_turn=20), [at(degrees=25), at(degrees=-25)], [], "face turned too far"),
        (Rules(max_turn=44), [ASIDE], [], "face turned too far"),
        (Rules(max_turn=46), [ASIDE], [0], "aligned"),
        (Rules("single"), [at(), at(90)], [], "several faces"),
        (Rules("single"), [at(), at(size=9)], [0], "aligned"),
        (Rules(), [at(size=50), at(size=90), at(size=60)], [1], "aligned"),
        (Rules("central"), [at(10), at(55, size=50), at(90)], [1], "aligned"),
        (Rules("all", max_turn=20), [at(size=50), at(size=90), at(degrees=40)], [1, 0], "aligned"),
    ],
)
def test_rules_choose_faces_or_say_why_none(rules, found, chosen, kind):
    assert rules.choose(found, NOISE[:100, :100]) == ([found[number] for number in chosen], kind)


def test_a_large_face_is_shrunk_by_the_mean_and_not_by_skipping_pixels():
    stripes = np.zeros((1120, 1120, 3), np.uint8)
    stripes[:, ::2] = 200
    aligned = warped(stripes, Face(template(1120, 1120)))
    assert set(np.unique(aligned[1:, 1:])) <= {99, 100, 101}


@pytest.mark.parametrize("content", [None, b"", b"\x08\x01nothing"])
def test_a_file_that_is_no_detector_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "detector.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"^.*detector\.onnx: not a face detector .*; name a YuNet file[^\n]*$"):
        FaceDetector(path)


@needs_faces
@pytest.mark.parametrize("name", PEOPLE)
def test_faces_are_found_where_they_were_pasted(name):
    face_HWC, detector = decode(ImageList(LFW, [name]).read(0).encoded, ""), FaceDetector(YUNET)

    def found(degrees, scale):
        """The points in a photograph of the face turned and scaled, brought back to where they are on the face."""
        side = round(300 * scale)
        turn = cv2.getRotationMatrix2D((56, 56), degrees, scale) + np.array([[0, 0, side / 2 - 56]] * 2)
        (face,) = detector(cv2.warpAffine(face_HWC, turn, (side, side), borderValue=(120, 120, 120)))
        back = cv2.invertAffineTransform(turn)
        return face.points_P2 @ back[:, :2].T + back[:, 2]

    plain_P2 = found(0, 1)
    # LFW was aligned by another detector, whose points are some pixels off this one's.
    assert np.linalg.norm(plain_P2 - template(112, 112), axis=1).mean() < 6
    for degrees, scale in ((25, 0.7), (-20, 8), (40, 1)):
        assert np.linalg.norm(found(degrees, scale) - plain_P2, axis=1).mean() < 3, degrees


def test_a_data_set_seen_aligned(tmp_path):
    (tmp_path / "0.png").write_bytes(cv2.imencode(".png", NOISE[..., ::-1])[1])
    images = ImageList(tmp_path, ["0.png"])
    seen = Aligned(images, lambda image_HWC: [at(90, 80, 50, 10)], 112, 96).read(0)
    np.testing.assert_array_equal(decode(seen.encoded, ""), warped(NOISE, at(90, 80, 50, 10), 112, 96))
    with pytest.raises(DamagedSampleError, match=r"0\.png: no face found$"):
        Aligned(images, lambda image_HWC: [], 112, 112).read(0)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Photographs, one damaged, and the points of their faces."""
    monkeypatch.chdir(tmp_path)
    for name in ("raw/a/1.png", "raw/a/1.bmp", "raw/b/2.png", "raw/b/none.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(cv2.imencode(Path(name).suffix, NOISE[..., ::-1])[1])
    Path("raw/b/cut.jpg").write_bytes(b"\xff\xd8\xff")
    faces = [
        ("a/1.png", at(90, 80, 50)),
        ("a/1.png", at(150, 90, 70)),
        ("a/1.bmp", at(90, 80)),
        ("b/2.png", at(90, 9)),
    ]
    Path("points.csv").write_text(HEADER + "".join(line(*face) for face in faces))


def test_a_tree_of_photographs_becomes_one_of_faces_and_its_report_makes_it_again(told, raw):
    words = ["--faces", "all", "--quality", "0", "--sheet", "sheet.png"]
    said = told("data", "align", "raw", "out", "--landmarks", "points.csv", *words, status=1)  # one is damaged
    counts = dict(re.findall(r"^(\w.*?)  +(\d+) ", said, re.M))
    assert [counts[kind] for kind in ("aligned", "no face found", "damaged")] == ["3", "1", "1"]
    assert "60.0%, 1 of them of several faces" in said
    with Path("out/align.csv").open(newline="") as file:
        rows = [(row["path"], row["status"].partition(":")[0], row["output"]) for row in csv.DictReader(file)]
    assert rows == [
        ("a/1.bmp", "aligned", "a/1.png"),
        ("a/1.png", "aligned", "a/1_2.png"),
        ("a/1.png", "aligned", "a/1_3.png"),
        ("b/2.png", "aligned", "b/2.png"),
        ("b/cut.jpg", "damaged", ""),
        ("b/none.png", "no face found", ""),
    ]
    written = decode(Path("out/a/1_2.png").read_bytes(), "")
    np.testing.assert_array_equal(written, warped(NOISE, at(150, 90, 70)))
    assert Image.open("sheet.png").size == (6 * 232, 120)
    Path("raw/list.txt").write_text("a/1.png\nb/2.png\n")
    main(["data", "align", "raw/list.txt", "again", "--landmarks", "out/align.csv", "--quality", "0"])
    assert np.abs(decode(Path("again/a/1.png").read_bytes(), "").astype(int) - written).max() <= 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["raw", "out"], "--detector: name a face detector, or --landmarks"),
        (["raw", "raw", "--landmarks", "points.csv"], "OUT: raw exists; name another file"),
        (["points.csv", "out", "--landmarks", "raw"], "--landmarks: raw cannot be read: it is a directory"),
        (["raw", "out", "--landmarks", "bad.csv"], "bad.csv, line 2: not ten numbers; mend it"),
        (["bad.csv", "out", "--landmarks", "points.csv", "--size", "9"], "--size is 16 to 4096"),
        (["list", "out", "--landmarks", "points.csv"], "'../x.jpg' is not below"),
        (["none", "out", "--landmarks", "points.csv"], "RAW: none cannot be read"),
    ],
)
def test_bad_input_is_told_in_one_line_and_nothing_is_written(refused, raw, words, said):
    Path("bad.csv").write_text(HEADER + "a/1.png,1,2\n")
    Path("list").write_text("../x.jpg\n")
    assert not refused(["data", "align", *words], said)
