"""``megaclass data align``: faces of photographs, found and set upright."""

import time

from megaclass.cli.common import progress_bar, read_options, tell
from megaclass.cli.parsing import Options, new_file, new_file_if_any
from megaclass.errors import UserError
from megaclass.files import whole_file

_OPTIONS: Options = {
    "detector": ("", "YuNet file (ONNX), such as face_detection_yunet_2023mar.onnx of OpenCV's zoo"),
    "landmarks": ("", "instead of it a CSV with the columns path, x1, y1 .. x5, y5: eyes, nose, corners of the mouth"),
    "size": (112, "pixels of the faces' sides"),
    "faces": (["largest", "central", "all", "single"], "which of several; single: none of them"),
    "min-size": (20.0, "pixels of the photograph that a face's side has at least"),
    "min-score": (0.85, "of the detector, 0 to 1; 0.9 lets hardly any upside-down face pass"),
    "max-turn": (90.0, "degrees that a face is turned at most, in the plane or to a side"),
    "look": (640, "pixels to which the longer side is shrunk to find faces; more finds smaller ones"),
    "quality": (95, "of JPEG files, 1 to 100; 0: PNG"),
    "sheet": ("", "draw the first photographs and faces side by side into this PNG file, which is new"),
    "workers": (0, "threads; 0: one a core"),
}  # fmt: skip


def align(words: list[str]) -> int:
    """Exit status 1 where a photograph is damaged, or no face was found at all."""
    options = read_options(
        words,
        "megaclass data align RAW OUT --detector FILE [OPTIONS]",
        "Find faces and align them to the five points of ArcFace, as face sets have them. OUT/align.csv tells of every "
        "face found; OUT appears whole or not at all.",
        {"raw": "directory of photographs, or list of paths", "out": "new directory, with RAW's tree"},
        _OPTIONS,
    )
    output, sheet = new_file(options.out, "OUT"), new_file_if_any(options.sheet, "--sheet")
    if bool(options.detector) == bool(options.landmarks):
        raise UserError("--detector: name a face detector, or --landmarks, and one of them alone")
    if not 16 <= options.size <= 4096 or options.quality > 100 or not 32 <= options.look <= 8192:
        raise UserError("--size is 16 to 4096, --quality 0 to 100, --look 32 to 8192")

    import cv2

    from megaclass.data.faces import KINDS, FaceDetector, Rules
    from megaclass.data.tools import align as tool

    images, started = tool.find_photographs(options.raw), time.perf_counter()
    if options.landmarks:
        find = tool.landmarks(options.landmarks)
    else:
        detector = FaceDetector(options.detector, options.min_score, options.look)
        find = lambda _, image_HWC: detector(image_HWC)  # noqa: E731
    rules = Rules(options.faces, options.min_size, options.max_turn)
    how = options.size, options.quality, options.workers
    with progress_bar("aligning", "nothing was written") as show, whole_file("OUT", output) as part:
        counts, sheet_HWC = tool.align(images, part, find, rules, *how, show)
    for kind in KINDS:
        several = f", {counts['more']:,} of them of several faces" if kind == "aligned" else ""
        tell(f"{kind:20} {counts[kind]:9,} {counts[kind] / len(images):7.1%}{several}")
    rate = len(images) / (time.perf_counter() - started)
    tell(f"{len(images):,} photographs, {rate:,.1f} a second; of each: {output / 'align.csv'}")
    if sheet is not None:
        with whole_file("--sheet", sheet) as part:
            part.write_bytes(cv2.imencode(".png", sheet_HWC[..., ::-1])[1].tobytes())
    return 1 if counts["damaged"] or not counts["aligned"] else 0
