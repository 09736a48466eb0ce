"""The cases of ``bench infer``, and the configuration of the model that each of them runs."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from megaclass.bench.arguments import check_counts
from megaclass.bench.recipes import PRECISIONS, SYNTHETIC, recipe_digest, recipe_of, with_settings
from megaclass.config import Config
from megaclass.errors import lookup

ENGINES = ("eager", "compiled", "cudagraph", "onnx")
IMAGENET_CLASSES = 1000  # of a linear head, where neither the case nor the recipe says


@dataclass(frozen=True, kw_only=True)
class InferCase:
    """One measurement of inference, by one process on one device.

    An empty text or a 0 stands for what the recipe says (see :func:`resolved`). num_classes: of a linear head; a
    margin head scores no classes when it is used, so there embeddings are the output and this is 0. precision:
    ``fp32`` is IEEE's, without tf32. tf32: what stays in fp32 beside 16-bit products may use it. data: ``synthetic``
    or a directory. iterations: steps of an epoch. epochs: timed ones; warmup: those before them. settings: further
    ``section.key`` values of the recipe. threads: on a CPU.
    """

    benchmark: ClassVar[str] = "infer"
    world_size: ClassVar[int] = 1

    recipe: str = "resnet50_imagenet"
    backbone: str = ""
    num_classes: int = 0
    image_size: int = 0
    batch_size: int = 1
    precision: str = "fp32"
    tf32: bool = False
    engine: str = "eager"
    data: str = SYNTHETIC
    iterations: int = 10
    epochs: int = 1
    warmup: int = 1
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Timed turns."""
        return self.epochs

    @property
    def text(self) -> str:
        """For a person, in a line."""
        text = f"{self.recipe} {self.backbone} {self.image_size} px, batch {self.batch_size}, {self.engine}"
        return f"{text}, {self.precision}{'+tf32' if self.tf32 else ''}, {self.device}"

    def parameters(self) -> dict[str, Any]:
        """For a row."""
        return asdict(self) | recipe_digest(self.recipe)

    def check(self) -> None:
        """What no machine could run is the user's mistake."""
        lookup(dict.fromkeys(PRECISIONS.values()), self.precision, "precision")
        lookup(dict.fromkeys(ENGINES), self.engine, "engine")
        check_counts(self, ("num_classes", "image_size", "warmup", "seed"))

    def why_skipped(self, gpus: int) -> str:
        """Why this case does not fit the machine or itself, or an empty string."""
        if self.device == "cuda" and gpus < 1:
            return "no GPU is visible"
        if self.device == "cpu" and (self.precision == "tf32" or self.tf32):
            return "tf32 exists on CUDA only"
        if self.device == "cpu" and self.engine == "cudagraph":
            return "CUDA graphs exist on CUDA only"
        if self.engine == "onnx" and self.precision == "bf16":
            return "ONNX Runtime has no bf16 convolution"
        if self.engine == "onnx" and self.precision == "fp16" and self.device == "cpu":
            return "ONNX Runtime computes fp16 convolutions on a CPU in fp32"
        return ""


def config_of(case: InferCase) -> Config:
    """The configuration of the model, its arithmetic and its images. UserError: a recipe or a value that there is
    not."""
    recipe = recipe_of(case.recipe, case.backbone)
    linear = recipe.head.kind == "linear"
    classes = case.num_classes or recipe.data.num_classes or IMAGENET_CLASSES
    given: dict[str, dict[str, Any]] = {
        "run": {"seed": case.seed},
        # Of synthetic data a class is asked for whether or not the head has any.
        "data": {
            "source": "synthetic",
            "num_classes": classes if linear else 1,
            "image_size": case.image_size or recipe.data.image_size,
        },
        # ONNX has one order of the dimensions.
        "precision": {
            "compute": case.precision,
            "tf32": case.tf32,
            **({"channels_last": False} if case.engine == "onnx" else {}),
        },
    }
    return with_settings(recipe, given, case.settings)


def resolved(case: InferCase) -> InferCase:
    """The case with everything said that it left to its recipe."""
    case.check()
    config = config_of(case)
    return replace(
        case,
        backbone=config.model.name,
        num_classes=config.data.num_classes if config.head.kind == "linear" else 0,
        image_size=config.data.image_size,
    )


def infer_cases(
    *,
    recipe: Sequence[str] = ("resnet50_imagenet",),
    backbone: Sequence[str] = ("",),
    engine: Sequence[str] = ("eager",),
    precision: Sequence[str] = ("fp32",),
    batch_size: Sequence[int] = (1,),
    **fixed: Any,
) -> list[InferCase]:
    """Every combination of the lists, resolved; the last varies fastest. ``fixed``: other fields of the cases.

    UserError: a combination that makes no sense.
    """
    return [
        resolved(InferCase(recipe=name, backbone=body, engine=by, precision=kind, batch_size=batch, **fixed))
        for name, body, by, kind, batch in itertools.product(recipe, backbone, engine, precision, batch_size)
    ]
