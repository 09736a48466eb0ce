"""The head on one rank against the dense fp64 oracle, over 20 optimizer steps."""

import pytest

from head_reference import Case, assert_agrees, train_oracle, train_ours
from megaclass.heads.margins import ArcFace, CosFace, Margin, SphereFace

MARGINS = {
    "arcface": ArcFace(),
    "arcface-exact": ArcFace(gradient="exact"),
    "cosface": CosFace(),
    "sphereface": SphereFace(),
    "sphereface-exact": SphereFace(gradient="exact"),
    "combined-exact": Margin(m1=0.9, m2=0.4, m3=0.15, gradient="exact", scale=32.0),
    "filtered": ArcFace(filter_threshold=0.2),
    "large-scale": ArcFace(scale=75.0),
}


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("sample_rate", [1.0, 0.4])
@pytest.mark.parametrize("margin", MARGINS.values(), ids=MARGINS)
def test_agrees_with_the_oracle(margin: Margin, sample_rate: float, accumulation: int) -> None:
    case = Case(margin=margin, sample_rate=sample_rate, accumulation=accumulation)
    ours = train_ours(case)
    assert_agrees(ours, train_oracle(case, ours.samples))
