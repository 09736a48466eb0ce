"""Faces found in photographs and aligned to the five points of ArcFace, as face sets and their models have them.

The detector is a YuNet file that the user names, run by OpenCV. Points are (x, y) in pixels of the photograph as a
viewer shows it, EXIF orientation obeyed: both eyes, the tip of the nose, both corners of the mouth, of each pair the
one that lies left in the picture first.

Shapes: P = the five points, H, W = size of an image in pixels, C = 3 colours, RGB.
"""

import io
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from cv2.utils import logging as cv2_logging

from megaclass.data.dataset import DamagedSampleError, Dataset, Sample, class_names
from megaclass.data.decode import decode
from megaclass.errors import UserError, first_line
from megaclass.files import read_regular

# For 112 x 112 pixels: face_align.py of InsightFace, which aligned MS1MV2, Glint360K, WebFace42M and the .bin sets.
_ARCFACE_P2 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
_SIDE, _ORIENTATION, _MAX_DETECTOR_BYTES = 112, 0x0112, 1 << 28
_LOOK, _FIRST_SCORE = 160, 0.6  # of a face set upright: pixels; before, all that may be one is taken
_load = threading.Lock()


class NoFaceError(DamagedSampleError):
    """An image in which no face is found that may be taken; ``kind``: none, small, turned or several."""

    def __init__(self, where: str, kind: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.kind = kind


@dataclass(frozen=True, eq=False)  # of arrays, no one truth
class Face:
    """``points_P2``, the score of the detector (0 to 1), and its box (left, top, width, height) in pixels."""

    points_P2: np.ndarray
    score: float = 1.0
    box: tuple[float, ...] = ()

    @property
    def size(self) -> float:
        """Side in pixels of the square of the photograph that becomes 112 x 112: some 1.2 times as wide as the face."""
        return _SIDE / max(abs(_similarity(self.points_P2, _ARCFACE_P2)[0]), 1e-9)

    @property
    def turn(self) -> float:
        """Degrees by which the face is turned: in the plane, or out of it to a side, whichever is more.

        The latter is estimated from how far the nose lies beside the middle between the eyes, taking its tip to stand
        as far out as half the distance of the eyes.
        """
        left, right, nose = self.points_P2[:3]
        eyes, beside = right - left, nose - (left + right) / 2
        roll = np.angle(_similarity(self.points_P2, _ARCFACE_P2)[0])
        yaw = math.atan(2 * float(beside @ eyes) / max(float(eyes @ eyes), 1e-9))
        return math.degrees(max(abs(roll), abs(yaw)))


@dataclass(frozen=True)
class Rules:
    """Which faces of a photograph are taken: ``largest``, ``central``, ``all``, or ``single``: none where there are
    several; of a ``size`` of ``min_size`` pixels and a ``turn`` of ``max_turn`` degrees at the most."""

    faces: str = "largest"
    min_size: float = 20.0
    max_turn: float = 90.0

    def choose(self, found: Sequence[Face], image_HWC: np.ndarray, where: str) -> list[Face]:
        """One of the faces of an image or, of ``all``, some, the largest first. Raises NoFaceError."""
        large = sorted((face for face in found if face.size >= self.min_size), key=lambda face: -face.size)
        fit = [face for face in large if face.turn <= self.max_turn]
        if not found:
            raise NoFaceError(where, "none", "no face found")
        if not large:
            size = max(face.size for face in found)
            raise NoFaceError(where, "small", f"face too small, {size:.0f} of {self.min_size:g} pixels")
        if not fit:
            turn = min(face.turn for face in large)
            raise NoFaceError(
                where, "turned", f"face turned too far, {turn:.0f} of {self.max_turn:g} degrees"
            )
        if self.faces == "single" and len(fit) > 1:
            raise NoFaceError(where, "several", f"{len(fit)} faces found, not a single one")
        if self.faces == "central":
            centre = np.array(image_HWC.shape[1::-1]) / 2
            return [min(fit, key=lambda face: float(np.linalg.norm(face.points_P2.mean(0) - centre)))]
        return fit if self.faces == "all" else fit[:1]


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
            raise UserError(
                f"{path}: not a face detector that OpenCV reads ({reason}); name a YuNet file, such as "
                "face_detection_yunet_2023mar.onnx of OpenCV's zoo"
            ) from None

    def __call__(self, image_HWC: np.ndarray) -> list[Face]:
        height, width = image_HWC.shape[:2]
        shrink = min(1.0, self.side / max(height, width))
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        small_HWC = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA) if shrink < 1 else image_HWC
        scale = np.diag([width / size[0], height / size[1], 1.0])[:2]
        settled = (self._settled(image_HWC, face) for face in self._look(small_HWC, scale))
        return [face for face in settled if face is not None and face.score >= self.min_score]

    def _settled(self, image_HWC: np.ndarray, face: Face) -> Face | None:
        """The face looked at again, set upright and of the size that the detector knows best, until it stays.

        In place, points of a face turned by 20 degrees are 4 to 8 pixels of 112 off, set upright 2.5, as those of
        faces that stand upright; and of what is no face, or upside down, the score falls.
        """
        target_P2, side = _ARCFACE_P2 + (_LOOK - _SIDE) / 2, _LOOK
        for _ in range(4):
            matrix = similarity(face.points_P2, target_P2)
            found = self._look(_cut(image_HWC, matrix, side, side), cv2.invertAffineTransform(matrix))
            if not found:
                return None
            near = min(found, key=lambda other: float(np.abs(other.points_P2 - face.points_P2).sum()))
            moved = _similarity(near.points_P2, face.points_P2)[0]
            face = Face(near.points_P2, near.score, face.box)
            if abs(np.angle(moved)) < math.radians(4):
                break
        return face

    def _look(self, image_HWC: np.ndarray, back: np.ndarray) -> list[Face]:
        """The faces of an image as it is; ``back``, (2, 3), brings their points to where they are wanted."""
        detector = self._of_thread()
        detector.setInputSize(image_HWC.shape[1::-1])
        rows = detector.detect(cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR))[1]
        faces = []
        for row in [] if rows is None else rows.astype(np.float64):
            if np.isfinite(row).all():
                corner_2, size_2 = row[:2] @ back[:, :2].T + back[:, 2], row[2:4] @ back[:, :2].T
                points_P2 = row[4:14].reshape(5, 2) @ back[:, :2].T + back[:, 2]
                faces.append(Face(points_P2, float(row[14]), (*corner_2.tolist(), *size_2.tolist())))
        return faces

    def _of_thread(self) -> cv2.FaceDetectorYN:
        """An object of OpenCV keeps what it computes with: each thread has one."""
        if not hasattr(self._threads, "detector"):
            with _load:
                level = cv2_logging.setLogLevel(
                    cv2_logging.LOG_LEVEL_SILENT
                )  # OpenCV 5 warns of its own default
                try:
                    self._threads.detector = cv2.FaceDetectorYN.create(
                        "onnx",
                        self._file_N,
                        np.empty(0, np.uint8),
                        (64, 64),
                        min(_FIRST_SCORE, self.min_score),
                    )
                finally:
                    cv2_logging.setLogLevel(level)
        return self._threads.detector


