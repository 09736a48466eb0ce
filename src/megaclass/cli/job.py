"""``megaclass job``: scripts for the scheduler of a cluster."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from megaclass.cli.common import tell
from megaclass.cli.parsing import Given, Options, make_parser, parse_with_settings
from megaclass.errors import UserError

_OPTIONS: Options = {
    "site": ("", "the cluster: a TOML file, or one of abci, gridengine, pbs, slurm (the schedulers alone)"),
    "kind": ("", "kind of node that the site has; default: its first"),
    "nodes": (1, "how many"),
    "devices": (8, "of each node: as many ranks"),
    "time": ("12:00:00", "limit"),
    "account": ("", "account, project or group that pays"),
    "container": ("", "image that the commands run in"),
    "stage": ("", "set that each node copies to its own disk and trains on"),
    "output": ("", "directory of script, logs and run; default: runs/NAME-job"),
    "print": (False, "show the script, and write nothing"),
    "submit": (False, "submit it"),
}


def job(words: list[str]) -> None:
    parser = make_parser(
        "megaclass job RECIPE|suite NAME [...] --site FILE.toml|NAME [--print|--submit]",
        "Write the script that trains a recipe on a cluster, or measures a suite as an array of tasks, and say how to "
        "submit it. A run is told to end before the limit, saves, is queued again and goes on. Settings of the recipe "
        "(--section.key VALUE) or options of the suite (`megaclass bench suite --help`) follow.",
        {"recipe": "name of a recipe or a .toml file, or `suite`"},
        _OPTIONS,
    )
    if is_suite := words[:1] == ["suite"]:
        options, rest = parser.parse_known_args(words)
    else:
        options, given = parse_with_settings(parser, words)
    if is_suite and (options.nodes > 1 or options.stage):
        raise UserError("job suite: --nodes and --stage are of training; a task measures on one node")
    if min(options.nodes, options.devices) < 1:
        raise UserError(f"--nodes {options.nodes}, --devices {options.devices}: one of each at least")

    from megaclass.jobs.script import render, submission
    from megaclass.jobs.site import load_site

    if not options.site:
        raise UserError("name the cluster: --site FILE.toml, or its scheduler: --site slurm, pbs or gridengine")
    site = load_site(options.site)
    name, command, tasks = _suite(rest) if is_suite else _training(options, given)
    directory = Path(options.output or f"runs/{name}-job").absolute()
    if directory.exists() and not options.print:
        raise UserError(f"--output: {directory} exists; name another directory")
    options.output = str(directory)
    command += ["--output", options.output] if tasks else ["--run.output", f"{options.output}/run"]
    script, submit = render(site, options, f"mc-{name}", command, tasks), submission(site, options)
    if options.print:
        print(script, end="")
        return
    if options.submit and not shutil.which(submit[0]):
        raise UserError(f"--submit: there is no {submit[0]} here; leave it out, and submit elsewhere")
    try:
        directory.mkdir(parents=True)
        (directory / "job.sh").write_text(script, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output: {directory} cannot be made: {error.strerror}; name another") from None
    tell(f"script    {directory}/job.sh")
    if not options.submit:
        tell(f"submit    {shlex.join(submit)}")
        return
    done = subprocess.run(submit, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise UserError(f"{shlex.join(submit)}: {' '.join((done.stderr or done.stdout).split())}")
    tell(done.stdout.strip())


def _training(options: Any, given: Given) -> tuple[str, list[str], int]:
    """Name, command and no tasks."""
    from megaclass.config import from_mapping, load_recipe

    settings = {f"--{section}.{key}": v for section, values in given.items() for key, v in values.items()}
    for key in ("--run.output", *(["--data.path"] if options.stage else [])):
        if key in settings:
            raise UserError(f"{key}: of a job --output or --stage names it; leave it out")
    staged = {"data": given.get("data", {}) | {"path": options.stage}} if options.stage else {}
    config = from_mapping(given | staged, load_recipe(options.recipe, complete=False))
    command = ["megaclass", "train", options.recipe, "--resume"]
    for key, value in settings.items():
        command += [key, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return re.sub(r"[^\w.-]", "-", config.recipe, flags=re.ASCII), command, 0


def _suite(words: list[str]) -> tuple[str, list[str], int]:
    """Name, command and number of cases."""
    from megaclass.cli.bench import options_of_suite
    from megaclass.results import published

    found = options_of_suite(words)
    if not found.name or found.plan or found.part:
        raise UserError(f"job suite: name one of {', '.join(published.names())}, without --plan and --part")
    return (
        f"suite-{found.name}",
        ["megaclass", "bench", "suite", *words],
        len(published.load(found.name).cases()),
    )
