"""The environment record: complete, quick, honest, and silent where the machine does not tell."""

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from megaclass import __version__
from megaclass.results import machine

KEYS = (
    "system cpu cpu_sockets cpu_cores cpu_threads cpu_threads_usable cpu_features memory_mb gpu gpu_count "
    "gpu_memory_mb gpu_power_limit_w gpu_clock_mhz driver os kernel python pytorch cuda cudnn nccl torch_threads "
    "torch_interop_threads packages revision variables"
)


def test_it_has_every_key_and_is_json():
    found = machine.snapshot()
    assert list(found) == KEYS.split()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["pytorch"] == torch.__version__
    assert found["packages"]["numpy"]
    assert found["cpu"] and found["os"] and found["memory_mb"] > 100
    assert 1 <= found["cpu_threads_usable"] <= found["cpu_threads"]
    assert found["torch_threads"] == torch.get_num_threads()
    assert found["gpu_count"] >= torch.cuda.device_count()


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 4), ("150000 100000", 1), ("50000 100000", 1), ("900000 100000", 4), ("?", 4)],
)
def test_a_containers_quota_limits_the_cores(monkeypatch, quota, cores):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(machine, "_read", lambda path: quota)
    assert machine.usable_cores() == cores


def test_only_listed_variables_are_recorded(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    monkeypatch.setenv("LD_PRELOAD", "/opt/somewhere/libjemalloc.so.2")
    variables = machine.snapshot()["variables"]
    assert variables["OMP_NUM_THREADS"] == "3"
    assert variables["LD_PRELOAD"] == "libjemalloc.so.2"
    assert "SECRET_TOKEN" not in variables


def test_nothing_raises_when_every_probe_fails(monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no such thing here")

    for probe in ("_system", "_cpu", "_memory_mb", "_gpu", "_torch", "_git_revision"):
        monkeypatch.setattr(machine, probe, fail)
    monkeypatch.setattr(machine.metadata, "version", fail)
    found = machine.snapshot()
    assert list(found) == KEYS.split()
    assert found["cpu"] is None and found["packages"] == {} and found["revision"] == __version__


def git(directory, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(machine, "__file__", str(package / "results" / "machine.py"))
    machine._git_revision.cache_clear()
    git(tmp_path, "init", "-q")
    yield package
    machine._git_revision.cache_clear()


def revision():
    machine._git_revision.cache_clear()
    return machine.snapshot()["revision"]


def test_revision_is_the_commit_with_a_dirty_mark(checkout):
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    clean = revision()
    assert len(clean) == 40
    (checkout.parent / "notes.txt").write_text("outside the package: not part of what runs")
    assert revision() == clean
    (checkout / "new.py").write_text("")
    assert re.fullmatch(f"{clean}-dirty-[0-9a-f]{{8}}", first := revision())
    (checkout / "new.py").write_text("other")
    assert revision() not in (first, clean) and "-dirty-" in revision()


def test_revision_of_an_installed_package_is_its_version(checkout):
    (checkout.parent / "other.py").write_text("")
    git(checkout, "add", "../other.py")
    git(checkout, "commit", "-qm", "somebody else's checkout around us")
    assert revision() == __version__


def test_a_copy_without_git_has_the_revision_that_it_is_told(checkout, monkeypatch):
    shutil.rmtree(checkout.parents[1] / ".git")
    monkeypatch.setenv("MEGACLASS_REVISION", "0123abc-dirty")
    assert revision() == "0123abc-dirty"


def test_without_nvml_pytorch_knows_the_gpus(monkeypatch):
    monkeypatch.setattr(machine, "ask_driver", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name="GPU A"))
    assert (machine.snapshot()["gpu"], machine.snapshot()["gpu_count"]) == ("GPU A", 2)


def test_gpu_entries_follow_visibility(monkeypatch):
    import pynvml

    names = {0: "GPU A", 1: "GPU B", 2: "GPU B", "GPU-77": "GPU C"}
    memory = type("Memory", (), {"total": 80 << 30})
    limits = {0: 700_000, 1: 350_000, 2: 400_000}  # the one by its UUID tells none
    clocks = {0: 1980, 1: 1755, 2: 1980, "GPU-77": 1410}
    answers = {
        "Init": lambda: None, "Shutdown": lambda: None, "DeviceGetCount": lambda: 3, "DeviceGetName": names.get,
        "DeviceGetHandleByIndex": lambda index: index, "DeviceGetHandleByUUID": lambda uuid: uuid,
        "DeviceGetMemoryInfo": lambda handle: memory, "SystemGetDriverVersion": lambda: "580.1",
        "DeviceGetEnforcedPowerLimit": lambda handle: limits[handle],
        "DeviceGetMaxClockInfo": lambda handle, clock: clocks[handle],
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, f"nvml{name}", answer)
    for visible, gpu, count, power_w, clock_mhz in [
        (None, "GPU A, GPU B", 3, 350.0, 1755),
        ("1, 2", "GPU B", 2, 350.0, 1755),
        ("GPU-77", "GPU C", 1, None, 1410),
        ("", None, 0, None, None),
    ]:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found = machine._gpu()
        assert (found["gpu"], found["gpu_count"], found["driver"]) == (gpu, count, "580.1")
        assert found["gpu_memory_mb"] == (80 << 10 if count else None)
        assert (found["gpu_power_limit_w"], found["gpu_clock_mhz"]) == (power_w, clock_mhz)


def test_sockets_and_instructions_of_a_processor(monkeypatch):
    thread = "physical id\t: {}\nmodel name\t: X\nflags\t\t: fpu avx2 avx512f amx_bf16 sse\n"
    monkeypatch.setattr(machine, "_read", lambda path: "\n".join(thread.format(i % 2) for i in range(4)))
    machine._cpu_entries.cache_clear()
    found = machine._cpu()
    machine._cpu_entries.cache_clear()
    assert found["cpu_sockets"] == 2 and found["cpu_features"] == ["avx2", "avx512f", "amx_bf16"]


@pytest.mark.parametrize(("told", "name"), [("AMD EPYC 9354P", ""), ("AMD EPYC", ", cpu family 26, model 2")])
def test_a_processor_whose_host_hides_its_number_is_told_by_its_generation(monkeypatch, told, name):
    monkeypatch.setattr(machine, "_cpu_entries", lambda: {"model name": [told], "cpu family": ["26"], "model": ["2"]})
    assert machine._cpu_name.__wrapped__() == told + name
