"""``megaclass embed``: the embeddings of images as a file."""

import sys

from megaclass.cli.common import progress_bar, tell, whole_file
from megaclass.cli.parsing import RUN_OPTIONS, make_parser, model_asked, new_file, parse_with_settings
from megaclass.errors import UserError


def embed(words: list[str]) -> int:
    """Exit status 1 where an image could not be read: the others are embedded all the same."""
    from megaclass.inference import vectors

    parser = make_parser(
        "megaclass embed IMAGES ... --run-dir DIR --output FILE [--section.key VALUE ...]",
        "Write the embeddings of images, each of length 1, with their names and labels into one file: .npz, .parquet or "
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
    from megaclass.inference.embedding import embedded, metadata, open_images, short_name

    images, paths = open_images(options.images), options.images
    model = model_asked(parser, options, given)
    lost: list[str] = []

    def damaged(told: str) -> None:
        lost.append(told)
        tell(f"megaclass: {told}", sys.stderr)

    def blocks():
        done = 0
        for block in embedded(model, images, lambda index: short_name(paths, images, index), damaged):
            yield block
            done += len(block.names)
            show(done + len(lost), len(images))

    with progress_bar("embedding", "nothing was written") as show, whole_file("--output", output) as part:
        vectors.write_embeddings(part, output.suffix.lower(), blocks(), metadata(model), class_names(images))
    tell(f"{len(images) - len(lost):,} of {len(images):,} images embedded, {model.embedding_dim} columns")
    tell(f"output    {output}")
    return 1 if lost else 0
