"""Faces found in photographs and aligned to the five points of ArcFace, as face sets and their models have them.

The detector is a YuNet file that the user names, run by OpenCV. Points are (x, y) in pixels of the photograph as a
viewer shows it, EXIF orientation obeyed: both eyes, the tip of the nose, both corners of the mouth, of each pair the
one that lies left in the picture first.

Shapes: P = the five points, H, W = size of an image in pixels, C = 3 colours, RGB.
"""

import io
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from megaclass.data.dataset import DamagedSampleError, Dataset, Sample, class_names
from megaclass.data.decode import decode
from megaclass.data.threads import one_silent_thread
from megaclass.errors import UserError, first_line
from megaclass.files import read_regular

# What can become of a photograph; of what is damaged, the reason follows.
KINDS = ("aligned", "no face found", "face too small", "face turned too far", "several faces", "damaged")
# For 112 x 112 pixels: face_align.py of InsightFace, which aligned MS1MV2, Glint360K, WebFace42M and the .bin sets.
_ARCFACE_P2 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
_SIDE, _ORIENTATION, _MAX_DETECTOR_BYTES = 112, 0x0112, 1 << 28
# Of a face looked at again: side in pixels, and how often at most. Before, all that may be a face is taken.
_LOOK, _LOOKS, _FIRST_SCORE, _MOST_SHRUNK = 160, 4, 0.6, 32
_load = threading.Lock()


def template(height: int, width: int) -> np.ndarray:
    """Where the five points go in an image of this size, float64 (5, 2): ArcFace's, scaled to the height, amid the
    width. Squares of a multiple of 128 pixels have them as those of 112 with a margin left, right and below, which is
    InsightFace's convention."""
    margin = height == width and height % 128 == 0 and height % _SIDE != 0
    ratio = height / (128 if margin else _SIDE)
    return _ARCFACE_P2 * ratio + [(width - _SIDE * ratio) / 2, 0]


def similarity(source_P2: np.ndarray, target_P2: np.ndarray) -> np.ndarray:
    """The turn, scale and shift, float64 (2, 3), that brings points nearest to others by least squares: what Umeyama
    (1991) gives, which in the plane is a * source + b of complex numbers. The scale is 0 where all are one point."""
    source_P, target_P = (points_P2 @ np.array([1, 1j]) for points_P2 in (source_P2, target_P2))
    centred_P = source_P - source_P.mean()
    a = np.vdot(centred_P, target_P) / max(np.vdot(centred_P, centred_P).real, 1e-12)
    b = target_P.mean() - a * source_P.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


@dataclass(frozen=True, eq=False)  # of arrays, no one truth
class Face:
    """``points_P2``, the score of the detector (0 to 1), and its box (left, top, width, height) in pixels."""

    points_P2: np.ndarray
    score: float = 1.0
    box: tuple[float, ...] = ()

    @property
    def size(self) -> float:
        """Side in pixels of the square of the photograph that becomes 112 x 112: some 1.2 times as wide as the face."""
        return _SIDE / max(math.hypot(*similarity(self.points_P2, _ARCFACE_P2)[:, 0]), 1e-9)

    @property
    def turn(self) -> float:
        """Degrees by which the face is turned, in the plane or to a side, whichever is more. The latter is estimated
        from the nose beside the middle of the eyes, as standing out by half the distance between these."""
        left, right, nose = self.points_P2[:3]
        beside = (nose - (left + right) / 2) @ (right - left) / max(np.sum((right - left) ** 2), 1e-9)
        (cosine, _, _), (sine, _, _) = similarity(self.points_P2, _ARCFACE_P2)
        return math.degrees(max(math.atan2(abs(sine), cosine), math.atan(2 * abs(beside))))


