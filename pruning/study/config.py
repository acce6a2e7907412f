"""What a run follows from: strict, frozen models of the recipe, the limits and the runs, and their keys.

    >>> run = Run(study="digits", benchmark="digits-2c", requirement=0.95, method="iterative", seed=0)
    >>> run.name, run.network
    ('digits-2c-0.95-iterative-0', '28x28-6c5-16c5-120-84-10')
    >>> len(run.key)  # SHA-256 of all that the run's numbers follow from, but the data
    64

A run has a requirement (pruning, or a ladder of HashedNets) or a plan (a trade-off curve at fixed compression
ratios, or a scan of single layers).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from pruning.methods import METHODS
from pruning.study.benchmarks import BENCHMARKS, Benchmark, Data, Strict, StudyError, member
from pruning.study.networks import source
from pruning.study.records import digest, folder

# Raise it when a change to the code makes the same parameters give other numbers; the second one for curves alone.
PROTOCOL, CURVE_PROTOCOL = 2, 1
HASHED = "hashed"  # not a way of pruning, but compared as a method: few weights shared by all connections
HASHED_FIELDS = {"keep": 0.7}  # each network of the ladder has so many times the weights of the last
PRUNERS = ("iterative", "gradual", "oneshot", "random", "adaptive")  # the methods that trade-off curves prune with
SMALL, SCAN = "small", "scan"
CURVES = ("unpruned", *PRUNERS, SMALL)
STEPS = 20  # prunings of a stage, where a method prunes little by little

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Requirement = Annotated[float, Field(gt=0, lt=1)]
Confidence = Annotated[float, Field(gt=0, lt=1)]
Ratio = Annotated[float, Field(gt=1)]
Density = Annotated[float, Field(gt=0, lt=1)]


class Recipe(Strict):
    """How every network is trained, pruned or not.

    ``batch`` images per iteration; SGD with Nesterov momentum at a ``learning_rate`` that rises over the first
    ``warmup`` iterations (large early steps can kill ReLUs permanently) and is constant from there; ``averaging`` is
    the decay per iteration of the exponential moving average of the weights that is evaluated and delivered (Polyak
    averaging: what a decaying rate would bring, without a horizon that the control would have to know); training images
    are shifted by up to ``shift`` pixels and, with ``flip``, mirrored at random; ``interval`` iterations lie between
    evaluations.
    """

    batch: Count = 128
    learning_rate: Annotated[float, Field(gt=0)] = 0.05
    warmup: Annotated[int, Field(ge=0)] = 200
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    averaging: Annotated[float, Field(ge=0, lt=1)] = 0.995
    shift: Annotated[int, Field(ge=0)] = 1
    flip: bool = False
    interval: Count = 100


class Settings(Recipe):
    """The recipe and the control's limits.

    ``patience`` counts evaluations, ``budget`` all iterations, ``ramp`` the iterations that gradual pruning takes. With
    ``confidence`` half of the validation images steer, and the others certify what is delivered.
    """

    patience: Count = 10
    budget: Count = 8000
    ramp: Count = 4000
    confidence: Confidence | None = None

    @property
    def limits(self) -> dict:
        return self.model_dump(exclude={*Recipe.model_fields, "confidence"})

    @property
    def values(self) -> dict:
        """All that was set, without what is off."""
        return self.model_dump(exclude_none=True)

    @property
    def recipe(self) -> dict:
        return self.model_dump(include=set(Recipe.model_fields))


class Plan(Strict):
    """How long curves are trained, in iterations, and where they are measured.

    ``dense`` iterations before any pruning, ``stage`` more for each of the compression ``ratios``, with ``rounds`` of
    pruning where a method works in rounds; ``densities`` of a single layer are what a scan measures.
    """

    dense: Count
    stage: Count
    rounds: Count
    ratios: Annotated[tuple[Ratio, ...], Field(min_length=1, strict=False)]
    densities: Annotated[tuple[Density, ...], Field(min_length=1, strict=False)]

    @field_validator("ratios")
    @classmethod
    def _increasing(cls, ratios: tuple) -> tuple:
        if list(ratios) != sorted(set(ratios)):
            raise ValueError("must rise, without one twice")
        return ratios

    @model_validator(mode="after")
    def _room(self) -> Plan:
        if self.stage < 2 * self.rounds:
            raise ValueError(f"half a stage of {self.stage} iterations has no room for {self.rounds} rounds")
        return self


class Run(Strict):
    """One run, which leaves one record: benchmark × method × seed, to a ``requirement`` or by a ``plan``.

    ``own`` says what the benchmark is made of where a study file brings it.
    """

    study: str
    benchmark: str
    own: Benchmark | None = None
    requirement: Requirement | None = None
    plan: Plan | None = None
    method: str
    seed: Seed
    settings: Settings = Settings()

    @field_validator("method")
    @classmethod
    def _method(cls, name: str, about) -> str:
        return member([*CURVES, SCAN] if about.data.get("plan") else [*METHODS, HASHED], "method", name)

    @model_validator(mode="after")
    def _goal(self) -> Run:
        if self.own is None:
            member(BENCHMARKS, "benchmark", self.benchmark)
        if (self.requirement is None) == (self.plan is None):
            raise ValueError("a run has either a requirement or a plan")
        measured = getattr(METHODS[self.method].strategy, "measured", 0) if self.method in METHODS else 0
        if self.plan and self.plan.stage < 2 * (measured + 1) * self.plan.rounds:
            raise ValueError(
                f"half a stage of {self.plan.stage} iterations has no room for {self.plan.rounds} rounds of "
                f"'{self.method}', each of which measures on {measured} mini-batches: give it a stage of at least "
                f"{2 * (measured + 1) * self.plan.rounds}, or fewer rounds"
            )
        if self.method == HASHED and self.settings.confidence:
            raise ValueError("HashedNets have no path of networks that could be certified: leave out 'hashed'")
        return self

    @property
    def kind(self) -> str:
        """``requirement``, ``ladder`` (of HashedNets), ``curve`` or ``scan`` (of layers)."""
        if self.plan:
            return SCAN if self.method == SCAN else "curve"
        return "ladder" if self.method == HASHED else "requirement"

    @property
    def made_of(self) -> Benchmark:
        """The benchmark's dataset and network."""
        return self.own or BENCHMARKS[self.benchmark]

    @property
    def dataset(self) -> str | Data:
        """The dataset as ``datasets.load`` takes it."""
        return self.made_of.dataset

    @property
    def network(self) -> str:
        """The network in the report's notation, or the function that makes it."""
        return self.made_of.network

    @property
    def _network(self) -> dict:
        """What of the network the run's numbers follow from: a function by its module's source too."""
        made_of = self.made_of
        return {"network": made_of.network} | ({} if made_of.is_notation else {"source": source(made_of)})

    @property
    def name(self) -> str:
        """The name of the run's files, unique within its study."""
        parts = (self.benchmark, self.requirement, self.method, self.seed)
        return "-".join(str(part) for part in parts if part is not None)

    @property
    def parameters(self) -> dict:
        """All that the run's numbers follow from, but the data; the method by its own fields."""
        own = {"kind": self.kind, "dataset": self.made_of.label, **self._network, "seed": self.seed}
        if self.plan is None:
            return own | {
                "protocol": PROTOCOL,
                "requirement": self.requirement,
                "settings": self.settings.values,
                "fields": HASHED_FIELDS if self.method == HASHED else method_fields(self.method),
            }
        unused = {"ratios", "stage", "rounds"} if self.method == SCAN else {"densities"}
        fields = {SCAN: {}, SMALL: {"scaled": "widths"}}
        return own | {
            "protocol": [PROTOCOL, CURVE_PROTOCOL],
            "settings": self.settings.recipe,
            "plan": self.plan.model_dump(mode="json", exclude=unused),
            "fields": fields[self.method] if self.method in fields else method_fields(self.method) | {"steps": STEPS},
        }

    @property
    def key(self) -> str:
        """SHA-256 of the parameters."""
        return digest(self.parameters)

    @property
    def dense_key(self) -> str:
        """SHA-256 of what the training before any pruning follows from, but the data."""
        split = {"confidence": True} if self.settings.confidence else {}  # other images steer
        return digest({"protocol": PROTOCOL, **self._network, "seed": self.seed} | self.settings.recipe | split)

    @property
    def description(self) -> dict:
        """What a record says of its run: its place in the study, and the parameters."""
        return {name: getattr(self, name) for name in ("study", "name", "benchmark", "method")} | self.parameters

    def place(self, kind: str, ending: str) -> Path:
        """Return the path of the run's file of this kind: ``work``, ``models`` or ``compressed``."""
        return folder(self.study) / kind / f"{self.name}{ending}"

    @property
    def record_path(self) -> Path:
        """Where the run writes its record, before the table publishes it."""
        return self.place("work", ".json")


def method_fields(name: str) -> dict:
    """Return all that a method's numbers follow from, as JSON has it: infinity is text."""
    return json.loads(json.dumps(METHODS[name].fields()), parse_constant=str)


Checked = TypeVar("Checked", bound=Strict)


def checked(model: type[Checked], values: dict, place: str = "") -> Checked:
    """Make the model of ``values``; ``StudyError`` names each wrong key, what is wrong and what was given.

    ``place`` comes before each key: the file and the keys above.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise StudyError("; ".join(_worded(model, place, part) for part in error.errors())) from error


def _worded(model: type[Strict], place: str, error: Mapping) -> str:
    key = place + ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{key}: the key is missing"
    if error["type"] != "extra_forbidden":
        return f"{key}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r})"
    return f"{key}: unknown key; known are {', '.join(model.model_fields)}"
