"""What a pickle may do here, and what it may not: build anything else, run anything, or cost more than its size."""

import io
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

from megaclass.data.verification_bin import unpickle as unpickling
from megaclass.data.verification_bin.allowed_types import Array, DType, RefusedError, Span, StandIn, find
from megaclass.data.verification_bin.dataset import VerificationBin
from megaclass.errors import UserError

PLAIN = (bytes, Span, str, int, bool, type(None), list, tuple, Array, DType, StandIn)


def unpickle(content):
    return unpickling.unpickle(io.BytesIO(content))


def plain(value, content=b""):
    """The same with bytes for spans of ``content`` and lists for arrays, to compare."""
    if isinstance(value, Span):
        return content[value.offset : value.offset + value.count]
    if isinstance(value, Array):
        found = value.numpy(plain(value.data, content))
        return (found.astype(bool) if value.dtype.name == "b1" else found).tolist()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return type(value)(plain(item, content) for item in value)
    return value


arrays = st.builds(
    lambda shape, fortran, kind: np.asarray(
        np.arange(np.prod(shape)).reshape(shape) % 127, kind, order="F" if fortran else "C"
    ),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from(["u1", "b1", "i1", "<i2", ">i4", "<i8", ">u2", "<u8"]),
)
numbers = st.builds(
    lambda kind, value: np.dtype(kind).type(value),
    st.sampled_from(["?", "u1", "i2", "i8"]),
    st.integers(0, 99),
)
leaves = (
    st.binary(max_size=400)
    | st.text(max_size=20)
    | st.integers(-(2**63), 2**63 - 1)
    | st.booleans()
    | st.none()
    | arrays
    | numbers
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=5) | st.tuples(inner, inner), max_leaves=20
)
protocols = st.integers(0, pickle.HIGHEST_PROTOCOL)


@settings(max_examples=300, deadline=None)
@given(values, protocols, st.booleans())
def test_what_python_3_writes_is_read_as_pickle_reads_it(value, protocol, optimised):
    written = pickle.dumps(value, protocol)
    if optimised:  # leaves out what the memo keeps for nobody
        written = pickletools.optimize(written)
    assert plain(unpickle(written), written) == plain(pickle.loads(written))


def test_an_object_written_twice_is_one():
    shared = os.urandom(1000)
    for protocol in (3, 4, 5):
        one, other = unpickle(pickle.dumps([shared, shared], protocol))
        assert one is other


def test_images_stay_in_the_file(tmp_path):
    written = pickle.dumps([os.urandom(1 << 20)], 4)
    (tmp_path / "x").write_bytes(written)
    with (tmp_path / "x").open("rb") as file:
        tracemalloc.start()
        (found,) = unpickling.unpickle(file)
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()
    assert isinstance(found, Span) and [plain(found, written)] == pickle.loads(written)


def test_a_file_cut_while_it_is_read_is_refused(tmp_path):
    class Cut(io.BytesIO):
        def read(self, count=-1):
            return b"" if self.tell() > 20 else super().read(count)

    with pytest.raises(RefusedError, match="ends early: it was cut at byte 21 while"):
        unpickling.unpickle(Cut(pickle.dumps(list(range(50)), 4)))


# Hostile ones. Their effect, if any, would be a file called "ran".


class Calls:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


