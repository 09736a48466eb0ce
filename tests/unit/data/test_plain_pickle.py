"""What a pickle may do here, and what it may not: build anything else, run anything, or cost more than its size."""

import os
import pickle
import pickletools
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaclass.data import plain_pickle
from megaclass.data.plain_pickle import Array, RefusedError, load
from megaclass.data.verification_bin import VerificationBin
from megaclass.errors import UserError


def plain(value):
    """The same with lists for arrays, to compare."""
    if isinstance(value, Array):
        return value.values_N.tolist()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value


KINDS = st.sampled_from(["b1", "u1", "i1", "<i2", ">i4", "<i8", ">u2", "<u8"])
leaves = (
    st.binary(min_size=1, max_size=400)
    | st.text(max_size=20)
    | st.integers(-(2**63), 2**63 - 1)
    | st.booleans()
    | st.none()
    | st.builds(lambda count, kind: np.arange(count).astype(kind), st.integers(1, 99), KINDS)
    | st.builds(lambda value, kind: np.array(value, kind)[()], st.integers(0, 99), KINDS)
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=5) | st.tuples(inner, inner), max_leaves=20)


@settings(max_examples=200, deadline=None)
@given(values, st.integers(0, pickle.HIGHEST_PROTOCOL), st.booleans())
def test_what_python_3_writes_is_read_as_pickle_reads_it(value, protocol, optimised):
    written = pickle.dumps(value, protocol)
    if optimised:  # leaves out what the memo keeps for nobody
        written = pickletools.optimize(written)
    assert plain(load(written)) == plain(pickle.loads(written))


# Hostile ones. Their effect, if any, would be a file called "ran".


class Calls:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def array_pickle(shape, data, times=1):
    sizes = b"".join(b"K" + bytes([size]) for size in shape)
    state = (
        b"(K\x01" + sizes + {1: b"\x85", 2: b"\x86"}[len(shape)]
        + b"cnumpy\ndtype\n\x8c\x02u1\x85R\x89C" + bytes([len(data)]) + data
    )  # fmt: skip
    return b"cnumpy.core.multiarray\n_reconstruct\n)))\x87R" + (state + b"tb") * times + b"."