@dataclass(frozen=True)
class Rules:
    """Which faces of a photograph are taken: ``largest``, ``central``, ``all``, or ``single``: none where there are
    several; of a ``size`` of ``min_size`` pixels and a ``turn`` of ``max_turn`` degrees at the most."""

    faces: str = "largest"
    min_size: float = 20.0
    max_turn: float = 90.0

    def choose(self, found: Sequence[Face], image_HWC: np.ndarray) -> tuple[list[Face], str]:
        """One of the faces of an image or, of ``all``, some, the largest first, and which of ``KINDS`` it is."""
        large = sorted((face for face in found if face.size >= self.min_size), key=lambda face: -face.size)
        fit = [face for face in large if face.turn <= self.max_turn]
        for left, kind in zip((found, large, fit), KINDS[1:], strict=False):
            if not left:
                return [], kind
        if self.faces == "single" and len(fit) > 1:
            return [], "several faces"
        if self.faces == "central":
            centre_2 = np.array(image_HWC.shape[1::-1]) / 2
            fit.sort(key=lambda face: float(np.linalg.norm(face.points_P2.mean(0) - centre_2)))
        return fit if self.faces == "all" else fit[:1], "aligned"


class FaceDetector:
    """The YuNet detector of an ONNX file. Called with an image, uint8 HxWx3, from any thread, it gives its faces.

    ``min_score``: what scores less, set upright, is no face. ``side``: a larger image is shrunk to so many pixels on
    its longer side to look for faces; those of less than some 10 pixels are not found there. Raises UserError for a
    file that OpenCV cannot read or that is no such detector.
    """

    def __init__(self, path: str | Path, min_score: float = 0.85, side: int = 640) -> None:
        self.side, self.min_score, self._threads = side, min_score, threading.local()
        try:
            self._file_N = np.frombuffer(read_regular(path, _MAX_DETECTOR_BYTES), np.uint8)
            self(np.zeros((64, 64, 3), np.uint8))
        except (OSError, cv2.error, IndexError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else first_line(error)
            why = f"not a face detector that OpenCV reads ({reason})"
            raise UserError(f"{path}: {why}; name a YuNet file, as of OpenCV's zoo") from None

    def __call__(self, image_HWC: np.ndarray) -> list[Face]:
        scale = min(1.0, self.side / max(image_HWC.shape))
        width, height = (max(1, round(side * scale)) for side in image_HWC.shape[1::-1])
        small_HWC = cv2.resize(image_HWC, (width, height), interpolation=cv2.INTER_AREA)
        back = np.diag([image_HWC.shape[1] / width, image_HWC.shape[0] / height, 1.0])[:2]
        settled = (self._settled(image_HWC, face) for face in self._look(small_HWC, back))
        return [face for face in settled if face is not None and face.score >= self.min_score]

    def _settled(self, image_HWC: np.ndarray, face: Face) -> Face | None:
        """The face looked at again, set upright and of the size that the detector knows best, until it stays. Turned by
        20 degrees, its points are 4 to 8 pixels of 112 off, set upright 2.5; of what is no face, the score falls."""
        for _ in range(_LOOKS):
            matrix = similarity(face.points_P2, _ARCFACE_P2 + (_LOOK - _SIDE) / 2)
            found = self._look(cut(image_HWC, matrix, _LOOK, _LOOK), cv2.invertAffineTransform(matrix))
            if not found:
                return None
            near = min(found, key=lambda other: float(np.abs(other.points_P2 - face.points_P2).sum()))
            sine = similarity(near.points_P2, face.points_P2)[1, 0]
            face = Face(near.points_P2, near.score, face.box)
            if abs(sine) < 0.07:  # 4 degrees
                break
        return face

    def _look(self, image_HWC: np.ndarray, back: np.ndarray) -> list[Face]:
        """The faces of an image as it is; ``back``, (2, 3), brings their points to where they are wanted."""
        if not hasattr(self._threads, "detector"):  # it keeps what it computes with: each thread has its own
            with _load, one_silent_thread():  # OpenCV 5 warns of its own defaults
                self._threads.detector = cv2.FaceDetectorYN.create(
                    "onnx", self._file_N, np.empty(0, np.uint8), (64, 64), min(_FIRST_SCORE, self.min_score)
                )
        self._threads.detector.setInputSize(image_HWC.shape[1::-1])
        rows = self._threads.detector.detect(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR))[1]
        faces = []
        for row in [] if rows is None else rows[np.isfinite(rows).all(1)].astype(np.float64):
            points_72 = row[:14].reshape(7, 2) @ back[:, :2].T  # corner and size of the box, and the points
            box = (*(points_72[0] + back[:, 2]).tolist(), *points_72[1].tolist())
            faces.append(Face(points_72[2:] + back[:, 2], float(row[14]), box))
        return faces


