"""The threads of the heartbeat end; what they notice is tested in tests/dist/test_failures.py."""

import datetime
import threading

import pytest
import torch.distributed as dist

from megaclass.parallel.heartbeat import _Watch, heartbeat
from megaclass.parallel.rendezvous import Meeting


@pytest.fixture
def meeting(monkeypatch):
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    return Meeting("attempt", 0, 2, server)


def test_no_thread_outlives_it(meeting, monkeypatch):
    """One that comes back from the store when Python has ended aborts the process."""
    inside = threading.Event()

    def beat(watch):
        store = meeting.another_store(datetime.timedelta(seconds=5))
        inside.set()
        with pytest.raises(dist.DistStoreError):
            store.wait(["never"], datetime.timedelta(seconds=0.5))

    monkeypatch.setattr(_Watch, "beat", beat)
    before = threading.active_count()
    with heartbeat(meeting, 30.0):
        assert inside.wait(5)
    assert threading.active_count() == before
