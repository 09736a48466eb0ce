"""For a console: tables of any kind, and what evaluations, predictions and data sets are told as."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from megaclass.errors import in_bytes, printable
from megaclass.report.document import Cell, Column, Table, text_table

_RAISED = str.maketrans("0123456789,", "⁰¹²³⁴⁵⁶⁷⁸⁹˒")


def csv_field(text: str) -> str:
    """A text on one line, which no spreadsheet takes for a formula; a number or a lone sign is none."""
    harmless = text in ("-", "+") or re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?", text)
    return printable(f"'{text}" if text[:1] in ("=", "+", "-", "@") and not harmless else text)


@dataclass(frozen=True)
class ConsoleTable:
    """A table that learns the width of the console when it is shown: heads and words wrap, numbers do not, columns that
    find no room stand in a further part below with the labels repeated, and what has to be said follows."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table, notes = self.table, self.table.notes
        if table.title:
            yield Text(printable(table.title), "bold")
        heads = any(column.title for column in table.columns)
        for places in self._parts(options.max_width):
            made = RichTable(show_header=heads, box=None, padding=(0, 1, 0, 0))
            narrow = sum(self._whole(place) + 1 for place in places) > options.max_width
            for place in places:
                column = table.columns[place]
                made.add_column(
                    escape(printable(column.title)),
                    justify="right" if column.numeric else "left",
                    width=self._least(place) if column.numeric and narrow else None,
                    overflow="fold",
                )
            for line in table.lines:
                made.add_row(*(_shown(line.cells[place], notes) for place in places))
            yield made
        below = [*table.remarks, *(f"{place}. {note}" for place, note in enumerate(notes, start=1))]
        yield from (Text(printable(text), "dim") for text in below)

    def _parts(self, width: int) -> Iterator[list[int]]:
        """The places of columns that fit beside one another: labels, which lead, and as many others as find room."""
        every = range(len(self.table.columns))
        labels = list(itertools.takewhile(lambda place: not self.table.columns[place].numeric, every))
        part = labels
        for place in every[len(labels) :]:
            if part != labels and sum(self._least(one) + 1 for one in (*part, place)) > width:
                yield part
                part = labels
            part = [*part, place]
        yield part

    def _least(self, place: int) -> int:
        """The width below which a column would break a number, or a word."""
        column, cells = self.table.columns[place], [line.cells[place] for line in self.table.lines]
        head = min(14, max(map(len, column.title.split()), default=1))
        if column.numeric:
            return max([head, *map(_length, cells)])
        return max(head, min(30, max((len(word) for cell in cells for word in cell.text.split()), default=1)))

    def _whole(self, place: int) -> int:
        """The width in which nothing of a column wraps."""
        cells = (_length(line.cells[place]) for line in self.table.lines)
        return max([len(self.table.columns[place].title), *cells])


def _length(cell: Cell) -> int:
    return len(cell.text) + 2 * len(cell.notes)


def _shown(cell: Cell, notes: list[str]) -> Text:
    places = ",".join(str(notes.index(note) + 1) for note in cell.notes)
    text = Text(printable(cell.text), "bold red" if cell.bad else "")
    return text.append(places.translate(_RAISED), "dim")


# -- what evaluations, predictions, data sets and suites are told as ------------------------------------


def verification_table(metrics: Mapping[str, Any], title: str = "Verification") -> RenderableType:
    """The table of ``verification_metrics``, with ``one_shot_20way`` (0..1), of 20 or any other number of ways,
    and the pairs of ``all_pairs_tar`` if they are there: TAR and AUC are then of those."""
    pairs = f"{metrics['pairs']:,} pairs"
    if "genuine_pairs" in metrics and "impostor_pairs" in metrics:
        every = metrics["genuine_pairs"] + metrics["impostor_pairs"]
        pairs = f"accuracy: {pairs}; TAR and AUC: {every:,} pairs"
    spread = f"{100 * metrics['pair_accuracy_std']:.2f}"
    lines = [("pair accuracy", f"{_percent(metrics['pair_accuracy'])} ± {spread}"), *_tar_lines(metrics)]
    auc, threshold = metrics["auc"], metrics["threshold"]
    lines.append(("AUC", "n/a (needs pairs of both kinds)" if auc is None else f"{auc:.5f}"))
    lines.append(("threshold (cosine)", "n/a" if threshold is None else f"{threshold:.4f}"))
    for key, accuracy in metrics.items():
        ways = re.fullmatch(r"one_shot_(\d+)way", key)
        if ways and accuracy is not None:
            lines.append((f"{ways[1]}-way one-shot", _percent(accuracy)))
    return _numbers(f"{title} ({pairs})", lines)


