"""``megaclass embed``: the embeddings of images as a file."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from megaclass.cli.common import progress_bar, tell, whole_file
from megaclass.cli.parsing import RUN_OPTIONS, make_parser, model_asked, new_file, parse_with_settings
from megaclass.errors import UserError

if TYPE_CHECKING:
    from megaclass.data.dataset import Dataset
    from megaclass.inference.model import Model
    from megaclass.inference.vectors import Block


def embed(words: list[str]) -> int:
    """Exit status 1 where an image could not be read: the others are embedded all the same."""
    from megaclass.inference import vectors

    parser = make_parser(
        "megaclass embed IMAGES ... --run-dir DIR --output FILE [--section.key VALUE ...]",
        "Write the embeddings of images, of length 1, with names and labels into one file: .npz, .parquet or "
        ".safetensors. An image that cannot be read is named on standard error; the others are embedded, and the exit "
        "status is 1.",
        {
            "images...": "image files and directories, or one record set, tars, .bin or directory of class directories"
        },
        RUN_OPTIONS,
    )
    parser.add_argument("-o", "--output", default="", help=f"new file: {', '.join(vectors.FORMATS)}")
    options, given = parse_with_settings(parser, words)
    output = new_file(options.output)
    if output is None or output.suffix.lower() not in vectors.FORMATS:
        raise UserError(f"--output: name a new file that ends with one of {', '.join(vectors.FORMATS)}")

    from megaclass.data.dataset import class_names
    from megaclass.inference.embedding import metadata, open_images, short_name

    images, paths = open_images(options.images), options.images
    model = model_asked(parser, options, given)
    with (
        embedding(model, images, lambda index: short_name(paths, images, index)) as (blocks, lost),
        whole_file("--output", output) as part,
    ):
        vectors.write_embeddings(part, output.suffix.lower(), blocks, metadata(model), class_names(images))
    tell(f"{len(images) - len(lost):,} of {len(images):,} images embedded, {model.embedding_dim} columns")
    tell(f"output    {output}")
    return 1 if lost else 0


@contextlib.contextmanager
def embedding(
    model: "Model", images: "Dataset", name: Callable[[int], str]
) -> "Iterator[tuple[Iterator[Block], dict[str, str]]]":
    """Yields the blocks of all images, under a bar, and by name what is wrong with those that are left out so far."""
    from megaclass.inference.embedding import embedded

    lost: dict[str, str] = {}

    def damaged(image: str, told: str) -> None:
        lost[image] = told
        tell(f"megaclass: {told}", sys.stderr)

    def blocks() -> "Iterator[Block]":
        done = 0
        for block in embedded(model, images, name, damaged):
            yield block
            done += len(block.names)
            show(done + len(lost), len(images))

    with progress_bar("embedding", "nothing was written") as show:
        yield blocks(), lost
