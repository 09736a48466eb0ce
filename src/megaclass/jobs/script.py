"""Scripts that a scheduler runs: one torchrun on each node, or a suite of benchmarks as an array of tasks."""

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from megaclass import __version__
from megaclass.errors import UserError
from megaclass.jobs.site import Site

_MPIRUN = "mpirun -np {nodes} --map-by ppr:1:node "
# Without the flags for processors a step of SLURM gets one of them.
_SRUN = 'srun --kill-on-bad-exit=1 --cpu-bind=none ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} '


class _Scheduler(NamedTuple):
    """Command and flag of the account to submit with, prefix of directives, variables of the job and of the task of an
    array; the command that starts another once on each node, the signals that mean something, how a job goes back into
    the queue."""

    submits: str
    flag: str
    prefix: str
    job: str
    task: str
    start: str
    traps: str
    again: str


# Grid Engine signals before it stops a job (USR1) or kills it (USR2); qdel of PBS sends TERM to every process.
_SCHEDULERS = {
    "slurm": _Scheduler("sbatch", "--account", "#SBATCH", "SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", _SRUN,
              "trap 'tell again' USR1", 'scontrol requeue "$SLURM_JOB_ID" && exit 0'),
    "pbs": _Scheduler("qsub", "-A", "#PBS", "PBS_JOBID", "PBS_ARRAY_INDEX", _MPIRUN, "trap : TERM", ""),
    "gridengine": _Scheduler("qsub", "-A", "#$", "JOB_ID", "SGE_TASK_ID", _MPIRUN,
                   "trap 'tell again' USR1; trap 'tell end' USR2", "exit 99 # Grid Engine runs it again"),
}  # fmt: skip


def submission(site: Site, options: Any) -> list[str]:
    """The command that submits the script. The account is no directive: not every site reads it there."""
    how = _SCHEDULERS[site.scheduler]
    account = [site.account or how.flag, options.account] if options.account else []
    return [how.submits, *account, f"{options.output}/job.sh"]


def render(site: Site, options: Any, name: str, command: list[str], tasks: int = 0) -> str:
    """The script of a command that begins with ``megaclass``, or of as many tasks of an array.

    options: those of ``megaclass job``; ``output`` is absolute. UserError: what the site or a directive cannot hold.
    """
    for option in ("output", "account"):
        if not re.fullmatch(r"[\w@+=:,./-]*", text := getattr(options, option), re.ASCII):
            raise UserError(f"--{option}: {text!r}: a directive holds letters, digits and @+=:,./_- alone")
    if not re.fullmatch(r"\d{1,4}:[0-5]\d:[0-5]\d", options.time, re.ASCII):
        raise UserError(f"--time: {options.time!r} is not hours:minutes:seconds, as in 12:00:00")
    hours, minutes, rest = map(int, options.time.split(":"))
    seconds = 3600 * hours + 60 * minutes + rest - site.notice_s
    if seconds <= 0:
        raise UserError(f"--time: {options.time}: not above the {site.notice_s} s (notice_s) to end in")
    if options.container and site.container == "none":
        raise UserError('--container: this site runs none; its file may say container = "apptainer"')
    how = _SCHEDULERS[site.scheduler]
    launch = f"{site.launch} " if site.launch else how.start
    if options.nodes == 1 and site.scheduler != "slurm":
        launch = ""
    if site.scheduler == "gridengine":
        # Its signals go to every process of the session, and mean the script alone.
        launch = f"setsid {launch}"
    submit, here, local = shlex.join(submission(site, options)), str(Path.cwd()), f'"${{{site.local}:?}}"'
    binds = [shlex.quote(f"--bind={path}") for path in (*site.binds, here, options.output)]
    binds += [f"--bind={local}"] if options.stage else []
    inside = [site.container, "exec", "--nv", *binds, shlex.quote(options.container), ""]

    def filled(text: str) -> str:
        return text.replace("{nodes}", str(options.nodes)).replace("{devices}", str(options.devices))

    import jinja2

    loader, strict = jinja2.PackageLoader("megaclass.jobs"), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, undefined=strict, trim_blocks=True, lstrip_blocks=True)
    environment.filters["quote"] = shlex.quote
    names = how._asdict() | vars(options)
    names |= {"name": name, "version": __version__, "submit": submit, "site": site, "tasks": tasks}
    names |= {"here": here, "local": local, "inside": " ".join(inside) if options.container else ""}
    names |= {"launch": filled(launch), "command": shlex.join(command), "seconds": seconds}
    names["resources"] = [filled(line) for line in site.resources(options.kind, options.devices)]
    names["setup"] = [*site.setup, *(f"module load {shlex.quote(module)}" for module in site.modules)]
    return environment.get_template("job.sh").render(names)
