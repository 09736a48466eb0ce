"""``megaclass export``: checkpoints for other programs."""

from megaclass.cli.parsing import make_parser, parse
from megaclass.errors import lookup


def export(words: list[str]) -> None:
    parser = make_parser(
        "megaclass export arcface_torch SOURCE OUTPUT [OPTIONS]",
        "Write a run, or checkpoints of arcface_torch, as the checkpoint_gpu_RANK.pt files from which arcface_torch's "
        "training script resumes.",
    )
    parser.add_argument("format", type=str, help="arcface_torch")
    parser.add_argument(
        "source", type=str, help="run directory, or directory of checkpoint_gpu_RANK.pt files"
    )
    parser.add_argument("output", type=str, help="directory for the files; must not hold any")
    parser.add_argument(
        "--ranks", type=int, default=0, help="processes that will read them; 0: as many as wrote the source"
    )
    parser.add_argument(
        "--layout", type=str, default="arcface_torch", help="dropin: for the script with our head in it"
    )
    parser.add_argument(
        "--checkpoint", type=str, default="latest", help="of a run: best, latest or a step-NNNNNNNN"
    )
    options = parse(parser, words)

    from megaclass.checkpoint.arcface_torch import LAYOUTS
    from megaclass.inference.export import to_rank_files

    lookup({"arcface_torch": None}, options.format, "format")
    lookup(dict.fromkeys(LAYOUTS), options.layout, "layout")
    paths = to_rank_files(
        options.source, options.output, ranks=options.ranks, layout=options.layout, which=options.checkpoint
    )
    print(f"wrote {paths[0]}" + (f" and those of {len(paths) - 1} more ranks" if len(paths) > 1 else ""))
