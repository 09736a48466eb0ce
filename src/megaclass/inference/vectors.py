"""Files of embeddings: one writer and one reader, of ``.npz``, ``.parquet`` and ``.safetensors``.

``embeddings``, fp32 (N, D), each row of length 1; ``names``, of the images; where these are labelled ``labels``, int64
(N,), and ``classes``, names in label order; and ``metadata``, JSON from text to text. Of safetensors names are uint8, a
NUL behind each, and metadata is its own; parquet has a row an image: ``name``, ``embedding``, ``label``, ``class``.

Shapes: N = images, B = images of a block, D = embedding columns.
"""

import importlib
import json
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from megaclass import __version__
from megaclass.checkpoint import tensorfile
from megaclass.errors import UserError, first_line
from megaclass.files import regular_size

FORMATS = (".npz", ".parquet", ".safetensors")
_BLOCK_ROWS = 1 << 14
_INFLATED = 64  # of an archive: text shrinks so far, embeddings hardly do


class Block(NamedTuple):
    """Some images: their names, embeddings fp32 (B, D), and labels, int64 (B,), where the source has them."""

    names: Sequence[str]
    rows_BD: np.ndarray
    labels: np.ndarray | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Embeddings:
    """What a file holds. ``embeddings``: fp32 (N, D), each of length 1; ``labels``: int64 (N,), ``classes``: names in
    label order, both None where the file has none."""

    embeddings: np.ndarray
    names: list[str]
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def extra(module: str, name: str) -> Any:
    """A module of an extra. UserError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{module.partition('.')[0]} is not installed; pip install 'megaclass[{name}]'"
        ) from None


# -- writing ---------------------------------------------------------------------------------------------


def write_embeddings(
    path: Path,
    suffix: str,
    blocks: Iterable[Block],
    about: Mapping[str, str],
    classes: list[str] | None = None,
) -> int:
    """Write a new file in the format of ``suffix``, and return how many images it holds. Memory: names and a block.

    ``about``: the metadata. OSError for what the system refuses; UserError where there is not one image.
    """
    names: list[str] = []
    labels: list[np.ndarray] = []
    with tempfile.TemporaryFile(dir=path.parent) as spool:  # formats want to know N first
        for block in blocks:
            np.ascontiguousarray(block.rows_BD, np.float32).tofile(spool)
            names += block.names
            labels += [] if block.labels is None else [block.labels]
            columns = block.rows_BD.shape[1]
        if not names:
            raise UserError("no image could be embedded: nothing is written")
        spool.flush()
        rows_ND = np.memmap(spool, np.float32, "r+", shape=(len(names), columns))
        arrays = {"embeddings": rows_ND, **({"labels": np.concatenate(labels)} if labels else {})}
        texts = {"names": names, **({"classes": classes} if labels and classes else {})}
        _WRITERS[suffix](path, arrays, texts, {"megaclass": __version__, **about})
    return len(names)


def _write_npz(
    path: Path, arrays: dict[str, Any], texts: dict[str, list[str]], about: dict[str, str]
) -> None:
    arrays |= {name: np.array(text) for name, text in texts.items()} | {
        "metadata": np.array(json.dumps(about))
    }
    with path.open("xb") as file:
        np.savez(file, **arrays)


def _write_tensors(
    path: Path, arrays: dict[str, Any], texts: dict[str, list[str]], about: dict[str, str]
) -> None:
    for name, text in texts.items():
        joined = "".join(f"{one}\0" for one in text).encode(errors="surrogateescape")
        arrays[name] = np.frombuffer(bytearray(joined), np.uint8)
    tensorfile.write_tensors(path, {name: torch.from_numpy(array) for name, array in arrays.items()}, about)


def _write_parquet(
    path: Path, arrays: dict[str, Any], texts: dict[str, list[str]], about: dict[str, str]
) -> None:
    pa, parquet = extra("pyarrow", "parquet"), extra("pyarrow.parquet", "parquet")
    names, classes = (
        [one.encode(errors="backslashreplace") for one in texts.get(k, [])] for k in ("names", "classes")
    )
    rows_ND = arrays["embeddings"]
    held = {"name": pa.array(names, pa.string())}
    held["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(rows_ND.ravel()), rows_ND.shape[1])
    if "labels" in arrays:
        held["label"] = pa.array(arrays["labels"])
        held |= {"class": pa.array(classes, pa.string()).take(held["label"])} if classes else {}
    with path.open("xb") as file:
        parquet.write_table(
            pa.table(held).replace_schema_metadata(about),
            file,
            row_group_size=_BLOCK_ROWS,
            use_dictionary=["class"],
        )


_WRITERS = {".npz": _write_npz, ".safetensors": _write_tensors, ".parquet": _write_parquet}


# -- reading ---------------------------------------------------------------------------------------------


def is_embeddings(path: str | Path) -> bool:
    """Whether a path is called as files of embeddings are."""
    return Path(path).suffix.lower() in _READERS


def read_embeddings(path: str | Path) -> Embeddings:
    """A file of embeddings, or a plain matrix ``.npy`` (N, D), whose images are then called by their row numbers.

    Rows come out fp32 and of length 1; those of ``.safetensors`` and ``.npy`` stay in the file until they are used.
    Nothing in a file is run, and no more is allocated than it holds. UserError, which names the file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not is_embeddings(path):
        raise UserError(f"{path}: not a file of embeddings, which end with {', '.join(_READERS)}; name one")
    try:
        regular_size(path)
        return _checked(**_READERS[suffix](path))
    except OSError as error:
        why = error.strerror or first_line(error)
    except Exception as error:  # zipfile, NumPy, safetensors and pyarrow raise some fifteen types
        # NumPy's advice on pickles is to switch its protection off.
        why = "it holds objects" if "pickle" in str(error).lower() else first_line(error)
    raise UserError(f"{path} cannot be read as embeddings: {why}; `megaclass embed` writes such files")