HOSTILE = {
    "os.system": (pickle.dumps(Calls(os.system, "touch ran")), r"system, which no verification set needs"),
    "eval": (pickle.dumps(Calls(eval, "open('ran', 'w')"), 2), r"__builtin__\.eval"),
    "exec": (pickle.dumps(([Calls(exec, "open('ran', 'w')")], [True]), 0), r"__builtin__\.exec"),
    "getattr": (b"cbuiltins\ngetattr\n(cos\nX\x06\x00\x00\x00systemtR.", r"builtins\.getattr"),
    "nested": (b"c_codecs\nencode\n(c_codecs\nencode\n(cos\nsystem\n", r"os\.system"),
    "numpy inner": (b"cnumpy.core.multiarray\nfromfile\n.", r"numpy\.core\.multiarray\.fromfile"),
    "dotted": (b"\x8c\x05numpy\x8c\x16core.multiarray.scalar\x93.", r"numpy\.core\.multiarray\.scalar"),
    "dotted attribute": (b"\x8c\x08builtins\x8c\x10bytes.fromhex.x0\x93.", r"builtins\.bytes\.fromhex"),
    "a class": (b"c__main__\nThing\n)\x81}b.", r"__main__\.Thing"),
    "a copied class": (b"ccopy_reg\n_reconstructor\n(c__main__\nThing\n", r"copy_reg\._reconstructor"),
    "line breaks in a name": (b"\x8c\x02os\x8c\x05a\nb\rc\x93.", r"os\.a\\nb\\rc"),
    "a very long name": (b"cos\n" + b"x" * 10_000 + b"\n.", r"a line at byte 4 does not end"),
    "a name of bytes": (b"U\x02osU\x06system\x93.", r"a name at byte 13 is no text"),
    "mxnet": (b"cmxnet.ndarray\nNDArray\n.", r"mxnet arrays \(mxnet\.ndarray\.NDArray\), which only mxnet"),
    "mxnet in protocol 0": (b"(ccopy_reg\n_reconstructor\np1\n(cmxnet.nd\n", r"mxnet arrays"),
    "instance": (b"(ios\nsystem\n.", "the operation INST at byte 1"),
    "object": (b"(cnumpy\ndtype\no.", "the operation OBJ at byte"),
    "new object": (b"cnumpy\ndtype\n)\x81.", "the operation NEWOBJ at byte"),
    "new object with names": (b"cnumpy\ndtype\n)}\x92.", "the operation EMPTY_DICT at byte"),
    "extension": (b"\x82\x01.", "the operation EXT1 at byte 0"),
    "long extension": (b"\x84\xff\xff\xff\x7f.", "the operation EXT4 at byte 0"),
    "persistent": (b"Pfile:///x\n.", "the operation PERSID at byte 0"),
    "binary persistent": (b"K\x01Q.", "the operation BINPERSID at byte 2"),
    "out of band": (b"\x97.", "the operation NEXT_BUFFER at byte 0"),
    "dictionary": (b"}.", "the operation EMPTY_DICT at byte 0"),
    "no operation": (b"\xff", r"the unknown operation b'\\xff' at byte 0"),
    "state of a function": (b"c_codecs\nencode\n(K\x01tb.", r"gives a state to _codecs\.encode"),
    "state of a list": (b"](K\x01tb.", "gives a state to a list"),
    "state of nothing": (b"(K\x01tb", "gives a state to nothing"),
    "call of a list": (b"])R.", "calls a list"),
    "call of an array": (b"cnumpy\nndarray\n)R.", r"calls numpy\.ndarray"),
    "call with a list": (b"c_codecs\nencode\n]R.", r"calls _codecs\.encode at byte"),
    "too few arguments": (b"c_codecs\nencode\n)R.", r"calls _codecs\.encode with 0 arguments"),
    "another codec": (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00zlitR.", "than text as Latin-1"),
    "no Latin-1": (b"c_codecs\nencode\n(X\x03\x00\x00\x00\xe2\x82\xacX\x06\x00\x00\x00latin1tR.", "that is none"),
    "bytes of a number": (b"cbuiltins\nbytes\n(M\xff\xfftR.", "bytes of something else than bytes"),
    "objects in an array": (b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8tR.", "an array of 'O8'"),
    "floats in an array": (b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4tR.", "an array of 'f4'"),
    "a larger shape": (None, "has 3 bytes, which is not what its shape says"),
    "filled twice": (None, "filled twice"),
    "a number of 256 bytes": (b"\x8b\x00\x01\x00\x00" + bytes(256) + b".", "a number of 256 bytes"),
    "a number of 4300 digits": (b"L" + b"9" * 200 + b"L\n.", "damaged: the number before byte 203"),
    "text that is no UTF-8": (b"X\x02\x00\x00\x00\xff\xfe.", "the text at byte 0 cannot be decoded"),
    "text with half an escape": (b"V\\u00\n.", "the text at byte 0 cannot be decoded"),
    "quotes left open": (b"S'abc\n.", "damaged: the quoted bytes"),
    "a strange escape": (b"S'\\d'\n.", "damaged: the quoted bytes"),
    "an escape of the end": (b"S'\\'\n.", "damaged: the quoted bytes"),
    "a length below 0": (b"T\xff\xff\xff\xff.", "ends early"),
    "a huge length": (b"\x8e" + struct.pack("<Q", 2**63 - 1), "ends early: 9,223,372,036,854,775,807 bytes"),
    "a huge array": (b"\x96" + struct.pack("<Q", 2**40), "ends early: 1,099,511,627,776 bytes"),
    "a huge frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**60), "ends early: a frame of"),
    "no end": (b"]", "ends early: 1 bytes are announced at byte 1, 0 are there"),
    "empty": (b"", "ends early"),
    "nothing to give": (b".", "nothing is left to take"),
    "nothing to double": (b"2.", "nothing is left to take"),
    "no mark": (b"K\x01t.", "no mark is set"),
    "no list": (b"K\x01K\x02a.", "no list to append to"),
    "a mark between": (b"](K\x02a.", "no list to append to"),
    "nothing remembered": (b"h\x07.", "nothing is remembered as 7"),
    "nothing to remember": (b"q\x07.", "nothing to remember"),
    "a memo of letters": (b"Npx\n.", "the memo's number"),
}  # fmt: skip


def array_pickle(shape, data, times=1):
    state = b"(K\x01" + b"".join(b"K" + bytes([size]) for size in shape)
    state += (
        {1: b"\x85", 2: b"\x86"}[len(shape)]
        + b"cnumpy\ndtype\n\x8c\x02u1\x85R\x89C"
        + bytes([len(data)])
        + data
    )
    return b"cnumpy.core.multiarray\n_reconstruct\n)R" + (state + b"tb") * times + b"."


HOSTILE["a larger shape"] = (array_pickle((200, 200), b"abc"), HOSTILE["a larger shape"][1])
HOSTILE["filled twice"] = (array_pickle((3,), b"abc", 2), HOSTILE["filled twice"][1])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_damaged_pickle_is_refused_in_a_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[name]
    with pytest.raises(RefusedError, match=message) as refused:
        unpickle(content)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 300
    assert not list(tmp_path.iterdir())


def test_a_sound_array_is_read():
    assert plain(unpickle(array_pickle((3, 1), b"abc"))) == [[97], [98], [99]]


LARGE = 1 << 18
TWICE = (
    b"c_codecs\nencode\nq\x00X"
    + struct.pack("<I", LARGE)
    + b"x" * LARGE
    + b"X\x06\x00\x00\x00latin1\x86q\x010"
)
BOMBS = {
    "lists": b"]" * LARGE,
    "lists in the memo": b"]\x94" * (LARGE // 2),
    "marks": b"(" * LARGE,
    "nested tuples": b")" + b"\x85" * LARGE,
    "nested lists": b"(" * (LARGE // 2) + b"l" * (LARGE // 2),
    "large memo indices": b"".join(b"Nr" + struct.pack("<I", 2**32 - 1 - i) for i in range(LARGE // 6)),
    "empty bytes": b"B\x00\x00\x00\x00" * (LARGE // 5),
    "doubled": b"]" + b"2" * LARGE,
    "bytes made again and again": TWICE + b"h\x00h\x01R" * 100_000 + b".",
    "four bytes a letter": b"X" + struct.pack("<I", LARGE + 4) + b"x" * LARGE + "\U0001f600".encode() + b".",
    "quoted": b"S'" + b"\\x00" * (LARGE // 4) + b"'\n.",
    "a list of itself, over and over": b"]q\x00" + b"".join(b"(h%ch%ctq%c" % (i, i, i + 1) for i in range(200)) + b".",
    "a call with many arguments": b"(" + b"N" * 100_000 + b"tq\x000c_codecs\nencode\nq\x01" + b"0h\x01h\x00R" * 50_000,
}  # fmt: skip


def numpy_array(shape, data):
    """As protocol 5 writes it in band."""
    sizes = b"".join(b"J" + struct.pack("<i", size) for size in shape)
    return (
        b"cnumpy._core.numeric\n_frombuffer\n(\x96" + struct.pack("<Q", len(data)) + data
        + b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1\x89\x88tR(" + sizes + b"tX\x01\x00\x00\x00CtR"
    )  # fmt: skip


def answers(count):
    return numpy_array((count,), bytes(count))


IMAGE = b"B" + struct.pack("<I", 4 * LARGE) + bytes(4 * LARGE)
ARRAY_STATE = (
    b"cnumpy.core.multiarray\n_reconstruct\nq\x00(K\x01J" + struct.pack("<i", 4 * LARGE)
    + b"\x85cnumpy\ndtype\n\x8c\x02u1\x85R\x89" + IMAGE + b"tq\x01"
)  # fmt: skip
FEW = LARGE // 64
# What costs here is what is made of a sound pickle. All but the images of a byte and the answers alone are sets.
SETS = {
    "one image in many places": b"((" + IMAGE + b"q\x00" + b"h\x00" * 39_999 + b"l(" + b"\x88" * 20_000 + b"lt.",
    "one array's bytes in many arrays":
        b"(" + ARRAY_STATE + b"00(" + b"h\x00)Rh\x01b" * 10_000 + b"l" + answers(5_000) + b"t.",
    "images of a byte": numpy_array((LARGE, 1, 1, 1), bytes(LARGE)) + answers(LARGE // 2) + b"\x86.",
    "images of a byte without answers": numpy_array((LARGE, 1, 1, 1), bytes(LARGE)) + b"]\x86.",
    "the smallest images in an array":
        numpy_array((FEW, 4, 3, 3), os.urandom(36 * FEW)) + answers(FEW // 2) + b"\x86.",
    "the smallest images in a list":
        b"(" + b"".join(b"C " + os.urandom(32) for _ in range(FEW)) + b"l" + answers(FEW // 2) + b"\x86.",
    "answers alone": b"]" + answers(LARGE) + b"\x86.",
}  # fmt: skip


SOUND = [name for name in SETS if "of a byte" not in name and "alone" not in name]


@pytest.mark.parametrize("name", BOMBS | SETS)
def test_time_and_memory_are_bounded_by_the_size(name, tmp_path, monkeypatch):
    # What every file may cost, however small, would hide what a byte more costs.
    monkeypatch.setattr(unpickling, "_MIN_OPERATIONS", 0)
    monkeypatch.setattr(unpickling, "_MIN_COPIED", 0)
    content = (BOMBS | SETS)[name]
    path = tmp_path / "set.bin"
    path.write_bytes(content)
    began = time.process_time()
    tracemalloc.start()
    try:
        VerificationBin(path)
    except UserError as error:
        assert str(error).isprintable() and name not in SOUND
    else:
        assert name in SOUND
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * len(content) + 100_000
    assert time.process_time() - began < 5


def test_a_long_name_is_not_taken_apart():
    name = "." * LARGE
    tracemalloc.start()
    with pytest.raises(RefusedError, match=r"asks for \.+a, which"):
        find(name, "a")
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


# Fuzzing: from sound pickles, and from nothing.

SEEDS = [
    pickle.dumps(([b"a" * 300, b"b"] * 2, [True, False]), protocol) for protocol in range(6)
] + [
    pickle.dumps(([np.arange(9, dtype=np.uint8)] * 2, [np.bool_(True)]), protocol) for protocol in range(6)
]  # fmt: skip
OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
NAMES = [
    b"_codecs\nencode\n",
    b"numpy\ndtype\n",
    b"numpy.core.multiarray\n_reconstruct\n",
    b"builtins\nbytes\n",
]
pieces = (
    st.sampled_from(OPCODES)
    | st.sampled_from(NAMES).map(lambda name: b"c" + name)
    | st.binary(max_size=9)
    | st.sampled_from(
        [b"\x8c\x06latin1", b"\x8c\x02u1", b"\x8c\x03abc", b"K\x01", b"]", b"(", b"q\x01", b"h\x01"]
    )
)


def survives(content):
    try:
        found = unpickle(content)
    except RefusedError as refused:
        assert str(refused).isprintable()
        return
    waiting, seen = [found], set()
    while waiting:
        value = waiting.pop()
        assert type(value) in PLAIN
        if type(value) in (list, tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(SEEDS), st.data())
def test_a_changed_pickle_gives_plain_values_or_is_refused(seed, data):
    content = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        cut = data.draw(st.integers(0, 6))
        content[at : at + cut] = data.draw(pieces)
    survives(bytes(content))


@settings(max_examples=600, deadline=None)
@given(st.lists(pieces, max_size=40))
def test_random_operations_give_plain_values_or_are_refused(operations):
    survives(b"".join(operations) + b".")


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_a_pickle_cut_anywhere_is_refused(seed):
    for stop in range(len(seed)):
        with pytest.raises(RefusedError):
            unpickle(seed[:stop])


def test_python_itself_would_have_run_the_hostile_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE["eval"][0])
    assert (tmp_path / "ran").exists()
