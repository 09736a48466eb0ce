"""`megaclass job`: its scripts for three schedulers, what sites and words it refuses, and what a signal leads to."""

import shutil
import subprocess
from pathlib import Path

import pytest

import megaclass
from megaclass.cli import main

SCHEDULERS = ["slurm", "pbs", "gridengine"]
SITE = 'scheduler = "slurm"\n'
NODES = "[nodes.gpu]\n8 = []\n"


@pytest.fixture(autouse=True)
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def script(told, *words):
    return told("job", *words, "--print").replace(str(Path.cwd()), "/home/me").replace(megaclass.__version__, "VERSION")


def test_scripts_are_as_they_were(told):
    """The first whole, of the others what differs from it."""
    words = ["glyphs", "--nodes", "2", "--optim.lr", "0.1", "--site"]
    first, *others = [script(told, *words, name).splitlines(keepends=True) for name in SCHEDULERS]
    differ = [line for other in others for line in other if line not in first]
    assert "".join([*first, "\n", *differ]) == (Path(__file__).parents[2] / "golden" / "job.sh").read_text()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("scheduler", [*SCHEDULERS, "abci"])
def test_scripts_are_clean(told, scheduler):
    words = ["faces_r50", "--evaluate.task", "none", "--container", "an image.sif", "--stage", "/a set"]
    for made in ([*words, "--nodes", "2"], ["suite", "resnet50-abci", "--fit"]):
        text = script(told, *made, "--site", scheduler)
        assert subprocess.run(["shellcheck", "-"], input=text, stdout=-1, text=True, check=False).stdout == ""


@pytest.mark.parametrize("case", ["a100 1 rt_AF=1", "a100 4 rt_AF=1", "a100 8 rt_AF=1", "v100 4 rt_F=1"])
def test_the_published_cluster_is_asked_as_its_jobs_asked_it(told, case):
    kind, devices, asked = case.split()
    words = ["--site", "abci", "--kind", kind, "--devices", devices, "--account", "grp"]
    text = script(told, "suite", "resnet50-abci", *words)
    assert f"#$ -l {asked}\n" in text and "Submit it: qsub -g grp " in text


@pytest.mark.parametrize(("text", "said"), [
    (NODES, "site.toml:1: scheduler: is missing"),
    (f"{SITE}modles = []\n{NODES}", "site.toml:2: modles: there is no such key (did you mean 'modules'?)"),
    (f"{SITE}\nbinds = 3\n{NODES}", "site.toml:3: binds: 3 is not a list of texts of one line"),
    (f'{SITE}local = "a b"\n{NODES}', "site.toml:2: local: 'a b' is not [A-Za-z_]"),
    (f'{SITE}directives = ["-A x\\n-B y"]\n{NODES}', "site.toml:2: directives: "),
    (f"{SITE}{NODES}[nodes.old]\neight = []\n", "site.toml:5: nodes.old.eight: not a number of devices"),
    (f"{SITE}setup = [\n", "site.toml:2: not valid TOML"),
    (f"{SITE}# \xff", "site.toml:1: not valid TOML: 'utf-8' codec"),
    (f"{SITE}notice_s = -5\n{NODES}", "site.toml:2: notice_s: -5 is not from 1 to 65535"),
])  # fmt: skip
def test_a_site_with_an_error_is_refused_with_its_line(refused, text, said):
    Path("site.toml").write_text(text, encoding="latin-1")
    refused(["job", "glyphs", "--site", "site.toml"], said)


@pytest.mark.parametrize(("words", "said"), [
    ([], "name the cluster: --site FILE.toml"),
    (["--site", "abcy"], "unknown site 'abcy' (did you mean 'abci'?)"),
    (["--site", "none.toml"], "none.toml: cannot be read: No such file"),
    (["--site", "abci", "--kind", "v100"], "--devices: 8 are more than the 4 of a node"),
    (["--site", "slurm", "--nodes", "0"], "--nodes 0"),
    (["--site", "slurm", "--time", "12h"], "--time: '12h' is not hours:minutes:seconds"),
    (["--site", "slurm", "--time", "0:02:00"], "--time: 0:02:00: not above the 120 s"),
    (["--site", "slurm", "--account", "a b"], "--account: 'a b'"),
    (["--site", "slurm", "--output", "a b"], "/a b'"),
    (["--site", "slurm", "--output", "."], "exists; name another directory"),
    (["--site", "slurm", "--run.output", "x"], "--run.output: of a job"),
    (["--site", "slurm", "--submit"], "--submit: there is no sbatch here"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_written(refused, monkeypatch, words, said):
    monkeypatch.setenv("PATH", "/nowhere")
    assert not refused(["job", "glyphs", *words], said)


def test_a_suite_takes_no_words_of_training(refused):
    words = ["job", "suite", "resnet50-abci", "--site", "abci", "--stage", "/data/x"]
    refused(words, "job suite: --nodes and --stage are of training")


@pytest.mark.process
@pytest.mark.parametrize(("scheduler", "status"), [("pbs", 0), ("gridengine", 99)])
def test_a_job_near_its_limit_is_told_and_queued_again(monkeypatch, scheduler, status):
    """Stand-ins: a torchrun that saves when it is told to, and a qsub that keeps what it is given."""
    saves = 'trap "mkdir -p job/run/checkpoints/step-00000007; exit 1" USR1; while :; do sleep 0.1; done'
    for name, does in (("torchrun", saves), ("qsub", 'echo "$@" >> submitted')):
        Path(name).write_text(f"#!/bin/bash\n{does}\n")
        Path(name).chmod(0o755)
    site = f'scheduler = "{scheduler}"\nnotice_s = 7\nsetup = ["PATH=$PWD:$PATH"]\n{NODES}'
    Path("site.toml").write_text(site)
    assert main(["job", "glyphs", "--site", "site.toml", "--time", "0:00:10", "--output", "job"]) == 0
    where = {"PATH": "/usr/bin:/bin", "PBS_JOBID": "17[].host", "JOB_ID": "17"}
    done = subprocess.run(["bash", "job/job.sh"], env=where, stdout=-1, text=True, timeout=60, check=False)
    assert done.returncode == status and "goes on from /" in done.stdout
    assert Path("submitted").exists() == (scheduler == "pbs")
