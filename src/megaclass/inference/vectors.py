"""Files of embeddings: one writer and one reader, of ``.npz``, ``.parquet`` and ``.safetensors``.

``embeddings``, fp32 (N, D), of length 1; ``names``, of the images; where these are labelled ``labels``, int64 (N,), and
``classes``, names in label order; ``metadata``, from text to text. In safetensors texts are uint8, a NUL behind each;
parquet has a row an image, and classes and metadata as metadata.

Shapes: N = images, B = images of a block, D = embedding columns.
"""

import json
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megaclass import __version__
from megaclass.checkpoint import tensorfile
from megaclass.errors import UserError, extra, first_line
from megaclass.files import regular_size

WRITTEN = (".npz", ".parquet", ".safetensors")
READ = (*WRITTEN, ".npy")
_HELD = ("embeddings", "labels", "names", "classes")
_BLOCK_ROWS = 1 << 14
_INFLATED = 64  # of an archive: text shrinks so far, embeddings hardly do


@dataclass(frozen=True, eq=False)
class Embeddings:
    """``embeddings``: fp32 (N, D), each of length 1; ``labels``: int64 (N,), ``classes``: names in label order, both
    None where they are not known."""

    embeddings: np.ndarray
    names: list[str]
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def write_embeddings(
    path: Path,
    suffix: str,
    blocks: Iterable[Embeddings],
    classes: list[str] | None,
    metadata: Mapping[str, str],
) -> None:
    """Write a new file in the format of ``suffix``. Memory: names and a block.

    OSError for what the system refuses; UserError where there is not one image.
    """
    names: list[str] = []
    labels: list[np.ndarray] = []
    with tempfile.TemporaryFile(dir=path.parent) as spool:  # formats want to know N first
        for block in blocks:
            np.ascontiguousarray(block.embeddings, np.float32).tofile(spool)
            names += block.names
            labels += [] if block.labels is None else [block.labels]
        if not names:
            raise UserError("no image could be embedded: nothing is written")
        spool.flush()
        rows_ND = np.memmap(spool, np.float32, "r+").reshape(len(names), -1)
        texts = {"names": names} | ({"classes": classes} if classes and labels else {})
        arrays = {"embeddings": rows_ND} | ({"labels": np.concatenate(labels)} if labels else {})
        _write(path, suffix, arrays, texts, {"megaclass": __version__, **metadata})


def _write(
    path: Path, suffix: str, arrays: dict[str, Any], texts: dict[str, list[str]], metadata: dict[str, str]
) -> None:
    if suffix == ".npz":
        with path.open("xb") as file:
            arrays |= {name: np.array(text) for name, text in texts.items()}
            np.savez(file, metadata=np.array(json.dumps(metadata)), **arrays)
    elif suffix == ".safetensors":
        for name, text in texts.items():
            joined = "".join(f"{one}\0" for one in text).encode(errors="surrogateescape")
            arrays[name] = np.frombuffer(bytearray(joined), np.uint8)
        tensorfile.write_tensors(path, {name: torch.from_numpy(value) for name, value in arrays.items()}, metadata)
    else:
        pa, parquet = extra("pyarrow", "gallery"), extra("pyarrow.parquet", "gallery")
        rows_ND = arrays.pop("embeddings")
        columns = {"names": pa.array([name.encode(errors="backslashreplace") for name in texts["names"]], pa.string())}
        columns["embeddings"] = pa.FixedSizeListArray.from_arrays(pa.array(rows_ND.ravel()), rows_ND.shape[1])
        metadata |= {"classes": json.dumps(texts["classes"])} if "classes" in texts else {}
        table = pa.table(columns | arrays).replace_schema_metadata(metadata)
        with path.open("xb") as file:
            parquet.write_table(table, file, row_group_size=_BLOCK_ROWS, use_dictionary=False)


