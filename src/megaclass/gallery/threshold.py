"""From which cosine on two images are taken for one identity."""

import numpy as np

from megaclass.data.verification_bin import VerificationBin
from megaclass.errors import UserError
from megaclass.evaluate.metrics import all_pairs_tar, pair_scores, verification_metrics
from megaclass.evaluate.pairs import PairSet
from megaclass.inference.embedding import embedded, is_labelled, open_images
from megaclass.inference.model import Model


def threshold_at(model: Model, far: float, verify: str = "") -> tuple[float, str]:
    """The cosine at which the share ``far`` of impostor pairs is accepted, and where it is from: the evaluation of the
    model, or the set ``verify``, a ``.bin`` or a labelled one, which is measured now. UserError where it is unknown."""
    if not verify:
        found = {float(name): cosine for name, cosine in model.thresholds.items()}
        if far not in found:
            known = ", ".join(model.thresholds) or "none"
            raise UserError(f"--far {far}: not measured of {model.source} (known: {known}); add --verify SET")
        return found[far], f"FAR {far:g} in the evaluation of {model.source}"
    images = open_images([verify])

    def damaged(_: str, told: str) -> None:
        raise UserError(f"--verify: {told}")

    rows_ND = np.concatenate([block.rows_BD for block in embedded(model, images, images.describe, damaged)])
    if isinstance(images, VerificationBin):
        scores = pair_scores(rows_ND, PairSet(images.first, images.second, images.same))
        metrics = verification_metrics(scores, images.same, 2, {"far": far})
    elif is_labelled(images):
        metrics = all_pairs_tar(rows_ND, images.labels(), {"far": far})
    else:
        raise UserError(
            f"--verify: {verify} has no labels; name a .bin, or a set with a directory an identity"
        )
    if (cosine := metrics["threshold_at_far"]["far"]) is None:
        raise UserError(
            f"--verify: {verify} has fewer than 1/{far:g} pairs of two identities; take a larger set or FAR"
        )
    return cosine, f"FAR {far:g} on {verify}"
