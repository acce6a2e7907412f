"""Study files: ``studies/<name>.yaml`` spells out what is run.

    >>> study = load("digits")
    >>> len(study.runs)  # benchmarks × requirements × methods × seeds
    60
    >>> [run.name for run in study.select("digits-2c", 0.95, methods="[iterative]", seeds=[3])]
    ['digits-2c-0.95-iterative-3']

A study with a ``plan`` in place of requirements measures trade-offs: its runs are curves and scans of layers. A
benchmark that says its ``dataset`` and ``network`` is the study file's own (see ``pruning.study.benchmarks``).
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, field_validator

from pruning.methods import METHODS
from pruning.study.benchmarks import BENCHMARKS, Benchmark
from pruning.study.config import (
    CURVES,
    HASHED,
    SCAN,
    SMALL,
    Confidence,
    Plan,
    Recipe,
    Requirement,
    Run,
    Seed,
    Settings,
    Strict,
    StudyError,
    checked,
    member,
)
from pruning.study.paths import find_root, root

REPORTED_METHOD = "iterative"  # the report's own
NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


class _Spec(Strict):
    title: str
    plan: dict | None = None
    benchmarks: Annotated[dict[str, dict], Field(min_length=1)]
    methods: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    settings: dict = Field(default_factory=dict)
    confidence: Confidence | None = None

    @field_validator("benchmarks")
    @classmethod
    def _benchmarks(cls, parts: dict) -> dict:
        for name, part in parts.items():
            own = not {"dataset", "network"}.isdisjoint(part)
            if not own and name not in BENCHMARKS:
                known = f"{', '.join(BENCHMARKS)}; one of your own says its dataset and network"
                raise ValueError(f"no benchmark '{name}'; known are {known}")
            if own and name in BENCHMARKS:
                raise ValueError(f"'{name}' is a known benchmark: one with a dataset and network needs another name")
            if not NAME.fullmatch(name):
                raise ValueError(f"the name of a benchmark has letters, digits, '.', '_' and '-' alone, not '{name}'")
        return parts

    @field_validator("methods")
    @classmethod
    def _methods(cls, methods: list, about) -> list:
        for name in methods:
            member(CURVES if about.data.get("plan") else [*METHODS, HASHED], "method", name)
        return methods


class _Part(Strict):
    dataset: str | dict | None = None
    network: str | None = None
    requirements: Annotated[list[Requirement], Field(min_length=1)] | None = None
    settings: dict = Field(default_factory=dict)


class Study(Strict):
    """A study's name, title and runs, and what its runs are made of; ``plan`` where it measures trade-offs.

    ``own`` are the benchmarks that the study's ``file`` brings.
    """

    name: str
    file: Path
    title: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    requirements: dict[str, tuple[float, ...]]
    settings: dict[str, Settings]
    plan: Plan | None = None
    own: dict[str, Benchmark] = Field(default_factory=dict)

    @property
    def benchmarks(self) -> tuple[str, ...]:
        return tuple(self.settings)

    @property
    def runs(self) -> tuple[Run, ...]:
        return self.select()

    def select(self, benchmark=None, requirements=None, methods=None, seeds=None) -> tuple[Run, ...]:
        """Return the runs of the study, or those asked for; ``None`` means all that the study has.

        ``benchmark`` is a name or a list of names; requirements, methods and seeds may go beyond
        the study's own. Lists may come as text (``"[3]"``), as Papermill's ``-p`` hands them over.
        """
        names = _listed("benchmark", benchmark, str) or self.benchmarks
        for name in names:
            if name not in self.settings:
                raise StudyError(
                    f"benchmark '{name}' is not in the study '{self.name}', which has {', '.join(self.benchmarks)}"
                )
        wanted = _listed("requirements", requirements, float)
        if self.plan and wanted:
            raise StudyError(f"the study '{self.name}' measures trade-offs: its runs have no requirement")
        own = self.methods + ((SCAN,) if self.plan else ())
        return tuple(
            checked(
                Run,
                goal
                | {
                    "study": self.name,
                    "benchmark": name,
                    "own": self.own.get(name),
                    "method": method,
                    "seed": seed,
                    "settings": self.settings[name],
                },
            )
            for name in names
            for goal in self._goals(wanted or self.requirements.get(name, ()))
            for method in _listed("methods", methods, str) or own
            for seed in _listed("seeds", seeds, int) or self.seeds
        )

    def _goals(self, requirements) -> list[dict]:
        return [{"plan": self.plan}] if self.plan else [{"requirement": requirement} for requirement in requirements]


def names() -> list[str]:
    """Return the names of all studies."""
    return sorted(path.stem for path in (root() / "studies").glob("*.yaml"))


def located(name: str | Path) -> Path:
    """Return a study's file: ``studies/<name>.yaml``, or the one that ``name`` is the path of.

    A relative path counts from the current folder, or else from the project's: notebooks run in their own.
    """
    if not str(name).endswith((".yaml", ".yml")):
        path = root() / "studies" / f"{name}.yaml"
    else:
        path = Path(name).expanduser().absolute()
        if not path.is_file() and (project := find_root()):
            path = project / Path(name).expanduser()
    known = names() if find_root() else []
    if not path.is_file():
        raise StudyError(f"no study '{name}' ({path} is missing); there are {', '.join(known)}")
    if path.stem in known and path.parent != root() / "studies":
        raise StudyError(f"{path}: the project has a study '{path.stem}' in studies/: give the file another name")
    return path


def load(name: str | Path) -> Study:
    """Load the study ``studies/<name>.yaml``, or the one in a YAML file; ``StudyError`` says what is wrong."""
    path = located(name)
    try:
        values = yaml.load(path.read_bytes(), UniqueKeys)
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise StudyError(f"{path}: a study is a mapping with the keys {', '.join(_Spec.model_fields)}")
    spec = checked(_Spec, values, f"{path}: ")
    plan = None if spec.plan is None else checked(Plan, spec.plan, f"{path}: plan.")
    if plan and spec.confidence:
        raise StudyError(f"{path}: confidence: unknown key in a study with a plan, whose runs have no requirement")
    model = Recipe if plan else Settings
    common = checked(model, spec.settings, f"{path}: settings.").model_dump(exclude_unset=True)
    settings, requirements, brought = {}, {}, {}
    for benchmark, values in spec.benchmarks.items():
        place = f"{path}: benchmarks.{benchmark}."
        part = checked(_Part, values, place)
        if (part.requirements is None) != (plan is not None):
            wrong = "unknown key in a study with a plan" if plan else "the key is missing"
            raise StudyError(f"{place}requirements: {wrong}")
        own = checked(model, part.settings, f"{place}settings.").model_dump(exclude_unset=True)
        asked = {"confidence": spec.confidence} if spec.confidence else {}
        settings[benchmark] = Settings(**common | own | asked)
        if part.dataset is not None or part.network is not None:
            brought[benchmark] = _own(part, path, place, spec)
        requirements[benchmark] = tuple(part.requirements or ())
    lists = {f"benchmarks.{benchmark}.requirements": listed for benchmark, listed in requirements.items()}
    for what, listed in {**lists, "methods": tuple(spec.methods), "seeds": tuple(spec.seeds)}.items():
        if len(set(listed)) < len(listed):
            raise StudyError(f"{path}: {what} lists something twice: {list(listed)}")
    return Study(
        name=path.stem,
        file=path,
        title=spec.title,
        methods=tuple(spec.methods),
        seeds=tuple(spec.seeds),
        settings=settings,
        requirements=requirements,
        plan=plan,
        own=brought,
    )


def _own(part: _Part, path: Path, place: str, spec: _Spec) -> Benchmark:
    """Return the benchmark that a study file brings; its paths count from the file's folder."""
    given = part.model_dump(include={"dataset", "network"}, exclude_none=True)
    benchmark = checked(Benchmark, given, place)
    if not benchmark.is_notation and spec.plan and SMALL in spec.methods:
        raise StudyError(f"{place}network: '{SMALL}' scales a network in the report's notation, not a function's")
    return benchmark.beside(path.parent)


