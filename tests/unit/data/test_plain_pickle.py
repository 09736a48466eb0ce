"""What a pickle may do here, and what it may not: run anything, or build what it names."""

import os
import pickle
import pickletools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megaclass.data.plain_pickle import Array, RefusedError, load


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
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=5) | st.tuples(inner, inner), max_leaves=20
)


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


HOSTILE = {
    "os.system": pickle.dumps(Calls(os.system, "touch ran")),
    "eval": pickle.dumps(Calls(eval, "open('ran', 'w')"), 2),
    "getattr": b"cbuiltins\ngetattr\n(cos\npath\nX\x06\x00\x00\x00systemtR.",
    "nested": b"c_codecs\nencode\n(c_codecs\nencode\n(cos\nsystem\nttt.",
    "a class": b"c__main__\nThing\n)b.",
    "a very long name": b"cos\n" + b"x" * 10_000 + b"\n.",
    "mxnet": b"cmxnet.ndarray\nNDArray\n.",
    "instance": b"(ios\nsystem\n.",
    "extension": b"\x82\x01.",
    "persistent": b"Pfile:///x\n.",
    "out of band": b"\x97.",
    "another codec": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00zlitR.",
    "objects in an array": b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8tR.",
    "floats in an array": b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4tR.",
    "a larger shape": array_pickle((200, 200), b"abc"),
    "filled twice": array_pickle((3,), b"abc", 2),
    "no end": b"]",
    "nothing to give": b".",
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


SEEDS = [
    pickle.dumps(content, protocol)
    for content in (([b"a" * 300, b"b"] * 2, [True, False]), ([np.arange(9, dtype=np.uint8)] * 2, [np.bool_(True)]))
    for protocol in range(6)
]  # fmt: skip


def test_a_pickle_cut_anywhere_is_refused():
    for seed in SEEDS:
        for stop in range(len(seed)):
            with pytest.raises(RefusedError):
                load(seed[:stop])
