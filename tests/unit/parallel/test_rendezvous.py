"""A store that remembers earlier attempts, as torchrun's does."""

import datetime
import threading
import time

import torch.distributed as dist

from megaclass.parallel.rendezvous import _learn_name, _name_attempt

PATIENCE = datetime.timedelta(seconds=20)


def clients(count):
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    return server, [
        dist.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False, timeout=PATIENCE)
        for _ in range(count)
    ]


def attempt(stores, first):
    """Three ranks, of which rank ``first`` comes before the others; the names that they found."""
    names = {}

    def join(rank):
        found = _name_attempt(stores[0], 3) if rank == 0 else _learn_name(stores[rank], rank, PATIENCE)
        names[rank] = found

    threads = [threading.Thread(target=join, args=(rank,)) for rank in (first, *({0, 1, 2} - {first}))]
    threads[0].start()
    time.sleep(0.2)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    return names


def test_ranks_of_an_attempt_agree_and_take_no_earlier_one_for_theirs():
    server, stores = clients(3)
    found = [attempt(stores, first) for first in (1, 2, 0)]  # the second one comes early, and reads the first one's
    assert all(len(set(names.values())) == 1 for names in found)
    assert len({names[0] for names in found}) == 3
    del server
