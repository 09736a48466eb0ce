"""Hostile and odd input ends in one line, and neither hangs nor takes the memory."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

import ranks
from hostile_cases import CASES, faults_of
from megaclass.checkpoint.torchfile import read_torch_file
from megaclass.cli import main


@pytest.mark.parametrize("name", CASES)
def test_hostile_input_is_told_in_one_line(tmp_path, name):
    assert not faults_of(CASES[name], tmp_path)


def unread(words: list[str], errors: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    sys.stdout = os.fdopen(writer, "w")
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    sys.exit(main(words))


@pytest.mark.parametrize("words", [["--help"], ["show", "glyphs", "--all"]])
def test_a_reader_that_has_left_is_no_traceback(tmp_path, words):
    process = ranks.SERVER.Process(target=unread, args=(words, tmp_path / "err.txt"))
    process.start()
    process.join()
    assert process.exitcode == 128 + signal.SIGPIPE and (tmp_path / "err.txt").read_text() == ""


@pytest.mark.parametrize("content", [[["a", "b"]], [{"a": 1}], {"x": [torch.zeros(2)]}])
def test_sound_torch_files_of_any_shape_are_read(tmp_path, content):
    """The look for tensors that claim too much goes through whatever holds them, once."""
    nested = content
    for _ in range(60):  # 2**60 ways lead to the innermost one
        nested = [nested, nested]
    torch.save(nested, tmp_path / "x.pt")
    assert len(read_torch_file(tmp_path / "x.pt")) == 2
