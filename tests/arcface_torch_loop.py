"""arcface_torch's own training script on a CPU, as it is or with our head in it. A process of its own.

    python tests/arcface_torch_loop.py REQUEST.json

The request names the peer's directory (nothing of the peer is part of this project), the head (``theirs`` or
``ours``), the epoch to begin with, settings that differ from the peer's defaults, and the file that receives the
losses. The script runs as it is, alone or as one rank of a gloo group (RANK and WORLD_SIZE in the environment), but
for: calls to CUDA, which do nothing; the data, which are patterns under noise from memory; packages it only needs
for other work (MXNet, TensorBoard, EasyDict, evaluation); and, with ``ours``, the lines of
docs/tutorials/arcface_torch.md.

Shapes: B = images, C = classes, D = embedding columns.
"""

import ast
import json
import os
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import torch
from torch import Tensor, nn

from megaclass.bench.peers.arcface_torch import take_verbose

# The blocks of the document, in its order: how the statement of the script begins that a block replaces, or follows.
BLOCKS = {
    "import": ("from partial_fc_v2 ", "replaces"),
    "margin": ("margin_loss = ", "replaces"),
    "head": ("module_partial_fc = ", "replaces"),
    "optimizers": ("opt = torch.optim.SGD(", "replaces"),
    "step": ("opt.step()", "follows"),
    "clip": ("torch.nn.utils.clip_grad_norm_(", "replaces"),
    "scaled step": ("amp.step(opt)", "follows"),
    "rate": ("lr_scheduler.step()", "follows"),
    "save": ("checkpoint = ", "follows"),
    "restore": ("opt.load_state_dict(", "follows"),
}

FIRST_SCALE = 2.0**22

RANK, WORLD_SIZE = (int(os.environ.get(*pair)) for pair in (("RANK", "0"), ("WORLD_SIZE", "1")))

DOC = Path(__file__).parents[1] / "docs" / "tutorials" / "arcface_torch.md"

# In our run only, after the head is made: the centres that the peer draws here, by the same call.
SAME_CENTRES = """
module_partial_fc.load_state_dict(
    {"weight": torch.normal(0, 0.01, module_partial_fc.weight.shape)}
)
"""


# -- the lines of the document, put into the script -------------------------------------------------------


def documented_blocks(text: str) -> dict[str, list[ast.stmt]]:
    """The statements of each Python block of the document's section on the lines that change, by name."""
    section = text.partition("\n## The lines that change\n")[2].partition("\n## ")[0]
    blocks = [ast.parse(block).body for block in re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)]
    return dict(zip(BLOCKS, blocks, strict=True))


class Swap(ast.NodeTransformer):
    """Puts the blocks where the document says: in place of a statement, or after one."""

    def __init__(self, blocks: dict[str, list[ast.stmt]]) -> None:
        self.blocks = blocks | {"head": [*blocks["head"], *ast.parse(SAME_CENTRES).body]}
        self.placed = dict.fromkeys(blocks, 0)

    def visit(self, node: ast.AST) -> Any:
        for name, (beginning, how) in BLOCKS.items() if isinstance(node, ast.stmt) else ():
            if ast.unparse(node).startswith(beginning):
                self.placed[name] += 1
                return [*([node] if how == "follows" else []), *self.blocks[name]]
        return self.generic_visit(node)


# -- what the script finds in place of CUDA and of absent packages ----------------------------------------


class Settings(dict):
    """A dict whose keys are attributes too, as the peer's configuration expects."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]

    __setattr__ = dict.__setitem__  # type: ignore[assignment]


def patterns(classes: int, batch: int, steps: int, first: int) -> list[tuple[Tensor, Tensor]]:
    """``steps`` batches (B, 3, 112, 112) and labels (B,) of this rank: a random pattern for each class, under noise."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(classes, 3, 14, 14, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    batches = []
    for step in range(first, first + steps):
        generator.manual_seed(1000 + step * WORLD_SIZE + RANK)
        labels = torch.randint(classes, (batch,), generator=generator)
        noise = torch.randn(batch, 3, 112, 112, generator=generator)
        batches.append((pictures[labels] + 0.5 * noise, labels))
    return batches