def read_embeddings(path: str | Path) -> Embeddings:
    """A file of embeddings, or a plain matrix ``.npy`` (N, D), whose images are then called by their row numbers.

    Rows come out fp32 and of length 1; those of ``.safetensors`` and ``.npy`` stay in the file until they are used.
    Nothing in a file is run, and no more is allocated than it holds. UserError, which names the file.
    """
    path = Path(path)
    if path.suffix.lower() not in READ:
        raise UserError(f"{path}: not a file of embeddings, which end with {', '.join(READ)}; name one")
    try:
        regular_size(path)
        return _checked(**_read(path, path.suffix.lower()))
    except OSError as error:
        why = error.strerror or first_line(error)
    except Exception as error:  # zipfile, NumPy, safetensors and pyarrow raise some fifteen types
        # NumPy's advice on pickles is to switch its protection off.
        why = "it holds objects" if "pickle" in str(error).lower() else first_line(error)
    raise UserError(f"{path} cannot be read as embeddings: {why}; `megaclass embed` writes such files")


def _read(path: Path, suffix: str) -> dict[str, Any]:
    if suffix == ".npy":
        return {"embeddings": np.load(path, mmap_mode="r", allow_pickle=False)}
    found: dict[str, Any] = {}
    if suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _INFLATED * path.stat().st_size:
                raise ValueError("it would be far larger unpacked than embeddings are")
        with np.load(path, allow_pickle=False) as held:
            found = {name: held[name] for name in _HELD if name in held}
            found |= {name: found[name].tolist() for name in found.keys() & {"names", "classes"}}
            return found | {"metadata": json.loads(str(held["metadata"])) if "metadata" in held else {}}
    if suffix == ".safetensors":
        tensors, metadata = tensorfile.map_tensors(path)
        found = {name: tensors[name].numpy() for name in _HELD if name in tensors}
        for name in found.keys() & {"names", "classes"}:
            found[name] = found[name].tobytes().decode(errors="surrogateescape").split("\0")[:-1]
        return found | {"metadata": metadata}
    table = extra("pyarrow.parquet", "gallery").read_table(path)
    rows = table["embeddings"].combine_chunks()
    lengths = extra("pyarrow.compute", "gallery").list_value_length(rows).to_numpy(zero_copy_only=False)
    if rows.flatten().null_count or len(set(lengths.tolist())) != 1:
        raise ValueError("not every row has an embedding of as many numbers")
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    found = {"classes": json.loads(metadata.pop("classes"))} if "classes" in metadata else {}
    found |= {"names": table["names"].to_pylist()} if "names" in table.column_names else {}
    found |= {"labels": table["labels"].to_numpy()} if "labels" in table.column_names else {}
    return found | {
        "embeddings": rows.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1),
        "metadata": metadata,
    }


def _checked(
    embeddings: np.ndarray | None = None,
    names: list[str] | None = None,
    labels: np.ndarray | None = None,
    classes: list[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Embeddings:
    if embeddings is None or embeddings.ndim != 2 or embeddings.dtype.kind != "f" or 0 in embeddings.shape:
        raise ValueError("there are no embeddings: floats (N, D)")
    count = len(embeddings)
    names = [str(row) for row in range(count)] if names is None else names
    for texts in (names, classes or []):
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError("names and classes are no texts")
    if len(names) != count or (labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iu")):
        raise ValueError(f"names or labels are not those of {count:,} embeddings")
    if labels is not None:
        labels = labels.astype(np.int64, copy=False)
        if labels.min() < 0 or (classes is not None and labels.max() >= len(classes)):
            raise ValueError(f"labels go from {labels.min()} to {labels.max()}, beyond the classes")
    rows_ND = embeddings.astype(np.float32, copy=False)
    lengths_N = np.sqrt(np.einsum("nd,nd->n", rows_ND, rows_ND))  # without a copy of what is in the file
    if not (sound_N := np.isfinite(lengths_N) & (lengths_N > 0)).all():
        raise ValueError(f"row {int(sound_N.argmin())} is zero or not finite")
    if np.abs(lengths_N - 1).max() > 1e-4:
        rows_ND = rows_ND / lengths_N[:, None]
    return Embeddings(rows_ND, names, labels, classes, metadata or {})