def numpy_array(shape, data, memo=b""):
    """As protocol 5 writes it in band."""
    sizes = b"".join(b"J" + struct.pack("<i", size) for size in shape)
    return (
        b"cnumpy._core.numeric\n_frombuffer\n(\x96" + struct.pack("<Q", len(data)) + data + memo
        + b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1\x89\x88tR(" + sizes + b"tX\x01\x00\x00\x00CtR"
    )  # fmt: skip


HOSTILE = {
    "os.system": pickle.dumps(Calls(os.system, "touch ran")),
    "eval": pickle.dumps(Calls(eval, "open('ran', 'w')"), 2),
    "getattr": b"cbuiltins\ngetattr\n(cos\npath\nX\x06\x00\x00\x00systemtR.",
    "nested": b"c_codecs\nencode\n(c_codecs\nencode\n(cos\nsystem\nttt.",
    "dotted": b"\x8c\x05numpy\x8c\x16core.multiarray.scalar\x93.",
    "a class": b"c__main__\nThing\n)b.",
    "a very long name": b"cos\n" + b"x" * 10_000 + b"\n.",
    "a name of bytes": b"U\x02osU\x06system\x93.",
    "mxnet": b"cmxnet.ndarray\nNDArray\n.",
    "instance": b"(ios\nsystem\n.",
    "dictionary for a state": b"cnumpy\ndtype\n}b.",
    "extension": b"\x82\x01.",
    "persistent": b"Pfile:///x\n.",
    "out of band": b"\x97.",
    "no operation": b"\xff",
    "state of a function": b"c_codecs\nencode\n(K\x01tb.",
    "state of a dtype": b"cnumpy\ndtype\nU\x02u1\x85RNb.",
    "state of an array": b"cnumpy.core.multiarray\n_reconstruct\n)))\x87R)b.",
    "call of an array": b"cnumpy\nndarray\n)R.",
    "too few arguments": b"c_codecs\nencode\n)R.",
    "another codec": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00zlitR.",
    "no Latin-1": b"c_codecs\nencode\n(X\x03\x00\x00\x00\xe2\x82\xacX\x06\x00\x00\x00latin1tR.",
    "bytes of a number": b"cbuiltins\nbytes\n(M\xff\xfftR.",
    "objects in an array": b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8tR.",
    "floats in an array": b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4tR.",
    "a larger shape": array_pickle((200, 200), b"abc"),
    "filled twice": array_pickle((3,), b"abc", 2),
    "bytes of an array that grow": numpy_array((3,), b"abc", memo=b"q\x07") + b"h\x07K\x01a\x86.",
    "a number of 256 bytes": b"\x8b\x00\x01\x00\x00" + b"\x01" * 256 + b".",
    "text that is no UTF-8": b"X\x02\x00\x00\x00\xff\xfe.",
    "quotes left open": b"S'abc\n.",
    "a length below 0": b"T\xff\xff\xff\xff.",
    "a huge length": b"\x8e" + struct.pack("<Q", 2**63 - 1),
    "a huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b".",
    "a huge memo index": b"Nr" + struct.pack("<I", 2**32 - 1) + b".",
    "no end": b"]",
    "empty": b"",
    "nothing to give": b".",
    "no mark": b"K\x01t.",
    "no list": b"K\x01K\x02a.",
    "nothing remembered": b"h\x07.",
    "nothing to remember": b"q\x07.",
    "a memo of letters": b"Npx\n.",
}  # fmt: skip


NAMED = {
    "os.system": r"asks for \w+\.system; nothing of it was run",
    "mxnet": "mxnet arrays, which only mxnet",
    "floats in an array": "an array of f4; images are uint8",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_damaged_pickle_is_refused_in_a_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusedError, match=NAMED.get(name, "damaged, or no verification set")) as refused:
        load(HOSTILE[name])
    assert str(refused.value).isprintable() and len(str(refused.value)) < 300
    assert not list(tmp_path.iterdir())


def answers(count):
    return numpy_array((count,), bytes(count))


LARGE = 1 << 18
TWICE = (
    b"c_codecs\nencode\nq\x00X" + struct.pack("<I", LARGE) + b"x" * LARGE + b"X\x06\x00\x00\x00latin1\x86q\x01"
)  # fmt: skip
BOMBS = {
    "lists": b"]" * LARGE + b".",
    "marks": b"(" * LARGE + b".",
    "nested tuples": b")" + b"\x85" * LARGE + b".",
    "large memo indices": b"".join(b"Nr" + struct.pack("<I", 2**32 - 1 - i) for i in range(LARGE // 6)) + b".",
    "empty bytes": b"B\x00\x00\x00\x00" * (LARGE // 5) + b".",
    "doubled": b"]" + b"2" * LARGE + b".",
    "bytes made again and again": TWICE + b"h\x00h\x01R" * 1000 + b".",
    "four bytes a letter": b"X" + struct.pack("<I", LARGE + 4) + b"x" * LARGE + "\U0001f600".encode() + b".",
    "quoted": b"S'" + b"\\x00" * (LARGE // 4) + b"'\n.",
    "a list of itself, over and over": b"]q\x00" + b"".join(b"(h%ch%ctq%c" % (i, i, i + 1) for i in range(200)) + b".",
    "a call with many arguments": b"(" + b"N" * 100_000 + b"tq\x00c_codecs\nencode\nq\x01" + b"h\x01h\x00R" * 50_000,
}  # fmt: skip
IMAGE = b"B" + struct.pack("<I", 4 * LARGE) + bytes(4 * LARGE)
FIRST_ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\nq\x00)))\x87R(K\x01J" + struct.pack("<i", 4 * LARGE)
    + b"\x85cnumpy\ndtype\n\x8c\x02u1\x85R\x89" + IMAGE + b"tq\x01b"
)  # fmt: skip
FEW = LARGE // 64
# What costs here is what is made of a sound pickle.
SETS = {
    "one image in many places": b"((" + IMAGE + b"q\x00" + b"h\x00" * 39_999 + b"l(" + b"\x88" * 20_000 + b"lt.",
    "one array's bytes in many arrays":
        b"((" + FIRST_ARRAY + b"h\x00)))\x87Rh\x01b" * 4_999 + b"l" + answers(2_500) + b"t.",
    "the smallest images in a list":
        b"(" + b"".join(b"C " + os.urandom(32) for _ in range(FEW)) + b"l" + answers(FEW // 2) + b"\x86.",
}  # fmt: skip
NO_SETS = {
    "images of a byte": numpy_array((LARGE, 1, 1, 1), bytes(LARGE)) + answers(LARGE // 2) + b"\x86.",
    "answers alone": b"]" + answers(LARGE) + b"\x86.",
}


@pytest.mark.parametrize("limits", [True, False])
@pytest.mark.parametrize("name", BOMBS | SETS | NO_SETS)
def test_time_and_memory_are_bounded_by_the_size(name, limits, tmp_path, monkeypatch):
    if limits:  # what every file may cost, however small, would hide what a byte more costs
        monkeypatch.setattr(plain_pickle, "_MIN_OPERATIONS", 0)
        monkeypatch.setattr(plain_pickle, "_MIN_COPIED", 0)
    content = (BOMBS | SETS | NO_SETS)[name]
    path = tmp_path / "set.bin"
    path.write_bytes(content)
    began = time.process_time()
    tracemalloc.start()
    try:
        VerificationBin(path)
    except UserError as error:
        assert str(error).isprintable() and len(str(error)) < 400 and name not in SETS
    else:
        assert name in SETS
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * len(content) + (200_000 if limits else 120 << 20)
    assert time.process_time() - began < 5


# Fuzzing: from sound pickles, and from nothing.

SEEDS = [
    pickle.dumps(content, protocol)
    for content in (([b"a" * 300, b"b"] * 2, [True, False]), ([np.arange(9, dtype=np.uint8)] * 2, [np.bool_(True)]))
    for protocol in range(6)
]  # fmt: skip
pieces = st.binary(max_size=9) | st.sampled_from(
    [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    + [
        b"c_codecs\nencode\n",
        b"cnumpy\ndtype\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"cbuiltins\nbytes\n",
    ]
    + [b"\x8c\x06latin1", b"\x8c\x02u1", b"\x8c\x03abc", b"K\x01", b"]", b"(", b"q\x01", b"h\x01"]
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
def test_a_changed_pickle_gives_plain_values_or_is_refused(seed, data):
    content = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        at, cut = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 6))
        content[at : at + cut] = data.draw(pieces)
    try:
        waiting, seen = [load(bytes(content))], set()
    except RefusedError as refused:
        assert str(refused).isprintable()
        return
    while waiting:
        value = waiting.pop()
        plain_type = type(value) in (bytes, bytearray, str, int, bool, type(None), list, tuple)
        assert plain_type or plain_pickle.__name__ in (type(value).__module__, value.__module__)
        if type(value) in (list, tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value


def test_a_pickle_cut_anywhere_is_refused():
    for seed in SEEDS:
        for stop in range(len(seed)):
            with pytest.raises(RefusedError):
                load(seed[:stop])