def find(benchmark: str, study: str | None = None) -> Study:
    """Load the study named, or else the largest with the benchmark and the report's method."""
    if study:
        return load(study)
    every = [one for one in map(load, names()) if one.plan is None]
    if candidates := [one for one in every if benchmark in one.benchmarks]:
        return max(candidates, key=lambda candidate: (REPORTED_METHOD in candidate.methods, len(candidate.runs)))
    known = dict.fromkeys(name for one in every for name in one.benchmarks)
    raise StudyError(f"no study has a benchmark '{benchmark}'; known are {', '.join(known)}")


class UniqueKeys(yaml.SafeLoader):
    """YAML's plain loader, but a key given twice is an error instead of a silent loss."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{name}' stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _listed(what: str, value, kind: type) -> list | None:
    """Return a list of ``kind`` from a list, a single value or their text; None stays None."""
    if value is None:
        return None
    if isinstance(value, str) and (kind is not str or value.lstrip().startswith("[")):
        with contextlib.suppress(yaml.YAMLError):
            value = yaml.safe_load(value)
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    accepted = (int, float) if kind is float else kind
    if not values or any(isinstance(item, bool) or not isinstance(item, accepted) for item in values):
        expected = f"a list of one or more {kind.__name__}s, such as -y '{what}: [...]'"
        raise StudyError(f"{what} must be {expected}; got {value!r}")
    return [kind(item) for item in values]