def template(height: int, width: int) -> np.ndarray:
    """Where the five points go in an image of this size, float64 (5, 2): ArcFace's, scaled to the height, amid the
    width. Squares of a multiple of 128 pixels have them as those of 112 with a margin left, right and below, which is
    InsightFace's convention."""
    margin = height == width and height % 128 == 0 and height % _SIDE != 0
    ratio = height / (128 if margin else _SIDE)
    return _ARCFACE_P2 * ratio + [(width - _SIDE * ratio) / 2, 0]


def _similarity(source_P2: np.ndarray, target_P2: np.ndarray) -> tuple[complex, complex]:
    """The a and b for which a * source + b, points taken as complex numbers, comes nearest to the target by least
    squares: in the plane, that is what Umeyama (1991) gives. a is 0 where all source points are one."""
    source_P, target_P = (points_P2.astype(np.float64) @ [1, 1j] for points_P2 in (source_P2, target_P2))
    centred_P = source_P - source_P.mean()
    a = complex(np.vdot(centred_P, target_P) / max(np.vdot(centred_P, centred_P).real, 1e-12))
    return a, complex(target_P.mean() - a * source_P.mean())


def similarity(source_P2: np.ndarray, target_P2: np.ndarray) -> np.ndarray:
    """The turn, scale and shift, float64 (2, 3), that brings points nearest to others by least squares."""
    a, b = _similarity(source_P2, target_P2)
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def warped(image_HWC: np.ndarray, face: Face, height: int = _SIDE, width: int = _SIDE) -> np.ndarray:
    """The face, aligned: uint8 (height, width, 3), black where the photograph ends."""
    return _cut(image_HWC, similarity(face.points_P2, template(height, width)), height, width)


