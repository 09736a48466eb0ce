"""Files of embeddings: one writer and one reader, of ``.npz``, ``.parquet`` and ``.safetensors``.

| what | shape | ``.npz`` | ``.safetensors`` | ``.parquet`` (a row an image) |
|---|---|---|---|---|
| embeddings | fp32 (N, D), of length 1 | ``embeddings`` | ``embeddings`` | ``embedding`` |
| names | N texts | ``names`` | ``names``, uint8, a NUL between two | ``name`` |
| labels, if known | int64 (N,) | ``labels`` | ``labels`` | ``label`` |
| their names | C texts | ``classes`` | ``classes``, as names | ``class`` |
| metadata | text -> text | ``metadata``, JSON | ``__metadata__`` | metadata of the schema |

Shapes: N = images, B = images of a block, D = embedding columns, C = classes.
"""

import importlib
import json
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from megaclass import __version__
from megaclass.checkpoint import tensorfile
from megaclass.errors import UserError, first_line
from megaclass.files import regular_size

FORMATS = (".npz", ".parquet", ".safetensors")
_BLOCK_ROWS = 1 << 14
_INFLATED = 1100  # deflate makes no file smaller than that


class Block(NamedTuple):
    """Some images: their names, embeddings fp32 (B, D), and labels, int64 (B,), where the source has them."""

    names: Sequence[str]
    rows_BD: np.ndarray
    labels: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What a file holds. ``embeddings``: fp32 (N, D), each of length 1; ``labels``: int64 (N,), ``classes``: names in
    label order, both None where the file has none."""

    embeddings: np.ndarray
    names: list[str]
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def extra(name: str) -> Any:
    """A package of the extra ``gallery``. UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = {"faiss": "faiss-cpu"}.get(name, name.partition(".")[0])
        raise UserError(f"{package} is not installed; pip install 'megaclass[gallery]'") from None


# -- writing ---------------------------------------------------------------------------------------------


def write_embeddings(
    path: Path,
    suffix: str,
    blocks: Iterable[Block],
    metadata: Mapping[str, str],
    classes: Sequence[str] | None = None,
) -> int:
    """Write a new file in the format of ``suffix``, and return how many images it holds. Memory: names and a block.

    OSError for what the system refuses; UserError where there is not one image.
    """
    names: list[str] = []
    labels: list[np.ndarray] = []
    if suffix == ".parquet":
        extra("pyarrow.parquet")
    with tempfile.TemporaryFile(dir=path.parent) as spool:  # formats want to know N first
        for block in blocks:
            np.ascontiguousarray(block.rows_BD, np.float32).tofile(spool)
            names += block.names
            labels += [] if block.labels is None else [block.labels]
            columns = block.rows_BD.shape[1]
        if not names:
            raise UserError(
                "no image could be embedded, nothing is written; see what is wrong with them above"
            )
        spool.flush()
        rows_ND = np.memmap(spool, np.float32, "r+", shape=(len(names), columns))
        about = {"megaclass": __version__, **metadata}
        stored = Embeddings(
            rows_ND,
            names,
            np.concatenate(labels) if labels else None,
            list(classes) if classes else None,
            about,
        )
        _WRITERS[suffix](path, stored)
    return len(names)


def _write_npz(path: Path, stored: Embeddings) -> None:
    optional = {"labels": stored.labels, "classes": stored.classes}
    arrays: dict[str, Any] = {name: np.array(value) for name, value in optional.items() if value is not None}
    with path.open("xb") as file:
        np.savez(
            file,
            embeddings=stored.embeddings,
            names=np.array(stored.names),
            metadata=np.array(json.dumps(stored.metadata)),
            **arrays,
        )


def _write_safetensors(path: Path, stored: Embeddings) -> None:
    tensors = {"embeddings": torch.from_numpy(stored.embeddings), "names": _joined(stored.names)}
    if stored.labels is not None:
        tensors["labels"] = torch.from_numpy(stored.labels)
    if stored.classes is not None:
        tensors["classes"] = _joined(stored.classes)
    tensorfile.write_tensors(path, tensors, stored.metadata)


def _joined(texts: Sequence[str]) -> torch.Tensor:
    return torch.frombuffer(
        bytearray("\0".join(texts).encode(errors="surrogateescape") + b"\0"), dtype=torch.uint8
    )