def _checked(
    embeddings: np.ndarray, metadata: dict[str, str], names: list[str] | None = None, **labelled: Any
) -> Embeddings:
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or 0 in embeddings.shape:
        raise ValueError(f"embeddings are {embeddings.dtype} {embeddings.shape}, not floats (N, D)")
    count, labels, classes = len(embeddings), labelled.get("labels"), labelled.get("classes")
    names = [str(row) for row in range(count)] if names is None else names
    if len(names) != count or (
        labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iu")
    ):
        raise ValueError(f"names or labels are not those of {count:,} embeddings")
    if labels is not None:
        labels = labels.astype(np.int64, copy=False)
        if labels.min() < 0 or (classes is not None and labels.max() >= len(classes)):
            raise ValueError(f"labels go from {labels.min()} to {labels.max()}, beyond the classes")
    rows_ND = stored_ND = embeddings.astype(np.float32, copy=False)
    for start in range(0, count, _BLOCK_ROWS):
        rows_BD = rows_ND[start : start + _BLOCK_ROWS]
        lengths_B = np.linalg.norm(rows_BD, axis=1)
        if not (sound_B := np.isfinite(lengths_B) & (lengths_B > 0)).all():
            raise ValueError(f"row {start + int(sound_B.argmin())} is zero or not finite")
        if np.abs(lengths_B - 1).max() > 1e-4:
            rows_ND = np.array(rows_ND) if rows_ND is stored_ND else rows_ND  # that may be the file itself
            rows_ND[start : start + _BLOCK_ROWS] = rows_BD / lengths_B[:, None]
    return Embeddings(embeddings=rows_ND, names=names, labels=labels, classes=classes, metadata=metadata)


def _read_npy(path: Path) -> dict[str, Any]:
    return {"embeddings": np.load(path, mmap_mode="r", allow_pickle=False), "metadata": {}}


def _read_npz(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > _INFLATED * path.stat().st_size:
            raise ValueError("it would be far larger unpacked than embeddings are")
    with np.load(path, allow_pickle=False) as arrays:
        if "embeddings" not in arrays:
            raise ValueError("there is no array 'embeddings'")
        found = {name: arrays[name] for name in ("embeddings", "labels") if name in arrays}
        texts = {name: arrays[name].tolist() for name in ("names", "classes") if name in arrays}
        return (
            found | texts | {"metadata": json.loads(str(arrays["metadata"])) if "metadata" in arrays else {}}
        )


def _read_tensors(path: Path) -> dict[str, Any]:
    tensors, about = tensorfile.map_tensors(path)
    found: dict[str, Any] = {
        name: tensors[name].numpy() for name in ("embeddings", "labels") if name in tensors
    }
    for name in tensors.keys() & {"names", "classes"}:
        found[name] = tensors[name].numpy().tobytes().decode(errors="surrogateescape").split("\0")[:-1]
    return found | {"metadata": about}


def _read_parquet(path: Path) -> dict[str, Any]:
    table = extra("pyarrow.parquet", "parquet").read_table(path)
    embedding, held = table["embedding"].combine_chunks(), table.column_names
    values, about = embedding.flatten(), table.schema.metadata or {}
    lengths = extra("pyarrow.compute", "parquet").list_value_length(embedding).to_numpy(zero_copy_only=False)
    if values.null_count or len(set(lengths.tolist())) != 1:
        raise ValueError("not every row has an embedding of as many numbers")
    found = {"embeddings": values.to_numpy(zero_copy_only=False).reshape(len(table), -1)}
    found |= {"names": table["name"].to_pylist()} if "name" in held else {}
    found |= {"labels": table["label"].to_numpy()} if "label" in held else {}
    if "class" in held and "label" in held:
        known = dict(zip(found["labels"].tolist(), table["class"].to_pylist(), strict=True))
        found["classes"] = [known.get(label, str(label)) for label in range(min(max(known), 1 << 24) + 1)]
    return found | {"metadata": {key.decode(): value.decode() for key, value in about.items()}}


_READERS = {".npz": _read_npz, ".npy": _read_npy, ".safetensors": _read_tensors, ".parquet": _read_parquet}
