"""Before any test imports Triton: without a GPU its kernels run in its interpreter. And the command line for tests."""

import importlib.metadata
import importlib.util
import logging
import os

import pytest
import torch

from megaclass.cli import main

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if importlib.util.find_spec("triton") and importlib.metadata.version("triton") < "3.7":
    # Its loops make a number of an array with one element, which NumPy 2.4 refuses. Triton 3.7.1 has mended it.
    from triton.runtime import interpreter

    def _patched(tensor, scope, original=interpreter._patch_lang_tensor):  # type: ignore[no-untyped-def]
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = _patched


def _contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(capfd, recwarn, caplog, tmp_path):
    """Call the command line and assert that it refuses, says ``parts`` in one line, and touches nothing.

    Returns the paths that are new ``below`` a folder, by default that of the test; ``warned`` warnings come first.
    """

    def check(words, *parts, below=tmp_path, warned=0):
        before = _contents(below)
        capfd.readouterr()
        recwarn.clear()
        caplog.clear()
        assert main([str(word) for word in words]) == 2
        out, err = capfd.readouterr()
        *warnings, line = err.splitlines()
        assert words[0] in ("train", "bench") or not out  # these may have begun
        warnings += recwarn.list + [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == warned, warnings
        assert line.startswith("megaclass: error: ")
        assert [part for part in parts if str(part) not in line] == []
        after = _contents(below)
        assert {path: after.get(path) for path in before} == before
        return set(after) - set(before)

    return check


@pytest.fixture
def told(capfd):
    """Call the command line and assert that it goes well, or ends with ``status``; returns what it printed."""

    def call(*words, status=0):
        capfd.readouterr()
        assert main([str(word) for word in words]) == status
        out, err = capfd.readouterr()
        assert "megaclass: error: " not in err
        return out

    return call
