"""``megaclass compare``: whether the cases of one measurement have become slower in another."""

import re
import sys
from argparse import ArgumentTypeError

from megaclass.cli.parsing import make_parser, parse


def compare(words: list[str]) -> int:
    parser = make_parser(
        "megaclass compare A B [--fail-if-slower 5%%] [--allow-missing] [--fail-if-unclear] "
        "[--fail-if-more-memory 10%%] [--allow-other-machine]",
        "Compare the rows of two measurements, A the earlier, case by case: decided on the time of every step, with "
        "regard to how much runs of one program differ. Exit status 1: --fail-if-slower was given and a case is slower "
        "by more than the threshold or no longer measured, or what another --fail-if asks for; 2: nothing to "
        "compare; 0 otherwise.",
        dict.fromkeys(("A", "B"), "file of rows (.jsonl), or directory of them"),
        {
            "fail-if-slower": (percent, "by so many percent; without it, 5 percent decides on the words only"),
            "allow-missing": (False, "a case of A that B does not have is no failure"),
            "fail-if-unclear": (False, "few steps, uneven ones, or other programs were busy"),
            "fail-if-more-memory": (percent, "of GPU or process, by so many percent"),
            "allow-other-machine": (False, "compare rows of different machines too"),
        },
    )
    options = parse(parser, words)
    slower, more_memory = options.fail_if_slower, options.fail_if_more_memory

    from rich.console import Console

    from megaclass.report.comparison import LOST, THRESHOLD, compare_sources, comparison_table, summary
    from megaclass.report.console import ConsoleTable
    from megaclass.report.sources import read_sources
    from megaclass.results.verdict import SLOWER, UNCLEAR

    earlier, later = (read_sources([path]) for path in (options.A, options.B))
    threshold = THRESHOLD if slower is None else slower
    pairs = compare_sources(earlier, later, threshold, other_machine=options.allow_other_machine)
    # A log has no width, and 80 columns would cut the reasons into pieces.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(ConsoleTable(comparison_table("", pairs, more_memory)))
    console.print(summary(pairs, threshold), markup=False)
    bad = {SLOWER, LOST} if slower is not None else set()
    bad |= {UNCLEAR} if options.fail_if_unclear else set()
    judged = [pair for pair in pairs if pair.later or not options.allow_missing]
    return int(any(pair.word in bad or pair.needs_more(more_memory) for pair in judged))


def percent(text: str) -> float:
    """``5%`` as 0.05."""
    if not re.fullmatch(r"[0-9]{1,9}([.][0-9]+)?%", text):
        raise ArgumentTypeError(f"{text!r} is no percentage from 0%; write it as 5%")
    return float(text[:-1]) / 100
