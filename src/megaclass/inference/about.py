"""What there is to know of a trained model beside its weights: the same words in bundles, exports and galleries."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megaclass.data.preprocessing import Preprocessing
from megaclass.errors import UserError

KINDS = ("identity", "classification")


@dataclass(frozen=True, kw_only=True)
class About:
    """kind: ``identity``, of a margin head, whose embeddings are compared, or ``classification``, of a linear head.

    loss: of a linear head, as ``head.loss``. flip: the mean of the features of an image and its mirror image counts.
    evaluation: what was measured of these very weights, as in result.json: the metrics of ``kind``. fingerprint: of an
    exported file, that of the model it came from.
    """

    kind: str
    preprocessing: Preprocessing
    embedding_dim: int
    num_classes: int = 0
    sub_centres: int = 1
    loss: str = "softmax"
    classes: list[str] | None = None
    flip: bool = False
    recipe: str = ""
    licence: str = ""
    fingerprint: str = ""
    evaluation: dict[str, Any] = field(default_factory=dict)

    @property
    def num_centres(self) -> int:
        return self.num_classes * self.sub_centres

    @property
    def threshold(self) -> float | None:
        """The cosine at or above which two images are of one identity: the best over the pairs of the evaluation."""
        return self.evaluation.get("threshold")

    @property
    def thresholds(self) -> dict[str, float]:
        """The lowest such cosine that keeps to a false accept rate, as ``{"1e-3": 0.31}``."""
        found = self.evaluation.get("threshold_at_far") or {}
        return {far: cosine for far, cosine in found.items() if cosine is not None}

    @classmethod
    def from_json(cls, found: Any, where: str) -> "About":
        """What ``asdict`` gave. UserError, which names ``where`` it was found, for what does not say what a model is.

        What is not known here is left out, so that later versions may say more.
        """
        if not isinstance(found, Mapping) or found.get("kind") not in KINDS:
            raise UserError(f"{where}: does not say what kind of model it is; write it again with megaclass")
        names = {f.name for f in dataclasses.fields(cls)}
        given = {name: value for name, value in found.items() if name in names}
        given["preprocessing"] = Preprocessing.from_json(given.get("preprocessing", {}), where)
        about = cls(**{"embedding_dim": 0} | given)
        classes, number = about.classes, about.num_classes
        right = {
            "embedding_dim": type(about.embedding_dim) is int and about.embedding_dim > 0,
            "num_classes": type(number) is int and number >= 0,
            "sub_centres": type(about.sub_centres) is int and about.sub_centres > 0,
            "loss": about.loss in ("softmax", "bce"),
            "classes": classes is None
            or (isinstance(classes, list) and all(isinstance(c, str) for c in classes) and len(classes) == number),
            "flip": isinstance(about.flip, bool),
            "fingerprint": isinstance(about.fingerprint, str),
            "evaluation": isinstance(about.evaluation, dict)
            and all(isinstance(v, float | int) for v in about.thresholds.values())
            and isinstance(about.threshold, float | int | None),
        }  # fmt: skip
        for name, is_right in right.items():
            if not is_right:
                raise UserError(f"{where}: {name} {getattr(about, name)!r:.60} is none of a model; it is damaged")
        return about


def read_about(text: str, where: str) -> About:
    """From the text of a JSON file, or of a file's metadata."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: not valid JSON; it is damaged") from None
    return About.from_json(found, where)
