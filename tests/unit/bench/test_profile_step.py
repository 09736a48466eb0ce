"""benchmarks/profile_step.py on a network that is small enough for a test."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megaclass.errors import UserError

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "profile_step.py"
specification = importlib.util.spec_from_file_location("profile_step_script", SCRIPT)
script = importlib.util.module_from_spec(specification)
specification.loader.exec_module(script)

WORDS = ["--recipe", "glyphs", "--image-size", "16", "--num-classes", "50", "-b", "4", "-i", "2", "--dtype", "float32",
         "--device", "cpu", "--threads", "1"]  # fmt: skip


def test_a_profile_of_a_step(tmp_path, capsys):
    path = tmp_path / "profile.txt"
    script.main([*WORDS, "--output", str(path)])
    text = path.read_text()
    assert "glyphs, convnet" in text and "2 steps after 1 epochs" in text
    assert "aten::convolution_backward" in text and "%  convolution" in text
    assert str(path) in capsys.readouterr().out


def test_one_case_alone(tmp_path):
    with pytest.raises(UserError, match="takes one case"):
        script.main([*WORDS, "--output", str(tmp_path / "profile.txt"), "--sample-rate", "1,0.5"])
    with pytest.raises(UserError, match="--output"):
        script.main(WORDS)


def test_operators_and_ranges_are_not_counted_beside_their_kernels():
    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU

    def event(key, device_type, time, is_range=False):
        return SimpleNamespace(
            key=key, device_type=device_type, self_device_time_total=time, is_user_annotation=is_range
        )

    events = [
        event("sm90_xmma_fprop_implicit_gemm_bf16", cuda, 60.0),
        event("aten::convolution", cpu, 60.0),
        event("pass_one_kernel", cuda, 30.0),
        event("Optimizer.step#SGD.step", cuda, 10.0, is_range=True),
        event("triton_poi_fused_add_relu", cuda, 10.0),
    ]
    assert script.shares(events, on_gpu=True) == [
        " 60.0%  convolution",
        " 30.0%  head",
        " 10.0%  element by element",
    ]
