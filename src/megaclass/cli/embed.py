"""``megaclass embed``: the embeddings of images as a file."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from megaclass.cli.common import progress_bar, tell
from megaclass.cli.parsing import MODEL_OPTIONS, make_parser, model_asked, new_file, parse_with_settings
from megaclass.files import whole_file

if TYPE_CHECKING:
    from megaclass.data.dataset import Dataset
    from megaclass.inference.model import Model
    from megaclass.inference.vectors import Embeddings


def embed(words: list[str]) -> int:
    """Exit status 1 where an image could not be read: the others are embedded all the same."""
    parser = make_parser(
        "megaclass embed IMAGES ... --run-dir DIR --output FILE [--section.key VALUE ...]",
        "Write the embeddings of images, of length 1, with names and labels into one file: .npz, .parquet or "
        ".safetensors. An image that cannot be read is named on standard error; the others are embedded, and the exit "
        "status is 1.",
        {"images...": "image files and directories; or one directory of class directories, table, record set, .bin"},
        MODEL_OPTIONS,
    )
    parser.add_argument("-o", "--output", required=True, help="new file")
    options, given = parse_with_settings(parser, words)

    from megaclass.inference import vectors
    from megaclass.inference.embedding import metadata, open_images

    output = new_file(options.output, suffixes=vectors.WRITTEN)
    images, classes = open_images(options.images)
    model = model_asked(parser, options, given)
    with (
        embedding(model, images, classes is not None) as (blocks, lost),
        whole_file("--output", output) as part,
    ):
        vectors.write_embeddings(part, output.suffix.lower(), blocks, classes, metadata(model))
    tell(f"{len(images) - len(lost):,} of {len(images):,} images embedded, {model.embedding_dim} columns")
    tell(f"output    {output}")
    return 1 if lost else 0


@contextlib.contextmanager
def embedding(model: "Model", images: "Dataset", labelled: bool) -> "Iterator[tuple[Any, dict[str, str]]]":
    """Yields the blocks of all images, under a bar, and by name what is wrong with those that are left out so far."""
    from megaclass.inference.embedding import embedded

    lost: dict[str, str] = {}

    def damaged(image: str, told: str) -> None:
        lost[image] = told
        tell(f"megaclass: {told}", sys.stderr)

    def blocks() -> "Iterator[Embeddings]":
        done = 0
        for block in embedded(model, images, labelled, damaged):
            yield block
            done += len(block.names)
            show(done + len(lost), len(images))

    with progress_bar("embedding", "nothing was written") as show:
        yield blocks(), lost
