"""The bytes of MXNet's RecordIO: parts, records and payloads.

A file is a run of parts: magic, a word with a flag (upper 3 bits) and a length (lower 29), the bytes, and
padding to 4. A record is one part (flag 0). Where its payload holds the magic at a multiple of 4, the magic
is cut out there and the pieces become the parts 1, 2, .., 2, 3: so an aligned magic always starts a part.

A payload is a header (flag, label, id, id2), ``flag`` float32 labels if flag > 0, and the image.

Shapes: N = records, W = 4-byte words.
"""

import itertools
import re
import struct
from collections.abc import Callable, Sequence

import numpy as np

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
_FIND_MAGIC = re.compile(re.escape(MAGIC_BYTES)).finditer
PART = struct.Struct("<II")  # magic, flag << 29 | length
HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
_PLAIN = struct.Struct("<IIIf16x")  # a part's head and the header of its payload
MAX_LENGTH = (1 << 29) - 1  # bytes of a part
_PIECE_BYTES = 1 << 24


class DamageError(Exception):
    """What is wrong with one record; the caller knows which record it is."""


def plain_record(record: bytes) -> tuple[float, bytes] | None:
    """Label and image of a record as nearly all are: one part, one label. None for any other, or a damaged one."""
    if len(record) < _PLAIN.size:
        return None
    magic, length, flag, label = _PLAIN.unpack_from(record)  # a part's flag of 0 leaves the length alone
    if magic != MAGIC or flag != 0 or not HEADER.size < length <= len(record) - PART.size:
        return None
    return label, record[PART.size + HEADER.size : PART.size + length]


def read_payload(read: Callable[[int, int], bytes], size: int, offset: int) -> memoryview:
    """The payload of the record at byte ``offset`` of a file of ``size`` bytes, its parts joined.

    ``read(offset, count)`` gives so many bytes, or fewer where the file ends. Raises DamageError. Takes no more memory
    than twice what the parts take in the file.
    """
    joined = bytearray()
    for number in itertools.count():
        head = read(offset, PART.size) if offset >= 0 and offset % 4 == 0 else b""
        if len(head) < PART.size:
            raise DamageError(f"byte {offset} cannot start a record in a file of {size} bytes")
        magic, word = PART.unpack(head)
        flag, length = word >> 29, word & MAX_LENGTH
        start = offset + PART.size
        if magic != MAGIC:
            raise DamageError(f"the magic number is {magic:#010x}, not {MAGIC:#010x}")
        part = read(start, length) if start + length <= size else b""
        if len(part) < length:
            raise DamageError(f"{length} bytes from byte {start} on do not fit a file of {size} bytes")
        if flag not in ((2, 3) if number else (0, 1)):
            raise DamageError(f"part {number} has the flag {flag}")
        if flag == 0:
            return memoryview(part)
        if number:
            joined += MAGIC_BYTES
        joined += part
        if flag == 3:
            break
        offset = start + length
    return memoryview(joined)


def frame(payload: bytes) -> bytes:
    """The bytes of a record: ``payload`` cut at each aligned magic, each part with its head, padded."""
    cuts = [found.start() for found in _FIND_MAGIC(payload) if found.start() % 4 == 0]
    framed = []
    start = 0
    for number, stop in enumerate([*cuts, len(payload)]):
        flag = 0 if not cuts else 1 if number == 0 else 3 if number == len(cuts) else 2
        framed += [PART.pack(MAGIC, flag << 29 | (stop - start)), payload[start:stop]]
        start = stop + len(MAGIC_BYTES)
    return b"".join([*framed, bytes(-len(payload) % 4)])


def pack_payload(key: int, labels: Sequence[float], image: bytes) -> bytes:
    """Header, labels (a single one goes into the header) and image."""
    if len(labels) == 1:
        return HEADER.pack(0, labels[0], key, 0) + image
    return HEADER.pack(len(labels), 0.0, key, 0) + struct.pack(f"<{len(labels)}f", *labels) + image


def unpack_payload(payload: memoryview) -> tuple[tuple[float, ...], memoryview]:
    """The labels (the first two at most) and the image of a payload. Raises DamageError."""
    if len(payload) < HEADER.size:
        raise DamageError(f"its {len(payload)} bytes are fewer than the {HEADER.size} of a header")
    flag, label, _id, _id2 = HEADER.unpack_from(payload)
    if flag == 0:
        return (label,), payload[HEADER.size :]
    image_at = HEADER.size + 4 * flag
    if image_at > len(payload):
        raise DamageError(f"{flag} labels do not fit its {len(payload)} bytes")
    return struct.unpack_from(f"<{min(flag, 2)}f", payload, HEADER.size), payload[image_at:]


def peek(words_W: np.ndarray, offsets_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image bytes (-1: damaged, or more than one part) and the first two labels of many records at once.

    ``words_W`` is the file as little-endian uint32. Returns int64, float32, float32 of shape (N,).
    """
    word = _words_after(words_W, offsets_N)
    # Flag 0 leaves the length as the whole word; any other makes it too long.
    length_N, flag_N = word(1).astype(np.int64), word(2).astype(np.int64)
    sound_N = (offsets_N >= 0) & (offsets_N % 4 == 0) & (word(0) == MAGIC) & (length_N <= MAX_LENGTH)
    sound_N &= offsets_N + PART.size <= 4 * len(words_W) - length_N
    image_bytes_N = np.where(sound_N, np.maximum(length_N - HEADER.size - 4 * flag_N, -1), -1)
    first_N = np.where(flag_N > 0, word(8), word(3)).view(np.float32)
    return image_bytes_N, first_N, word(9).view(np.float32)


def ids_in_some_order(words_W: np.ndarray, offsets_N: np.ndarray) -> np.ndarray | None:
    """The ids of sound records, int64 of shape (N,), if they are 0..N-1, each once; None if they are not."""
    count, word = len(offsets_N), _words_after(words_W, offsets_N)
    ids_N = word(4)
    if (ids_N >= count).any() or word(5).any() or ((word(1) & MAX_LENGTH) < HEADER.size).any():
        return None
    seen_N = np.zeros(count, bool)
    seen_N[ids_N] = True
    return ids_N.astype(np.int64) if seen_N.all() else None


def _words_after(words_W: np.ndarray, offsets_N: np.ndarray) -> Callable[[int], np.ndarray]:
    """Gives a word of each record by its number, or the last of the file where it ends before."""
    at_N = offsets_N // 4
    return lambda number: words_W[np.clip(at_N + number, 0, len(words_W) - 1)]


def find_records(words_W: np.ndarray) -> np.ndarray:
    """Byte offsets of all records, int64 of shape (N,), by a search for the magic through the whole file."""
    found = [np.empty(0, np.int64)]
    for start in range(0, len(words_W), _PIECE_BYTES // 4):
        found.append(np.flatnonzero(words_W[start : start + _PIECE_BYTES // 4] == MAGIC) + start)
    offsets_N = np.concatenate(found) * 4
    flag_N = _words_after(words_W, offsets_N)(1) >> 29
    return offsets_N[flag_N < 2]