def _tar_lines(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for far, tar in metrics["tar_at_far"].items():
        none = f"n/a (needs at least {round(1 / float(far)):,} impostor pairs)"
        cosine = metrics.get("threshold_at_far", {}).get(far)  # results written earlier have none
        name = f"TAR @ FAR {far}" + ("" if cosine is None else f" (cosine {cosine:.4f})")
        yield name, none if tar is None else _percent(tar)


_CALLED = {"map": "mAP", "map_at_r": "mAP@R", "nmi": "NMI", "auc": "AUC"}
_CALLED |= {"recall_at": "Recall @", "tpir_at_fpir": "TPIR @ FPIR"}


def protocol_table(metrics: Mapping[str, Any], title: str) -> RenderableType:
    """The table of another protocol: its shares, by one thing or another, and counts in the title."""
    counts = ", ".join(f"{value:,} {key}".replace("_", " ") for key, value in metrics.items() if type(value) is int)
    lines = list(_tar_lines(metrics)) if "tar_at_far" in metrics else []
    for key, share in metrics.items():
        shares = share if isinstance(share, Mapping) else {"": share}
        if key not in ("tar_at_far", "threshold_at_far", "roc", "groups") and type(share) is not int:
            key = _CALLED.get(key, key.replace("_", " "))
            lines += [(f"{key} {by}", "n/a" if v is None else _percent(v)) for by, v in shares.items()]
    return _numbers(f"{title} ({counts})", lines)


def classification_table(metrics: Mapping[str, Any]) -> RenderableType:
    """The table of ``classification_metrics``."""
    return _numbers("Classification", [(f"top {k}", _percent(metrics[f"top{k}"])) for k in (1, 5)])


def prediction_table(guesses: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The best classes of an image: ``rank``, ``label``, ``class``, ``name``, ``probability`` or ``cosine`` of each.

    ``class`` and ``name`` may be None; a column of which all are is left out, and without a class the label stands.
    """
    measure = "cosine" if any("cosine" in guess for guess in guesses) else "probability"
    named = any(guess["name"] is not None for guess in guesses)
    heads: list[str | Column] = [Column("rank"), "class", *["name"] * named, Column(measure)]
    lines = []
    for guess in guesses:
        known = guess["label"] if guess["class"] is None else guess["class"]
        lines.append([guess["rank"], known, *[guess["name"]] * named, score_text(guess)])
    return ConsoleTable(text_table("", heads, lines))


def match_table(image: str, matches: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The nearest identities of an image: ``rank``, ``identity``, ``cosine``, ``nearest`` image, ``known`` of each."""
    heads = (Column("rank"), "identity", "nearest image", Column("cosine"))
    lines = [(one["rank"], one["identity"], one["nearest"], score_text(one)) for one in matches]
    title = f"{image}: {matches[0]['identity'] if matches[0]['known'] else 'unknown'}"
    return ConsoleTable(text_table(title, heads, lines))


def score_text(guess: Mapping[str, Any]) -> str:
    """The probability or cosine of a guess, as a person reads it."""
    return _percent(guess["probability"]) if "probability" in guess else f"{guess['cosine']:.4f}"


def info_table(found: Mapping[str, Any]) -> RenderableType:
    """The table of a ``SetInfo.row()``."""
    spread, empty = found["images_per_class"], found["classes_without_images"]
    covered = f"0..{found['classes'] - 1:,}"
    sampled = ", drawn at random" if found["looked_at"] < found["images"] else ""
    of_classes = "{min:,} to {max:,}, mean {mean:,.1f}, median {median:,.0f}".format(**spread)
    lines = [
        ("kind", found["kind"]),
        ("images", f"{found['images']:,}"),
        ("classes", f"{found['classes']:,}"),
        ("class names", "yes" if found["class_names"] else "none"),
        ("bytes", in_bytes(found["total_bytes"])),
        ("images a class", of_classes),
        ("labels", "" if empty else f"{covered}, every class has images"),
        ("classes without images", f"{empty:,}: labels do not cover {covered}" if empty else ""),
        ("classes with one image", f"{found['classes_with_one_image']:,}"),
        ("headers read", f"{found['looked_at']:,} of {found['images']:,}{sampled}"),
    ]
    if found["formats"]:
        height, width = found["height"], found["width"]
        mean, least, most = (found["encoded_bytes"][name] / 1e3 for name in ("mean", "min", "max"))
        lines += [
            ("formats", ", ".join(f"{name} {n:,}" for name, n in found["formats"].items())),
            ("mean size", f"{width['mean']:,.0f} x {height['mean']:,.0f} pixels (width x height)"),
            ("sizes", _sizes(found)),
            ("encoded", f"mean {mean:,.1f} kB, {least:,.1f} to {most:,.1f}"),
        ]
    if found["damaged"]:
        lines.append(("damaged", f"{found['damaged']:,}; `megaclass data check` lists them"))
    return ConsoleTable(text_table(found["path"], ("", ""), [line for line in lines if line[1]]))


def _sizes(found: Mapping[str, Any]) -> str:
    common, heights, widths = found["common_sizes"], found["height"], found["width"]
    if len(common) == 1:
        return f"all {common[0][1]} x {common[0][0]}"
    looked_at = max(1, found["looked_at"] - found["damaged"])
    shares = ", ".join(f"{width} x {height} ({count / looked_at:.0%})" for height, width, count in common)
    smallest, largest = (f"{widths[end]} x {heights[end]}" for end in ("min", "max"))
    return f"{smallest} to {largest}; commonest {shares}"


def check_table(path: str, counts: Mapping[str, int], kinds: Mapping[str, str], images: int) -> RenderableType:
    """How many findings of each of the ``kinds`` (name -> what it means) there are."""
    lines = [("images", f"{images:,}")]
    lines += [(text, f"{counts[kind]:,}") for kind, text in kinds.items() if counts.get(kind)]
    return _numbers(path, [*lines, ("result", "something was found" if any(counts.values()) else "sound")])


def _numbers(title: str, lines: Sequence[Sequence[str]]) -> RenderableType:
    """Names, and numbers to the right."""
    return ConsoleTable(text_table(title, ("", Column("")), lines))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
