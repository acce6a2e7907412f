"""How long the studies `report` and `methods` would take on a cluster, simulated from the seconds in their records.

    python -m benchmarks.cluster

prints the table of docs/clusters.md. Assumptions: every core is as fast as the one that the records were made on; a job
takes `JOB` seconds besides its training (Slurm's start, Snakemake twice, Python, the dataset), one in a notebook
`NOTEBOOK` more, a worker `START` once; nodes are there at once and none fails; tables and figures come on top. Jobs and
workers take the longest first, after the dense training that they resume.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from statistics import median

from pruning.study.config import Run
from pruning.study.store import all_current
from pruning.study.studies import load
from pruning.study.work import shares_dense

STUDIES = ("report", "methods")
WORKERS = (8, 32, 128, 512)
JOB, NOTEBOOK, START = 8.5, 14.0, 6.0  # seconds, measured on two cores of an AMD EPYC


@dataclass
class Task:
    """Seconds of one core, and the tasks that must be over before."""

    seconds: float
    after: set[Hashable] = field(default_factory=set)


def own_seconds() -> dict[Run, float]:
    """Return the seconds of every run of its own: less those of the dense training that it resumes."""
    records = {run: record["seconds"] for name in STUDIES for run, record in all_current(load(name).runs).items()}
    groups = defaultdict(list)
    for run, seconds in records.items():
        groups[run.study, run.benchmark, run.requirement, run.method].append(seconds)
    limited = {}
    for run, seconds in records.items():
        # A few clocks ran on while their machine or their process stood still.
        typical = median(groups[run.study, run.benchmark, run.requirement, run.method])
        limited[run] = seconds if seconds < 3 * typical else typical
    return {run: max(seconds - limited.get(before(run, limited), 0.0), 0.1) for run, seconds in limited.items()}


def before(run: Run, runs: dict[Run, float]) -> Run | None:
    """Return the run whose dense training this one resumes; that of a lower requirement for `unpruned` itself."""
    same = [
        one
        for one in runs
        if one.method == "unpruned" and (one.study, one.benchmark, one.seed) == (run.study, run.benchmark, run.seed)
    ]
    if run.method == "unpruned":
        return max(
            (one for one in same if one.requirement < run.requirement), key=lambda one: one.requirement, default=None
        )
    return next((one for one in same if one.requirement == run.requirement), None) if shares_dense(run) else None


def tasks(seconds: dict[Run, float], part, overhead: float) -> dict[Hashable, Task]:
    """Join the runs of which `part` says the same into one task each, so many seconds longer."""
    made: dict[Hashable, Task] = defaultdict(lambda: Task(overhead))
    for run, own in seconds.items():
        made[part(run)].seconds += own
        if (dense := before(run, seconds)) is not None and part(dense) != part(run):
            made[part(run)].after.add(part(dense))
    return made


def makespan(todo: dict[Hashable, Task], workers: int) -> float:
    """Return the seconds until all is done, the longest of what can be begun first."""
    waits = {name: set(task.after) for name, task in todo.items()}
    followers = defaultdict(list)
    for name, task in todo.items():
        for other in task.after:
            followers[other].append(name)
    wanted = {name for task in todo.values() for name in task.after}

    def place(name: Hashable) -> tuple:
        return name not in wanted, -todo[name].seconds, str(name)

    ready = sorted((place(name), name) for name in todo if not waits[name])
    running: list[tuple[float, str, Hashable]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + todo[name].seconds, str(name), name))
        now, _, over = heapq.heappop(running)
        for name in followers[over]:
            waits[name].discard(over)
            if not waits[name]:
                heapq.heappush(ready, (place(name), name))
    return now


def table() -> str:
    """Return the table of makespans and speed-ups as Markdown."""
    seconds = own_seconds()
    whole = sum(seconds.values())
    ways = {
        "a job is a benchmark and seed, in a notebook": tasks(
            seconds, lambda run: (run.study, run.benchmark, run.seed), JOB + NOTEBOOK
        ),
        "a job is a benchmark, seed and method (`PROFILE=slurm`)": tasks(
            seconds, lambda run: (run.study, run.benchmark, run.seed, run.method), JOB
        ),
        "a job is a run": tasks(seconds, lambda run: run, JOB),
        "workers take runs (`make cluster`)": tasks(seconds, lambda run: run, 0.0),
    }
    rows = [f"| {' | '.join(['', *(f'{count} cores' for count in WORKERS)])} |", "|" + "---|" * (len(WORKERS) + 1)]
    for name, todo in ways.items():
        start = START if name.startswith("workers") else 0.0
        spans = [start + makespan(todo, count) for count in WORKERS]
        cells = [f"{span:,.0f} s, {whole / span:.0f}×" for span in spans]
        rows.append(f"| {' | '.join([name, *cells])} |")
    longest = max(seconds, key=lambda run: seconds[run])
    rows.append(
        f"\n{len(seconds):,} runs, {whole:,.0f} s of one core; the longest run, {longest.name} of `{longest.study}`, "
        f"takes {seconds[longest]:.0f} s, and nothing is done sooner."
    )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
