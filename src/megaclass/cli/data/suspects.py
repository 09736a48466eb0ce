"""``megaclass data suspects``: images whose labels look wrong to a trained model."""

import csv
import math
import sys

from megaclass.cli.common import SET, progress_bar, read_options, tell, whole_file
from megaclass.cli.parsing import Options, new_file_if_any, stored_config
from megaclass.errors import UserError

_SHOWN = 10
_COLUMNS = ("image", "class", "cosine", "other", "other_cosine", "strays")
_OPTIONS: Options = {
    "data": ("", f"the training set, if not where the run has it: {SET}; or a table path,identity (.csv)"),
    "output": ("", "write the list to this new .csv file, which `megaclass data pack --exclude` takes"),
    "below": (float, "list images whose cosine to the centre of their class is below this"),
    "gap": (float, "list images to which another class is nearer than their own, by more than this cosine"),
    "checkpoint": ("best", "of the run: best, latest or a step-NNNNNNNN"),
}


def suspects(words: list[str]) -> int:
    """Exit status 1 where an image could not be read: the others are judged all the same."""
    options = read_options(
        words,
        "megaclass data suspects RUN [--data SET] [--output FILE.csv] [--below COS] [--gap COS]",
        "List the images of a training set whose labels look wrong to the margin head that was trained on it, worst "
        "first. Without --below and --gap: those to which another class is nearer than their own (--gap 0); of a run "
        "with sub-centres those more than 75 degrees from the dominant one of their class (--below 0.2588).",
        {"run": "run directory, one checkpoint, or a bundle"},
        _OPTIONS,
    )
    output = new_file_if_any(options.output, suffixes=(".csv",))
    for name in ("below", "gap"):
        if (limit := getattr(options, name)) is not None and not -1 <= limit <= 2:
            raise UserError(f"--{name}: {limit:g}; it is of cosines, take a number from -1 to 2")

    from megaclass.inference.embedding import open_images
    from megaclass.inference.load import open_model
    from megaclass.inference.suspects import DROPPED_DEGREES, judge
    from megaclass.train.batches import glyph_directory

    config, lost = stored_config(options.run), 0
    data = config.data.path if config.data.source != "glyphs" else str(glyph_directory(config) / "train")
    data = options.data or data
    model = open_model(options.run, options.checkpoint, {})
    images, names = open_images([data]) if data else (None, None)
    if images is None or names is None:
        raise UserError(f"--data: {data or 'the run'} has no labelled images; name the training set")

    def damaged(told: str) -> None:
        nonlocal lost
        lost += 1
        tell(f"megaclass: {told}", sys.stderr)

    with progress_bar("judging", "nothing was written") as show:
        found = judge(model, images, config.data.orientations, damaged, show)
    below, gap, has_several = options.below, options.gap, model.about.sub_centres > 1
    if below is None and gap is None:
        below, gap = (math.cos(math.radians(DROPPED_DEGREES)), None) if has_several else (None, 0.0)
    names = model.classes or names
    rows = [
        (
            images.describe(number),
            names[found.label_N[number]],
            f"{found.cosine_N[number]:.4f}",
            names[found.other_N[number]],
            f"{found.other_cosine_N[number]:.4f}",
            int(found.strays_N[number]),
        )
        for number in found.suspects(below, gap).tolist()
    ]
    if output:
        with (
            whole_file("--output", output) as part,
            part.open("x", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            csv.writer(file, lineterminator="\n").writerows([_COLUMNS, *rows])
    for image, own, cosine, other, other_cosine, _ in rows[:_SHOWN]:
        tell(f"{image}: {cosine} to its class {own}, {other_cosine} to {other}")
    if more := len(rows[_SHOWN:]):
        tell(f"… and {more:,} more{'' if output else ': --output FILE has all'}")
    counts = {"images": len(images) - lost, "another class is nearer": int((found.gap_N > 0).sum())}
    if below is not None:
        counts[f"cosine below {below:.4g}"] = int((found.cosine_N < below).sum())
    if has_several:
        counts["nearest to another sub-centre"] = int(found.strays_N.sum())
    counts["listed"] = len(rows)
    for what, count in counts.items():
        tell(f"{what:30} {count:9,} {count / max(1, counts['images']):7.1%}")
    if output:
        tell(f"output    {output}")
    return 1 if lost else 0