def smooth(embedding_dim: int) -> nn.Module:
    """A backbone in which rounding stays rounding: no kinks, and nothing deep to amplify it."""
    return nn.Sequential(
        nn.AvgPool2d(8),
        nn.Flatten(),
        nn.Linear(3 * 14 * 14, 256),
        nn.Tanh(),
        nn.Linear(256, embedding_dim),
        nn.BatchNorm1d(embedding_dim),
    )


def module(name: str, **contents: Any) -> None:
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(contents)


def stand_ins(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Put everything in place that the script misses here; returns what will hold the losses, and the loss scale."""
    found: dict[str, Any] = {"losses": []}
    torch.set_num_threads(1)
    settings = request["settings"]
    steps = settings["num_image"] // (settings["batch_size"] * WORLD_SIZE)
    saved = Path(settings["output"]) / "checkpoint_gpu_0.pt"

    class Loader:
        """An epoch of ``steps`` batches. Keeps what was saved at the end of the one before under its number."""

        epoch = request["first_epoch"]

        def __iter__(self) -> Any:
            if settings["save_all_states"] and saved.is_file():
                shutil.copy(saved, saved.with_name(f"after-epoch-{self.epoch}.pt"))
            self.epoch += 1
            first = (self.epoch - 1) * steps
            return iter(patterns(settings["num_classes"], settings["batch_size"], steps, first))

    module("dataset", get_dataloader=lambda *args, **kwargs: Loader())
    module("mxnet")
    module("easydict", EasyDict=Settings)
    module("torch.utils.tensorboard", SummaryWriter=Mock)
    module("eval", verification=None)
    module("configs.test", config=Settings(settings))
    if settings["network"] == "smooth":
        module("backbones", get_model=lambda name, num_features, **options: smooth(num_features))

    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    nn.Module.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    torch.cuda.set_device = lambda device: None  # type: ignore[assignment]

    start = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda *args, **kwargs: start(  # type: ignore[assignment]
        "gloo", init_method=f"file://{folder}/rendezvous", rank=RANK, world_size=WORLD_SIZE
    )
    parallel = nn.parallel.DistributedDataParallel
    nn.parallel.DistributedDataParallel = lambda device_ids, **options: parallel(**options)  # type: ignore
    take_verbose()

    class Scaler(torch.amp.GradScaler):
        """The peer's, on the CPU, from so high a scale that its fp16 gradients overflow in the first steps."""

        def __init__(self, **options: Any) -> None:
            super().__init__("cpu", init_scale=FIRST_SCALE, **options)

        def update(self, new_scale: Any = None) -> None:
            super().update(new_scale)
            found["loss_scale"] = self.get_scale()

    torch.cuda.amp.grad_scaler.GradScaler = Scaler  # type: ignore[misc]

    from utils import utils_logging  # type: ignore[import-not-found]  # the peer's

    class Meter(utils_logging.AverageMeter):  # type: ignore[misc]
        def update(self, value: float, n: int = 1) -> None:
            found["losses"].append(value)
            super().update(value, n)

    utils_logging.AverageMeter = Meter
    return found


def main(request: dict[str, Any]) -> None:
    peer = Path(request["peer"])
    sys.path.insert(0, str(peer))
    found = stand_ins(request, Path(request["output"]).parent)
    path = peer / "train_v2.py"
    source = path.read_text(encoding="utf-8")
    tree, swap = ast.parse(source), Swap(documented_blocks(DOC.read_text(encoding="utf-8")))
    if request["head"] == "ours":
        tree = ast.fix_missing_locations(swap.visit(tree))
    script: dict[str, Any] = {"__name__": "train_v2", "__file__": str(path)}
    exec(compile(tree, str(path), "exec"), script)
    script["main"](types.SimpleNamespace(config="configs/test.py"))
    if RANK == 0:
        Path(request["output"]).write_text(json.dumps({**found, "placed": swap.placed}), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
