"""What a check of a data set can find."""

from typing import Any, NamedTuple

# In the order in which they are told.
KINDS = {
    "set": "the set as a whole",
    "damaged": "images that cannot be read or decoded",
    "label": "labels that are no class of the set",
    "index": "index lines and records that disagree",
    "identity": "identity records that disagree with the labels",
    "mislabelled": "the same image under another label",
    "duplicate": "the same image again in its class",
}


class Place(NamedTuple):
    """Where something lies: a file, and the key of the record if the file holds many."""

    file: str
    record: int | None = None

    def __str__(self) -> str:
        return self.file if self.record is None else f"{self.file} record {self.record}"


class Finding(NamedTuple):
    """One thing that is wrong: its kind (of ``KINDS``), where, and why."""

    kind: str
    place: Place
    reason: str

    def row(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {
            "kind": self.kind,
            "file": self.place.file,
            "record": self.place.record,
            "reason": self.reason,
        }

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"
