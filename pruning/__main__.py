"""The command line: ``python -m pruning VERB``.

    python -m pruning run digits --seeds [0]
    python -m pruning status report

``python -m pruning --help`` lists the verbs. They need the extras ``study`` and ``deploy``; help needs neither.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

# Verbs whose module has a ``main`` of its own, which takes what follows the verb.
ELSEWHERE = {
    "savings": ("pruning.analysis.savings", "bytes and energy of a study's delivered models"),
    "deploy": ("pruning.deploy.command", "make a pruned network small, and ready for a device"),
    "report": ("pruning.analysis.report", "the notebooks as one page, build/report.html"),
}


def main(arguments: list[str] | None = None) -> int:
    """Carry out a verb; return the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a line is seen when it is said, in a log file and a pipe too
    parser = command_line()
    given, rest = parser.parse_known_args(arguments)
    if rest and given.verb not in ELSEWHERE:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return import_module(ELSEWHERE[given.verb][0]).main(rest) if given.verb in ELSEWHERE else _act(given)
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed: pip install 'synapse-pruning[study,deploy]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where it was", file=sys.stderr)
        return 130


def _act(given: argparse.Namespace) -> int:
    from pruning.files import DamagedFile
    from pruning.study.config import StudyError
    from pruning.study.datasets import DataError

    try:
        given.act(given)
    except (StudyError, DamagedFile, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def command_line() -> argparse.ArgumentParser:
    """Make the parser of all verbs; it imports nothing of the study, so that help is there at once."""
    parser = argparse.ArgumentParser(prog="python -m pruning", description="Studies of iterative synapse pruning.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(act: Callable, study: str | None = None, selects: bool = False, trains: bool = False) -> Any:
        text = act.__doc__ or ""
        verb = verbs.add_parser(act.__name__.rstrip("_"), help=text[0].lower() + text[1:-1], description=text)
        verb.set_defaults(act=act)
        if study:
            verb.add_argument("study", nargs="?", default=study, help=f"name or YAML file (default {study})")
        if selects:
            verb.add_argument("--benchmark", help="only this benchmark")
            for name in ("requirements", "methods", "seeds"):
                verb.add_argument(f"--{name}", help="only these, as a list such as [3]")
        if trains:
            verb.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:0")
            verb.add_argument("--jobs", type=int, default=1, help="processes that train side by side (default 1)")
        return verb

    add(list_)
    add(run, "digits", selects=True, trains=True)
    add(work, "digits", selects=True, trains=True)
    add(status, "digits", selects=True)
    add(table, "digits").add_argument("--whole", action="store_true", help="an error unless every run has a record")
    add(readme, "report")
    add(fresh, "digits", selects=True)
    add(tradeoff, "tradeoff", selects=True, trains=True)
    for name, (_, text) in ELSEWHERE.items():
        verbs.add_parser(name, help=text, add_help=False)
    return parser


def list_(given: argparse.Namespace) -> None:
    """List the studies."""
    from pruning.study.studies import load, names

    for name in names():
        study = load(name)
        print(f"{name:12} {len(study.runs):4} runs  {study.title}")


def run(given: argparse.Namespace) -> None:
    """Train what a study lacks."""
    from pruning.study.runner import run_all

    _let_go_when_terminated()
    run_all(_selected(given)[1], given.device, given.jobs)


def work(given: argparse.Namespace) -> None:
    """Take one run after the other that a study lacks and no other worker has, on any number of machines."""
    from pruning.study.work import work as take

    _let_go_when_terminated()
    study, runs = _selected(given)
    print(f"{study.name}: {take(runs, given.device)} runs done here", flush=True)


def status(given: argparse.Namespace) -> None:
    """Say how far a study is."""
    from pruning.study.store import all_current

    study, runs = _selected(given)
    print(f"{study.name}: {len(all_current(runs))} of {len(runs)} runs have a current record")


def table(given: argparse.Namespace) -> None:
    """Publish the records of a study and write its tables."""
    from pruning.analysis import tables, tradeoff
    from pruning.analysis.tables import mixed_processors
    from pruning.study.store import publish, recorded, wait_for_all
    from pruning.study.studies import load

    study = load(given.study)
    if getattr(given, "whole", False):
        wait_for_all(study)
    publish(study, lambda text: print(text, file=sys.stderr))
    records = recorded(study)
    for text in mixed_processors(records):
        print(f"warning: {text}", file=sys.stderr)
    paths = tradeoff.write_tables(study.name, records) if study.plan else [tables.write_table(study.name, records)]
    for path in paths:
        print(f"{path}: {len(records)} of {len(study.runs)} runs")


def readme(given: argparse.Namespace) -> None:
    """Put the tables and claims made from the records into README.md, docs/results.md and docs/fashion.md."""
    from pruning.analysis.readme import FASHION, PAGES
    from pruning.analysis.readme import readme as with_tables
    from pruning.files import write_whole
    from pruning.methods import METHODS
    from pruning.study.config import StudyError
    from pruning.study.paths import root
    from pruning.study.store import recorded
    from pruning.study.studies import load

    more: dict[str, list[dict]] = {"smallest": [], "methods": [], "certified": []}
    for name in more:
        with contextlib.suppress(StudyError):
            more[name] = recorded(load(name))
    records = recorded(load(given.study))
    for path in (root() / page for page in PAGES):
        text = path.read_text(encoding="utf-8")
        write_whole(path, with_tables(text, records, METHODS, *more.values()).encode())
    path = root() / FASHION
    write_whole(path, with_tables(path.read_text(encoding="utf-8"), recorded(load("fashion")), METHODS).encode())


def fresh(given: argparse.Namespace) -> None:
    """Remove the records of runs, so that they are done again."""
    from pruning.study.store import forget

    study, runs = _selected(given)
    forget(runs)
    print(f"{study.name}: {len(runs)} runs will be done again")


def tradeoff(given: argparse.Namespace) -> None:
    """Train what a study of trade-offs lacks and write its tables."""
    run(given)
    table(given)


def _let_go_when_terminated() -> None:
    """Have a cluster's or container's polite end release the run's lock, as an interrupt from the keyboard does."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def _selected(given: argparse.Namespace) -> tuple:
    from pruning.study.studies import load

    study = load(given.study)
    return study, study.select(given.benchmark, given.requirements, given.methods, given.seeds)


if __name__ == "__main__":
    sys.exit(main())