def _cut(image_HWC: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """``cv2.warpAffine`` by a similarity, but by means over pixels, where bilinear sampling would skip some."""
    shrink = math.floor(1 / max(math.hypot(*matrix[:, 0]), 1e-3))
    if shrink > 1:
        back = cv2.invertAffineTransform(matrix)
        corners_42 = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ back[:, :2].T + back[:, 2]
        lo_2 = np.maximum(np.floor(corners_42.min(0)).astype(int) - 2 * shrink, 0)
        hi_2 = np.ceil(corners_42.max(0)).astype(int) + 2 * shrink
        image_HWC = image_HWC[lo_2[1] : max(hi_2[1], 0), lo_2[0] : max(hi_2[0], 0)]
        if image_HWC.size == 0:
            return np.zeros((height, width, 3), np.uint8)
        size = [-(-side // shrink) for side in image_HWC.shape[1::-1]]
        ratio_2 = np.array(image_HWC.shape[1::-1]) / size
        image_HWC = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
        matrix = matrix @ np.vstack(
            [np.column_stack([np.diag(ratio_2), lo_2 + (ratio_2 - 1) / 2]), [0, 0, 1]]
        )
    return cv2.warpAffine(image_HWC, matrix, (width, height))


def upright(encoded: bytes, where: str) -> np.ndarray:
    """A photograph decoded as a viewer shows it, uint8 HxWx3 RGB. Raises DamagedSampleError."""
    image_HWC = decode(encoded, where)
    if b"Exif" not in encoded[: 1 << 16]:
        return image_HWC
    from PIL import Image

    try:
        orientation = Image.open(io.BytesIO(encoded)).getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow lets some ten types through; the pixels are sound
        return image_HWC
    if orientation in (5, 6, 7, 8):
        image_HWC = image_HWC.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image_HWC = image_HWC[::-1]
    if orientation in (2, 3, 6, 7):
        image_HWC = image_HWC[:, ::-1]
    return np.ascontiguousarray(image_HWC)


class Aligned:
    """The photographs of ``dataset`` as faces aligned for a model of this input size: one of each, see ``Rules``.

    ``detector``: a FaceDetector, or its file. Samples come as PPM, without loss. ``read`` raises NoFaceError, which is
    a DamagedSampleError, for a photograph without a face. Reading is safe from several threads.
    """

    def __init__(
        self,
        dataset: Dataset,
        detector: FaceDetector | str | Path,
        height: int = _SIDE,
        width: int = _SIDE,
        rules: Rules | None = None,
    ) -> None:
        self.num_classes, self.classes = dataset.num_classes, class_names(dataset)
        self._dataset, self._size, self._rules = dataset, (height, width), rules or Rules()
        self._detector = detector if isinstance(detector, FaceDetector) else FaceDetector(detector)

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, index: int) -> Sample:
        encoded, label = self._dataset.read(index)
        where = self.describe(index)
        image_HWC = upright(encoded, where)
        face = self._rules.choose(self._detector(image_HWC), image_HWC, where)[0]
        height, width = self._size
        pixels = warped(image_HWC, face, height, width).tobytes()
        return Sample(b"P6 %d %d 255\n" % (width, height) + pixels, label)

    def labels(self) -> np.ndarray:
        return self._dataset.labels()

    def describe(self, index: int) -> str:
        return self._dataset.describe(index)
