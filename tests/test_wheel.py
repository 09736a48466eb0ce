"""A wheel holds all that a bare environment needs: recipes, published tables, templates of pages."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import megaclass

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "megaclass"

pytestmark = pytest.mark.process

# Run by the bare environment, which has megaclass from the wheel and the other packages from this one.
CHECK = """
import sys
from pathlib import Path

import megaclass
from megaclass.cli import main

assert Path(megaclass.__file__).is_relative_to(sys.prefix), megaclass.__file__
folder = Path(megaclass.__file__).parent
print(*(path.relative_to(folder).as_posix() for path in folder.rglob("*")), sep="\\n", file=sys.stderr)
sys.exit(main(["show", "ms1mv3_r50"]) or main(["recipes"]) or main(["report", sys.argv[1], "--output", sys.argv[2]]))
"""


def test_a_wheel_installs_into_a_bare_environment(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy, since setuptools builds inside the source
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path / "dist"), str(source)]
    subprocess.run([*pip, *build], check=True, timeout=60, env=environment)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert megaclass.__version__ in wheel.name

    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False, symlinks=True)
    python = bare / "bin" / "python"
    install = ["--python", str(python), "install", "--no-deps", str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=60, env=environment)
    rows = ROOT / "benchmarks" / "results" / "infer-cpu.jsonl"
    others = [path for path in sys.path if path.endswith("site-packages")]
    done = subprocess.run(
        [python, "-c", CHECK, str(rows), str(tmp_path / "page")],
        env=environment | {"PYTHONPATH": os.pathsep.join(others)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page" / "report.html").stat().st_size > 10_000
    files = [path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(SOURCE).as_posix() for path in files} <= {*done.stderr.splitlines()}
    assert (bare / "bin" / "megaclass").exists()