def warped(image_HWC: np.ndarray, face: Face, height: int = _SIDE, width: int = _SIDE) -> np.ndarray:
    """The face, aligned: uint8 (height, width, 3), black where the photograph ends."""
    return cut(image_HWC, similarity(face.points_P2, template(height, width)), height, width)


def cut(image_HWC: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """``cv2.warpAffine`` by a similarity; where it would skip pixels, shrinking, each pixel is the mean of k x k."""
    k = min(max(1, math.floor(1 / max(math.hypot(*matrix[:, 0]), 1e-9))), _MOST_SHRUNK)
    finer = k * matrix + [[0, 0, (k - 1) / 2]] * 2
    cut_HWC = cv2.warpAffine(image_HWC, finer, (k * width, k * height))
    return cut_HWC if k == 1 else cv2.resize(cut_HWC, (width, height), interpolation=cv2.INTER_AREA)


def upright(encoded: bytes, where: str) -> np.ndarray:
    """A photograph decoded as a viewer shows it, uint8 HxWx3 RGB. Raises DamagedSampleError."""
    image_HWC = decode(encoded, where)
    if b"Exif" not in encoded[: 1 << 16]:
        return image_HWC
    from PIL import Image, ImageOps

    shown = Image.fromarray(image_HWC)
    try:
        shown.getexif()[_ORIENTATION] = Image.open(io.BytesIO(encoded)).getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow lets some ten types through; the pixels are sound
        return image_HWC
    return np.array(ImageOps.exif_transpose(shown))


Detector = Callable[[np.ndarray], Sequence[Face]]
"""The faces of an image, as a FaceDetector gives them."""


def face_seen(
    image_HWC: np.ndarray, detector: Detector, height: int, width: int, where: str, advice: str = ""
) -> np.ndarray:
    """What a model of faces sees of a photograph: its largest face, aligned, uint8 (height, width, 3). Raises
    DamagedSampleError, which names ``where`` and ends with ``advice``, for one without a face."""
    chosen, kind = Rules().choose(detector(image_HWC), image_HWC)
    if not chosen:
        raise DamagedSampleError(f"{where}: {kind}{advice}")
    return warped(image_HWC, chosen[0], height, width)


class Aligned:
    """The photographs of ``dataset`` as faces aligned for a model of this input size: the largest of each.

    Samples come as PPM, without loss. ``read``
    raises DamagedSampleError for a photograph without a face, too. Safe from several threads.
    """

    def __init__(self, dataset: Dataset, detector: Detector, height: int, width: int) -> None:
        self.num_classes, self.classes = dataset.num_classes, class_names(dataset)
        self.labels, self.describe = dataset.labels, dataset.describe
        self._dataset, self._detector, self._size = dataset, detector, (height, width)

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, index: int) -> Sample:
        encoded, label = self._dataset.read(index)
        image_HWC = upright(encoded, self.describe(index))
        aligned_HWC = face_seen(image_HWC, self._detector, *self._size, self.describe(index))
        return Sample(b"P6 %d %d 255\n" % aligned_HWC.shape[1::-1] + aligned_HWC.tobytes(), label)
