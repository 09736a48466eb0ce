"""Memory is used again, and never while somebody can see it."""

import gc

from megaclass.data.loader import Buffers

SHAPE = (4, 8, 8, 3)


def test_what_nobody_holds_is_given_again():
    buffers = Buffers()
    first = buffers.take(SHAPE)
    place = first.data_ptr()
    del first
    assert all(buffers.take(SHAPE).data_ptr() == place for _ in range(5))


def test_what_anybody_holds_is_not():
    buffers = Buffers()
    held = [buffers.take(SHAPE) for _ in range(3)]
    assert len({tensor.data_ptr() for tensor in held}) == 3
    views = [held[0][1], held[1].numpy(), held[2].permute(3, 0, 1, 2).chunk(2)[1], iter(held[0])]
    seen = {tensor.data_ptr() for tensor in held}
    del held
    gc.collect()
    fresh = buffers.take(SHAPE)
    assert fresh.data_ptr() not in seen
    place = fresh.data_ptr()
    del views, fresh
    again = [buffers.take(SHAPE) for _ in range(4)]
    assert {tensor.data_ptr() for tensor in again} == seen | {place}
