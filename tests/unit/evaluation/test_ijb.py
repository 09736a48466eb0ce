"""IJB against arcface_torch's and InsightFace's scripts, written down anew from their definitions, loop by loop."""

import math

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

import megaclass
import tiny
from megaclass.cli import main
from megaclass.evaluation.ijb import LooseCrops
from megaclass.inference.images import Pictures

SUBJECTS, TEMPLATES, COLUMNS = 20, 60, 12
POINTS = (45.0, 52.0, 72.0, 47.0, 62.0, 71.0, 49.0, 94.0, 76.0, 89.0)
PARTS = (slice(0, 9), slice(9, SUBJECTS), slice(SUBJECTS, None))  # templates of the galleries, and probes


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory as published, of made embeddings: its path, and what stands in it."""
    root, rng = tmp_path_factory.mktemp("ijb"), np.random.default_rng(0)
    (root / "meta").mkdir()
    subject_T = np.concatenate([np.arange(SUBJECTS), rng.integers(SUBJECTS, size=TEMPLATES - SUBJECTS)])
    number_T = rng.permutation(900)[:TEMPLATES]
    images = [
        (number_T[t], 10 * t + media, subject_T[t])
        for t in range(TEMPLATES)
        for media in range(1 + t % 3)
        for _ in range(1 + (t + media) % 4)
    ]
    template_N, media_N, subject_N = rng.permutation(np.array(images)).T
    score_N = rng.uniform(0.2, 1, len(images)).round(4)
    centres = rng.normal(size=(SUBJECTS, COLUMNS))
    rows_ND = centres[subject_N] + 2 * rng.normal(size=(len(images), COLUMNS))
    rows_ND = (rows_ND * rng.uniform(1, 9, (len(images), 1))).astype(np.float32)
    np.save(root / "rows.npy", rows_ND)
    one, other = np.triu_indices(TEMPLATES, 1)
    pairs = rng.permutation(np.stack([number_T[one], number_T[other], subject_T[one] == subject_T[other]], 1))

    def write(name, lines, head=""):
        (root / "meta" / f"ijbc_{name}").write_text(head + "".join(" ".join(map(str, line)) + "\n" for line in lines))

    write(
        "face_tid_mid.txt",
        [(f"{i}.jpg", *row) for i, row in enumerate(zip(template_N, media_N, strict=True))],
    )
    write("name_5pts_score.txt", [(f"{i}.jpg", *POINTS, score) for i, score in enumerate(score_N)])
    write("template_pair_label.txt", pairs)
    for name, part in zip(("gallery_G1", "gallery_G2", "probe_mixed"), PARTS, strict=True):
        lines = [
            f"{template},{subject},x.png" for template, subject in zip(number_T[part], subject_T[part], strict=True)
        ]
        write(f"1N_{name}.csv", [[line] for line in lines * 2], "TEMPLATE_ID,SUBJECT_ID,FILENAME\n")
    return root, template_N, media_N, score_N, rows_ND, pairs, dict(zip(number_T, subject_T, strict=True))


def evaluated(root, *words, rows=""):
    return tiny.evaluated(root, "ijb", root, "--embeddings", rows or root / "rows.npy", *words)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("detector", [True, False])
def test_ijb_is_what_the_scripts_define(made, norm, detector):
    root, template_N, media_N, score_N, rows_ND, pairs, subject_of = made
    if not norm:
        rows_ND = rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)
    if detector:
        rows_ND = rows_ND * score_N[:, None]
    pooled = {}
    for template in np.unique(template_N):
        medias = np.unique(media_N[template_N == template])
        means = [rows_ND[(template_N == template) & (media_N == media)].mean(0) for media in medias]
        pooled[template] = np.sum(means, 0) / np.linalg.norm(np.sum(means, 0))
    scores = np.array([pooled[one] @ pooled[other] for one, other, _ in pairs])
    far, tar, _ = roc_curve(pairs[:, 2], scores)

    found = evaluated(root, *["--no-norm"] * (not norm), *["--no-detector"] * (not detector))
    assert found["auc"] == pytest.approx(roc_auc_score(pairs[:, 2], scores), abs=1e-6)
    for name, share in found["tar_at_far"].items():
        nearest = min(zip(abs(far[::-1] - float(name)), range(len(far)), strict=True))[1]
        assert share == (pytest.approx(tar[::-1][nearest], abs=1e-6) if float(name) > 9e-4 else None)
    assert 0 < found["tar_at_far"]["1e-3"] < found["tar_at_far"]["1e-1"] < 1

    numbers = list(subject_of)
    gallery, probes = numbers[:SUBJECTS], numbers[SUBJECTS:]
    cosines = np.array([[pooled[probe] @ pooled[entry] for entry in gallery] for probe in probes])
    mate = np.array([subject_of[probe] for probe in probes])  # of which the gallery has one each, in order
    order = np.argsort(-cosines, axis=1)
    for k, share in found["rank"].items():
        assert share == np.mean((order[:, : int(k)] == mate[:, None]).any(1))
    own = cosines[np.arange(len(probes)), mate].copy()
    cosines[np.arange(len(probes)), mate] = -2
    for name, share in found["tpir_at_fpir"].items():
        needed = math.ceil(float(name) * len(probes))
        threshold = np.sort(cosines.ravel())[::-1][needed - 1]
        assert share == (np.mean(own > threshold) if float(name) * len(probes) >= 1 else None)


def test_a_crop_is_turned_to_the_points_of_the_template(tmp_path):
    wanted = [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
    face = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (112, 112, 3)).astype(np.uint8), (0, 0), 4)
    turn = cv2.getRotationMatrix2D((56, 56), 25, 1.6) + np.array([[0, 0, 40], [0, 0, 30]])
    photograph = cv2.warpAffine(face, turn, (200, 190))
    crops = LooseCrops(tmp_path, ["1.jpg"], (np.array(wanted) @ turn[:, :2].T + turn[:, 2])[None], (112, 112))
    assert np.abs(crops.orient(0, photograph)[30:-30, 30:-30].astype(int) - face[30:-30, 30:-30]).mean() < 1


def test_photographs_are_cropped_embedded_and_scored(made, tmp_path):
    """The whole way from a directory as published is that of embeddings made one by one."""
    root, template_N = made[:2]
    (root / "loose_crop").mkdir()
    photographs = np.random.default_rng(1).integers(0, 255, (len(template_N), 8, 8, 3)).astype(np.uint8)
    crops = LooseCrops(root, [], np.array([POINTS]).reshape(1, 5, 2), (tiny.SIZE, tiny.SIZE))
    seen = []
    for number, small_HWC in enumerate(photographs):
        image_HWC = cv2.resize(small_HWC, (110, 120))
        cv2.imwrite(str(root / f"loose_crop/{number}.jpg"), image_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
        stored_HWC = cv2.imread(str(root / f"loose_crop/{number}.jpg"), cv2.IMREAD_COLOR_RGB)
        seen.append(crops.orient(0, stored_HWC))
    assert main(["train", tiny.recipe(tmp_path, evaluate={"flip": True})]) == 0
    found = tiny.evaluated(tmp_path, "ijb", root, "--run-dir", tmp_path / "run")
    model = megaclass.load(tmp_path / "run", device="cpu", threads=1)
    rows = torch.cat([rows_BD for _, rows_BD in model.stream(Pictures(seen))])
    np.save(tmp_path / "rows.npy", rows)
    expected = evaluated(root, rows=tmp_path / "rows.npy")
    assert found["auc"] == pytest.approx(expected["auc"], abs=1e-4)
    assert found["rank"] == expected["rank"] and found["tar_at_far"].keys() == expected["tar_at_far"].keys()
    assert 0.2 < found["auc"] < 0.8 and len(template_N) == len(rows)


BROKEN = [
    ("face_tid_mid.txt", lambda text: text.replace(" ", " x", 1), "damaged (could not convert"),
    ("name_5pts_score.txt", lambda text: text.split("\n", 1)[1], "bring both as published"),
    (
        "name_5pts_score.txt",
        lambda text: text.replace(" 94.0 ", " ", 1),
        "damaged (invalid column index 11 at row 1",
    ),
    ("template_pair_label.txt", lambda text: text + "99999 99998 1\n", "template 99999 has no images"),
    ("template_pair_label.txt", lambda text: text.replace(" 1\n", " 2\n", 1), "there are both"),
    ("template_pair_label.txt", lambda text: "", "empty"),
    ("template_pair_label.txt", None, "damaged (No such file"),
    ("1N_probe_mixed.csv", None, "bring all, or none"),
    ("1N_probe_mixed.csv", lambda text: "a\n77777,1,x\n", "template 77777 has no images"),
]


@pytest.mark.parametrize(("name", "change", "said"), BROKEN)
def test_a_list_that_is_damaged_is_one_line(refused, made, name, change, said):
    root = made[0]
    path = root / "meta" / f"ijbc_{name}"
    text = path.read_text()
    try:
        path.unlink() if change is None else path.write_text(change(text))
        refused(["evaluate", "ijb", root, "--embeddings", root / "rows.npy"], said, name.split(".")[0])
    finally:
        path.write_text(text)
