"""What the graph of a study is made of, decided once: by the main process, for the jobs on a cluster's nodes as well.

>>> from pruning.study.studies import load
>>> graph = decide(load("lenet"), "lenet", "figures/lenet")
>>> graph.stale  # every run has a current record
()
>>> Graph.from_json(graph.to_json()) == graph
True

A job reads what was decided, for the records that it would decide from change while other jobs write theirs. Reading
imports no torch: a job's start costs seconds otherwise.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pruning.files import write_whole
from pruning.study.records import folder

if TYPE_CHECKING:
    from pruning.study.studies import Study


@dataclass(frozen=True)
class Graph:
    """A study, the name or file that it was ``given`` by, where its figures go, and what is to be done for it.

    ``stale`` holds benchmark, seed and method of each run without a current record, ``shared`` the methods that resume
    the dense training of ``unpruned``, ``whole`` the benchmarks of which every record is or will be there, ``pending``
    the records that no table has published. ``remake`` says whether every delivered model will be there once the stale
    runs are done.
    """

    study: str
    given: str
    figures: str
    benchmarks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    requirements: dict[str, tuple[float, ...]]
    stale: tuple[tuple[str, int, str], ...]
    shared: tuple[str, ...]
    whole: tuple[str, ...]
    pending: tuple[str, ...]
    remake: bool

    def to_json(self) -> str:
        """Write the graph as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """Read what ``to_json`` wrote."""
        values = json.loads(text)
        for name in ("benchmarks", "methods", "seeds", "shared", "whole", "pending"):
            values[name] = tuple(values[name])
        values["requirements"] = {name: tuple(goals) for name, goals in values["requirements"].items()}
        values["stale"] = tuple(map(tuple, values["stale"]))
        return cls(**values)


def decide(study: Study, given: str, figures: Path | str, train: bool = True) -> Graph:
    """Decide what there is to do for a study; without ``train``, only from the records that are there."""
    from pruning.study.store import all_current
    from pruning.study.work import shares_dense

    current = all_current(study.runs)
    stale = [run for run in study.runs if run not in current] if train else []
    return Graph(
        study=study.name,
        given=given,
        figures=str(figures),
        benchmarks=study.benchmarks,
        methods=study.methods,
        seeds=study.seeds,
        requirements=study.requirements,
        stale=tuple(sorted({(run.benchmark, run.seed, run.method) for run in stale})),
        shared=tuple(sorted({run.method for run in study.runs if shares_dense(run)})),
        # A benchmark's notebook trains what it lacks, so without training there are those of whole benchmarks alone.
        whole=tuple(
            name
            for name in study.benchmarks
            if train or all(run in current for run in study.runs if run.benchmark == name)
        ),
        pending=tuple(str(run.record_path) for run in study.runs if run.record_path.is_file()) if train else (),
        remake=bool(stale)
        and all(
            run not in current or run.method == "unpruned" or run.place("models", ".model").is_file()
            for run in study.runs
        ),
    )


def write(graph: Graph) -> None:
    """Write the graph for the jobs, under the study's ``work/``."""
    write_whole(_path(graph.study), graph.to_json().encode())


def read(study: str) -> Graph:
    """Read what the main process has written for a study, given by name or file; FileNotFoundError where it has not."""
    path = _path(Path(study).stem if study.endswith((".yaml", ".yml")) else study)
    try:
        return Graph.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is missing, which the main process writes: start the study by 'make study STUDY={study}', and "
            "keep the project's folder and its results where every node sees them"
        ) from error


def _path(study: str) -> Path:
    return folder(study) / "work" / "study.plan"