def _write_parquet(path: Path, stored: Embeddings) -> None:
    pa, parquet = extra("pyarrow"), extra("pyarrow.parquet")
    count, columns = stored.embeddings.shape
    fields = {"name": pa.string(), "embedding": pa.list_(pa.float32(), columns)}
    fields |= {"label": pa.int64()} if stored.labels is not None else {}
    fields |= {"class": pa.string()} if stored.classes and stored.labels is not None else {}
    schema = pa.schema(list(fields.items()), stored.metadata)
    with path.open("xb") as file, parquet.ParquetWriter(file, schema, use_dictionary=["class"]) as writer:
        for start in range(0, count, _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            rows_BD = np.ascontiguousarray(stored.embeddings[part])
            held: list[Any] = [
                [_utf8(name) for name in stored.names[part]],
                pa.FixedSizeListArray.from_arrays(pa.array(rows_BD.ravel()), columns),
            ]
            if stored.labels is not None:
                held.append(stored.labels[part])
                if stored.classes:
                    held.append([_utf8(stored.classes[label]) for label in stored.labels[part].tolist()])
            writer.write_batch(pa.record_batch(held, schema=schema))


def _utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


_WRITERS = {".npz": _write_npz, ".safetensors": _write_safetensors, ".parquet": _write_parquet}


# -- reading ---------------------------------------------------------------------------------------------


def read_embeddings(path: str | Path) -> Embeddings:
    """A file of embeddings, or a plain matrix ``.npy`` (N, D), whose images are then called by their row numbers.

    Rows come out fp32 and of length 1; those of ``.safetensors`` and ``.npy`` stay in the file until they are used.
    Nothing in a file is run, and no more is allocated than it holds. UserError, which names the file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise UserError(f"{path}: not a file of embeddings, which end with {', '.join(_READERS)}; name one")
    try:
        regular_size(path)
        return _checked(_READERS[suffix](path))
    except OSError as error:
        why = error.strerror or first_line(error)
    except Exception as error:  # zipfile, NumPy, safetensors and pyarrow raise some fifteen types
        if isinstance(error, UserError) and "not installed" in str(error):
            raise
        # NumPy's advice on pickles is to switch its protection off.
        why = "it holds objects" if "pickle" in str(error).lower() else first_line(error)
    raise UserError(f"{path} cannot be read as embeddings: {why}; `megaclass embed` writes such files")


def _checked(found: Embeddings) -> Embeddings:
    rows_ND, count = found.embeddings, len(found.embeddings)
    if rows_ND.ndim != 2 or rows_ND.dtype.kind != "f" or 0 in rows_ND.shape:
        raise ValueError(f"embeddings are {rows_ND.dtype} {rows_ND.shape}, not floats (N, D)")
    labels = found.labels
    if len(found.names) != count or (
        labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iu")
    ):
        raise ValueError(f"names or labels are not those of {count:,} embeddings")
    if labels is not None:
        labels = labels.astype(np.int64, copy=False)
        if labels.min() < 0 or (found.classes is not None and labels.max() >= len(found.classes)):
            raise ValueError(f"labels go from {labels.min()} to {labels.max()}, beyond the classes")
    rows_ND = stored_ND = rows_ND.astype(np.float32, copy=False)
    for start in range(0, count, _BLOCK_ROWS):
        rows_BD = rows_ND[start : start + _BLOCK_ROWS]
        lengths_B = np.linalg.norm(rows_BD, axis=1)
        if not (sound_B := np.isfinite(lengths_B) & (lengths_B > 0)).all():
            raise ValueError(f"row {start + int(sound_B.argmin())} is zero or not finite")
        if np.abs(lengths_B - 1).max() > 1e-4:
            rows_ND = np.array(rows_ND) if rows_ND is stored_ND else rows_ND  # that may be the file itself
            rows_ND[start : start + _BLOCK_ROWS] = rows_BD / lengths_B[:, None]
    return Embeddings(rows_ND, found.names, labels, found.classes, found.metadata)


def _read_npy(path: Path) -> Embeddings:
    rows_ND = np.load(path, mmap_mode="r", allow_pickle=False)
    return Embeddings(rows_ND, [str(row) for row in range(len(rows_ND))])


def _read_npz(path: Path) -> Embeddings:
    found: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive:
        most = _INFLATED * path.stat().st_size
        for name in ("embeddings", "names", "labels", "classes", "metadata"):
            if (member := f"{name}.npy") in archive.namelist():
                size = archive.getinfo(member).file_size
                with archive.open(member) as file:
                    found[name] = _array(file, min(size, most))
    if "embeddings" not in found:
        raise ValueError("there is no array 'embeddings'")
    names, classes = (found[name].tolist() if name in found else None for name in ("names", "classes"))
    if names is None:
        names = [str(row) for row in range(len(found["embeddings"]))]
    metadata = json.loads(str(found["metadata"])) if "metadata" in found else {}
    return Embeddings(found["embeddings"], names, found.get("labels"), classes, metadata)


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """An array of a member of ``size`` bytes, which its header must agree with before anything is allocated."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, by_columns, dtype = readers[np.lib.format.read_magic(file)](file)
    if dtype.hasobject:
        raise ValueError("it holds objects")
    count = 1
    for length in shape:
        count *= length
    if count * dtype.itemsize != size - file.tell():
        raise ValueError("an array has another size than its header says")
    flat = np.frombuffer(file.read(), dtype)
    return flat.reshape(shape, order="F" if by_columns else "C")


def _read_safetensors(path: Path) -> Embeddings:
    tensors, metadata = tensorfile.map_tensors(path)
    names, classes = (_parted(tensors[name]) if name in tensors else None for name in ("names", "classes"))
    rows_ND = tensors["embeddings"].numpy()
    labels = tensors["labels"].numpy() if "labels" in tensors else None
    return Embeddings(rows_ND, names or [str(row) for row in range(len(rows_ND))], labels, classes, metadata)


def _parted(texts: torch.Tensor) -> list[str]:
    return texts.numpy().tobytes().decode(errors="surrogateescape").split("\0")[:-1]


def _read_parquet(path: Path) -> Embeddings:
    table = extra("pyarrow.parquet").read_table(path)
    embedding, count = table["embedding"].combine_chunks(), len(table)
    values = embedding.flatten()
    columns = len(values) // max(count, 1)
    lengths = extra("pyarrow.compute").list_value_length(embedding)
    if (
        values.null_count
        or lengths.null_count
        or not (lengths.to_numpy(zero_copy_only=False) == columns).all()
    ):
        raise ValueError(f"not every row has an embedding of {columns} numbers")
    rows_ND = values.to_numpy(zero_copy_only=False).reshape(count, columns)
    names = table["name"].to_pylist() if "name" in table.column_names else [str(row) for row in range(count)]
    labels = table["label"].to_numpy() if "label" in table.column_names else None
    classes = None
    if labels is not None and "class" in table.column_names:
        known = dict(zip(labels.tolist(), table["class"].to_pylist(), strict=True))
        if min(known) >= 0 and max(known) < len(known) + count:
            classes = [known.get(label, str(label)) for label in range(max(known) + 1)]
    about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return Embeddings(rows_ND, names, labels, classes, about)


_READERS = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}
