"""Which rows are of one machine, and what a report says of it."""

from made_rows import LAPTOP, SERVER
from megaclass.report.page.machines import identity, machines_of


def test_the_spec_has_the_lines_of_the_published_ones():
    (machine,) = machines_of([SERVER]).values()
    assert [key for key, _ in machine.spec][:5] == ["System", "CPU", "Memory", "GPU", "OS"]
    spec = [f"{key}: {value}" for key, value in machine.spec]
    assert "GPU: 8 x Testcard T1 80GB, 80.0 GiB each" in spec
    assert "Installation: CUDA 13.0, cuDNN 9.10.2" in spec
    assert "Installation: Python 3.11.7" in spec and "Installation: PyTorch 2.13.0+cu130" in spec
    assert f"Source revision: {SERVER['revision']}" in spec


def test_software_does_not_make_another_machine_and_all_versions_are_named():
    newer = SERVER | {"pytorch": "2.14.0", "revision": "feed", "memory_mb": SERVER["memory_mb"] + 1}
    (machine,) = machines_of([SERVER, newer]).values()
    assert ("Installation", "PyTorch 2.13.0+cu130, 2.14.0") in machine.spec
    assert ("Source revision", f"{SERVER['revision']}, feed") in machine.spec


def test_each_part_of_the_identity_makes_another_machine():
    others = {
        "system": "Other",
        "cpu": "Other",
        "cpu_threads": 3,
        "memory_mb": 1,
        "gpu": "Other",
        "gpu_count": 1,
    }
    for key, value in others.items():
        assert identity(SERVER) != identity(SERVER | {key: value}), key


def test_machines_of_one_name_get_a_letter_each():
    found = machines_of([LAPTOP, LAPTOP | {"memory_mb": 32000}, SERVER])
    assert [machine.name for machine in found.values()] == [
        "Testchip 9000, 2 threads [A]",
        "Testchip 9000, 2 threads [B]",
        "8 x Testcard T1 80GB",
    ]


def test_a_row_without_an_environment_is_of_no_known_machine():
    (machine,) = machines_of([{}]).values()
    assert machine.name == "machine not recorded" and machine.spec == []
