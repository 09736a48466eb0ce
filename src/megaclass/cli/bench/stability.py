"""``megaclass bench stability``: one recipe, several seeds."""

from typing import Any

from megaclass.cli.parsing import configured, make_parser
from megaclass.config import load_recipe


def stability(words: list[str]) -> int | None:
    parser = make_parser(
        "megaclass bench stability RECIPE [--seeds 5] [--world-size N] [--output DIR] [--section.key VALUE ...]",
        "Train a recipe with several seeds, each by `megaclass train` into a directory of its own: mean, standard "
        "deviation, minimum and maximum of its metric, time to train, and all curves in one picture. The same command "
        "again goes on where it stopped. Settings are given as for `megaclass train`.",
    )
    options_of_stability(parser)
    config, options = configured(parser, words, lambda options, _: load_recipe(options.recipe))

    from megaclass.bench.old_stability.cases import seeds
    from megaclass.bench.old_stability.study import plan

    return _show(
        plan(config, load_recipe(options.recipe), seeds(options.seeds), options.world_size, options.output)
    )


def options_of_stability(parser: Any) -> None:
    """The options of ``bench stability`` besides the settings."""
    parser.add_argument("recipe", type=str, help="name of a recipe (see `megaclass recipes`) or a .toml file")
    parser.add_argument("--seeds", type=str, default="5", help="how many, from 0 on, or a list: 3,7,9")
    parser.add_argument("-n", "--world-size", type=int, default=1, help="processes of each training")
    parser.add_argument(
        "--output", type=str, default="", help="directory of the study; default runs/stability-RECIPE"
    )


def _show(study: Any) -> int | None:
    """Train what is not done yet, and print what all seeds say. Returns 1 if none of them came to a result."""
    from megaclass.bench.old_stability.console import SeedsConsole
    from megaclass.bench.old_stability.seeds import kept, run
    from megaclass.bench.old_stability.study import prepare
    from megaclass.report.seed_curves import draw_seeds
    from megaclass.report.stability import stability_tables
    from megaclass.results.rundir import RunDirectory

    console = SeedsConsole()
    with RunDirectory(study.directory).locked():
        prepare(study)
        found = kept(study)
        if found:
            console.print(
                f"{len(found)} of {len(study.seeds)} seeds are in {study.directory} already, with these settings"
            )
        try:
            with console.live():
                for row in run(study, found.copy(), console):
                    console.row(row)
                    found[row.case["seed"]] = row
        except KeyboardInterrupt:
            done = f"{len(found)} of {len(study.seeds)} seeds are in {study.directory}"
            raise KeyboardInterrupt(f"{done}; the same command goes on from there") from None
    rows = [found[seed] for seed in study.seeds]
    console.print(stability_tables(rows))
    console.print(f"rows      {study.rows_file}")
    trained = [row for row in rows if row.status == "ok"]
    if not trained:
        return 1
    runs = {row.case["seed"]: study.run_of(row.case["seed"]).path for row in trained}
    if picture := draw_seeds(study.directory / "curves.png", runs, trained):
        console.print(f"picture   {picture}")
    return None
