"""What is run and what is kept: a study is the runs that its YAML file spells out.

    study = load("digits")
    record = perform(study.runs[0])     # trains, or reads the record if it is there and current

A run writes its record once, whole, under ``data/results/<study>/runs/``. A record is current by
what it was made from: the run's parameters, the protocol and the fingerprint of its data.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pruning import __version__
from pruning.accel import convolution
from pruning.methods import METHODS
from pruning.files import DamagedFile, save_state, set_aside, write_whole
from pruning.masks import masked_layers
from pruning.study import datasets
from pruning.study.hashed import ladder
from pruning.study.locks import locked
from pruning.notation import layers as network_layers
from pruning.study.paths import find_root, root
from pruning.study.records import digest, folder, read_record, write_record
from pruning.study.training import Recipe, Training, accuracy, network, prepare, train

# To be raised when a change to the code makes the same parameters give other numbers.
PROTOCOL = 2
# The same for a single method: how often it has become another one under its name.
REVISIONS = {
    "adaptive": 2, "adaptive-patient": 1, "adaptive-uncompensated": 1, "adaptive-strict": 1, "adaptive-constant": 1,
    "adaptive-coarse": 1,
}
REPORTED_METHOD = "iterative"  # the report's own
# No way of pruning, but taken as a method: few weights shared by all connections from the start (``hashed.ladder``).
HASHED = "hashed"
TRAJECTORY_POINTS = 80
HISTOGRAM_BINS = 41
# Layers of at most so many synapses show their mask in the record (the report's figure 1).
MASK_LIMIT = 4096

# name: (dataset, network in the report's notation)
BENCHMARKS = {
    f"{dataset}-{depth}": (dataset, f"{shape}-{rest}")
    for dataset, shape in (("digits", "28x28"), ("mnist", "28x28"), ("cifar10", "3x32x32"))
    for depth, rest in (("2c", "6c5-16c5-120-84-10"), ("3c", "6c3-16c3-36c4-240-120-84-10"))
} | {
    # Not the report's: the networks that papers on pruning compare at (Han et al. 2015, tables 3 and 4).
    "lenet-300-100": ("mnist", "28x28-300-100-10"),
    "lenet-5": ("mnist", "28x28-20c5-50c5-500-10"),
}


class StudyError(ValueError):
    """A study, a run or a parameter that cannot be carried out, with what would be right."""


class Strict(BaseModel):
    """Parameters that cannot change, of the right types, with no key too many."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Settings(Strict):
    """The training recipe (see ``training.Recipe``) and the control's limits in iterations.

    ``patience`` counts evaluations, ``budget`` iterations in all, ``ramp`` the iterations over
    which gradual pruning runs.
    """

    batch: Annotated[int, Field(ge=1)] = Recipe.batch
    learning_rate: Annotated[float, Field(gt=0)] = Recipe.learning_rate
    warmup: Annotated[int, Field(ge=0)] = Recipe.warmup
    momentum: Annotated[float, Field(ge=0, lt=1)] = Recipe.momentum
    weight_decay: Annotated[float, Field(ge=0)] = Recipe.weight_decay
    averaging: Annotated[float, Field(ge=0, lt=1)] = Recipe.averaging
    shift: Annotated[int, Field(ge=0)] = Recipe.shift
    flip: bool = Recipe.flip
    interval: Annotated[int, Field(ge=1)] = Recipe.interval
    patience: Annotated[int, Field(ge=1)] = 10
    budget: Annotated[int, Field(ge=1)] = 8000
    ramp: Annotated[int, Field(ge=1)] = 4000

    @property
    def recipe(self) -> Recipe:
        return Recipe(**{name: getattr(self, name) for name in Recipe.__dataclass_fields__})

    @property
    def limits(self) -> dict[str, int]:
        return {"patience": self.patience, "budget": self.budget, "ramp": self.ramp}


Requirement = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]


def _among(names: Iterable[str], what: str, name: str) -> str:
    if name not in names:
        raise ValueError(f"no {what} '{name}'; known are {', '.join(names)}")
    return name


class Run(Strict):
    """One training to one delivered model: benchmark × requirement × method × seed."""

    study: str
    benchmark: str
    requirement: Requirement
    method: str
    seed: Seed
    settings: Settings = Settings()

    @field_validator("benchmark")
    @classmethod
    def _benchmark(cls, name: str) -> str:
        return _among(BENCHMARKS, "benchmark", name)

    @field_validator("method")
    @classmethod
    def _method(cls, name: str) -> str:
        return _among([*METHODS, HASHED], "method", name)

    @property
    def dataset(self) -> str:
        return BENCHMARKS[self.benchmark][0]

    @property
    def network(self) -> str:
        return BENCHMARKS[self.benchmark][1]

    @property
    def name(self) -> str:
        """The run's file name without ending, unique within its study."""
        return f"{self.benchmark}-{self.requirement}-{self.method}-{self.seed}"

    @property
    def parameters(self) -> dict:
        """All that the run's numbers follow from, but the data."""
        chosen = self.model_dump(exclude={"study"})
        revision = {"revision": REVISIONS[self.method]} if self.method in REVISIONS else {}
        return {"protocol": PROTOCOL, "dataset": self.dataset, "network": self.network} | revision | chosen

    @property
    def key(self) -> str:
        """SHA-256 of the parameters."""
        return digest(self.parameters)

    @property
    def dense_key(self) -> str:
        """SHA-256 of what the training before any pruning follows from."""
        recipe = {name: getattr(self.settings, name) for name in Recipe.__dataclass_fields__}
        return digest({"protocol": PROTOCOL, "network": self.network, "seed": self.seed} | recipe)

    def place(self, kind: str, ending: str) -> Path:
        """Where the run's file of this kind (``runs``, ``models`` or ``work``) lies."""
        return folder(self.study) / kind / f"{self.name}{ending}"

    @property
    def record_path(self) -> Path:
        return self.place("runs", ".json")


class _BenchmarkSpec(Strict):
    requirements: Annotated[list[Requirement], Field(min_length=1)]
    settings: dict = {}


class _StudySpec(Strict):
    title: str
    benchmarks: Annotated[dict[str, _BenchmarkSpec], Field(min_length=1)]
    methods: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    settings: dict = {}

    @field_validator("benchmarks")
    @classmethod
    def _benchmarks(cls, found: dict) -> dict:
        for name in found:
            _among(BENCHMARKS, "benchmark", name)
        return found

    @field_validator("methods")
    @classmethod
    def _methods(cls, found: list) -> list:
        for name in found:
            _among([*METHODS, HASHED], "method", name)
        return found


class Study(Strict):
    """A study's name, title and runs, and what its runs are made of."""

    name: str
    title: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    requirements: dict[str, tuple[float, ...]]
    settings: dict[str, Settings]

    @property
    def benchmarks(self) -> tuple[str, ...]:
        return tuple(self.requirements)

    @property
    def runs(self) -> tuple[Run, ...]:
        return self.select()

    def select(self, benchmark=None, requirements=None, methods=None, seeds=None) -> tuple[Run, ...]:
        """The runs of the study, or those asked for; ``None`` means all that the study has.

        ``benchmark`` is a name or a list of names; requirements, methods and seeds may go beyond
        the study's own. Lists may come as text (``"[3]"``), as Papermill's ``-p`` hands them over.
        """
        names = _listed("benchmark", benchmark, str) or self.benchmarks
        for name in names:
            if name not in self.requirements:
                raise StudyError(
                    f"benchmark '{name}' is not in the study '{self.name}', which has {', '.join(self.benchmarks)}"
                )
        wanted = _listed("requirements", requirements, float)
        return tuple(
            checked(Run, {
                "study": self.name, "benchmark": name, "requirement": requirement, "method": method, "seed": seed,
                "settings": self.settings[name],
            })
            for name in names
            for requirement in wanted or self.requirements[name]
            for method in _listed("methods", methods, str) or self.methods
            for seed in _listed("seeds", seeds, int) or self.seeds
        )


def names() -> list[str]:
    """The studies that there are; one that names its kind belongs to another module."""
    files = (root() / "studies").glob("*.yaml")
    return sorted(path.stem for path in files if not re.search(rb"(?m)^kind:", path.read_bytes()))


def load(name: str | Path) -> Study:
    """The study ``studies/<name>.yaml``, or the one in a YAML file; ``StudyError`` says what is wrong."""
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else root() / "studies" / f"{name}.yaml"
    if not path.is_file():
        raise StudyError(f"no study '{name}' ({path} is missing); there are {', '.join(names())}")
    try:
        found = yaml.load(path.read_bytes(), UniqueKeys)
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(found, dict):
        raise StudyError(f"{path}: a study is a mapping with the keys {', '.join(_StudySpec.model_fields)}")
    spec = checked(_StudySpec, found, f"{path}: ")
    common = checked(Settings, spec.settings, f"{path}: settings.").model_dump(exclude_unset=True)
    settings = {}
    for benchmark, part in spec.benchmarks.items():
        own = checked(Settings, part.settings, f"{path}: benchmarks.{benchmark}.settings.")
        settings[benchmark] = Settings(**common | own.model_dump(exclude_unset=True))
    lists = {f"benchmarks.{benchmark}.requirements": part.requirements for benchmark, part in spec.benchmarks.items()}
    for what, values in (lists | {"methods": spec.methods, "seeds": spec.seeds}).items():
        if len(set(values)) < len(values):
            raise StudyError(f"{path}: {what} lists something twice: {values}")
    return Study(
        name=path.stem, title=spec.title, methods=tuple(spec.methods), seeds=tuple(spec.seeds), settings=settings,
        requirements={benchmark: tuple(part.requirements) for benchmark, part in spec.benchmarks.items()},
    )


def find(benchmark: str, study: str | None = None) -> Study:
    """The study named, or else of those that have the benchmark the one with the most runs, the report's method among them."""
    if study:
        return load(study)
    candidates = [candidate for candidate in map(load, names()) if benchmark in candidate.benchmarks]
    if candidates:
        return max(candidates, key=lambda candidate: (REPORTED_METHOD in candidate.methods, len(candidate.runs)))
    raise StudyError(f"no study has a benchmark '{benchmark}'; known are {', '.join(BENCHMARKS)}")


def current(run: Run) -> dict | None:
    """The run's record if it is whole and made from the same parameters and data, else None.

    Where the data is not at hand its fingerprint cannot be compared, and the record counts.
    """
    if not run.record_path.is_file():
        return None
    try:
        record = read_record(run.record_path)
    except DamagedFile:
        return None
    here = fingerprint_of(run.dataset)
    same_data = here is None or record.get("fingerprint") == here
    return record if record.get("key") == run.key and same_data else None


def recorded(study: Study) -> list[dict]:
    """The current records of the study's runs, in their order; ``StudyError`` where there is none.

    What else lies in the folder, of older parameters or of runs no longer asked for, is left out.
    """
    found = [record for run in study.runs if (record := current(run))]
    if not found:
        place = folder(study.name) / "runs"
        raise StudyError(f"no current record of the study '{study.name}' in {place}: run 'make study STUDY={study.name}'")
    return found


def perform(
    run: Run, device: str = "cpu", progress: Callable | None = None, warn: Callable[[str], None] = print,
    every: float = 20.0,
) -> dict:
    """The run's record: read if it is current, else trained for, from its last checkpoint on.

    A record or checkpoint that cannot be used is set aside with a word to ``warn``. Another
    process at work on the same run is waited for. Everything on the CPU runs on one thread, the
    denormal numbers taken as zero.
    """
    target = checked_device(device)
    record = current(run)
    if record is not None:
        return record
    lock = run.place("work", ".lock")
    with locked(lock, waiting=lambda pid: warn(f"process {pid} is at work on {run.name}: waiting for it")):
        record = current(run)
        if record is not None:
            return record
        if run.record_path.exists():
            reason = "of other parameters or data"
            try:
                read_record(run.record_path)
            except DamagedFile as error:
                reason = f"damaged ({error})"
            aside = set_aside(run.record_path, run.place("work", "").parent / "set-aside")
            warn(f"the record of {run.name} is {reason}; set aside as {aside}, the run is done again")
        for scrap in folder(run.study).glob(f"*/.{run.name}.*.tmp"):
            scrap.unlink()  # a process that was killed while it wrote leaves one behind
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        dataset = dataset_of(run.dataset, str(target))
        checkpoint = run.place("work", ".checkpoint")
        if run.method == HASHED:  # many short trainings: one that is stopped starts again
            training = ladder(
                run.network, dataset, run.settings.recipe, run.requirement, run.seed, run.settings.patience,
                run.settings.budget, progress=progress,
            )
        else:
            training = prepare(
                run.network, run.settings.recipe, run.requirement, METHODS[run.method], run.seed, target,
                **run.settings.limits,
            )
            train(
                training, dataset, run.settings.recipe, run.seed, checkpoint, f"{run.key} {dataset.fingerprint}", every,
                dense=folder(run.study) / "work" / f"dense-{run.benchmark}-{run.seed}-{target.type}",
                dense_owner=f"{run.dense_key} {dataset.fingerprint}", progress=progress, warn=warn,
            )
        record = _record(run, dataset, training, target)
        delivered = training.control.delivered()
        save_state(run.place("models", ".model"), {"network": run.network, "state": delivered.state_dict()}, run.key)
        write_record(run.record_path, record)
        checkpoint.unlink(missing_ok=True)
        return record


def checked_device(name: str) -> torch.device:
    """The device of this name; ``StudyError`` where this machine does not have it."""
    unknown = f"no device '{name}': say cpu, cuda or cuda:0"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise StudyError(unknown) from error
    if device.type not in ("cpu", "cuda"):
        raise StudyError(unknown)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise StudyError(f"device '{name}' was asked for, but torch sees no CUDA device here: say cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StudyError(f"device '{name}' was asked for, but there are {torch.cuda.device_count()} CUDA devices")
    return device


def _record(run: Run, dataset: datasets.Dataset, training: Training, device: torch.device) -> dict:
    """Everything about a finished run, in plain values; the test split is read here, once."""
    control, best = training.control, training.control.best
    delivered = control.delivered()
    dense = network(run.network, run.seed)
    if "dense" in control.pruner.checkpoints:
        dense.load_state_dict(control.pruner.checkpoints["dense"]["average"])
    before = masked_layers(dense)
    table = network_layers(run.network)
    found = masked_layers(delivered)
    parts = [
        {
            "name": layer.name, "kind": layer.kind, "shape": list(layer.shape), "synapses": layer.synapses,
            "significant": found[layer.name].significant, "biases": layer.biases, "positions": layer.output_positions,
        }
        | ({"mask": _packed(mask)} if (mask := found[layer.name].mask).numel() == layer.synapses <= MASK_LIMIT else {})
        for layer in table
    ]
    synapses = sum(part["synapses"] for part in parts)
    significant = sum(part["significant"] for part in parts)
    macs = sum(layer.macs for layer in table)
    iterations = best["iteration"] if best else training.iteration
    unpruned = control.start
    result = {
        "synapses": synapses,
        "significant": significant,
        "density": significant / synapses,
        "validation_accuracy": best["accuracy"] if best else control.events[-1].accuracy,
        "test_accuracy": accuracy(delivered, dataset.test),
        "iterations": iterations,
        "iterations_unpruned": unpruned,
        "effort": iterations / unpruned if best and unpruned else None,
        "reached": control.reached,
        "iterations_spent": training.iteration,
        "stopped": control.events[-1].action,
        "macs_dense": macs,
        # Hashed connections share their weights, but each of them multiplies.
        "macs": sum(
            getattr(found[layer.name], "connections", found[layer.name].significant) * layer.output_positions for layer in table
        ),
        # A backward pass takes about twice the forward pass's multiply-accumulates.
        "training_macs": 3 * macs * run.settings.batch * iterations,
    }
    return {
        "run": {"study": run.study, "name": run.name} | run.parameters,
        "key": run.key,
        "fingerprint": dataset.fingerprint,
        "data": dataset.title,
        "result": result,
        "layers": parts,
        "trajectory": _trajectory(control.events),
        "rounds": _rounds(control.events),
        "histograms": {
            name: {
                "before": _histogram(before[name].weight),
                "after": _histogram(layer.weight[layer.mask]),
            }
            for name, layer in found.items()
        },
        "environment": environment(device),
        "seconds": round(training.seconds, 2),
    }


def _trajectory(events) -> dict[str, list]:
    step = max(1, -(-len(events) // TRAJECTORY_POINTS))
    kept = events[::step] + ([events[-1]] if (len(events) - 1) % step else [])
    return {
        "iteration": [event.iteration for event in kept],
        "accuracy": [round(event.accuracy, 5) for event in kept],
        "density": [round(event.density, 5) for event in kept],
    }


def _rounds(events) -> list[dict]:
    pruned = [event for event in events if event.thresholds]
    step = max(1, -(-len(pruned) // (TRAJECTORY_POINTS // 2)))
    return [
        {
            "iteration": event.iteration,
            "thresholds": {name: float(f"{value:.4g}") for name, value in event.thresholds.items()},
            "densities": {name: round(value, 5) for name, value in event.densities.items()},
        }
        for event in pruned[::step]
    ]


def _packed(mask: torch.Tensor) -> str:
    """A mask as base64 of its bits in row-major order, eight to a byte (``numpy.unpackbits``)."""
    return base64.b64encode(np.packbits(mask.cpu().numpy())).decode()


def _histogram(weights: torch.Tensor) -> dict:
    weights = weights.detach().cpu()
    limit = float(weights.abs().max()) if weights.numel() else 0.0
    limit = float(f"{limit:.4g}") or 1.0
    # The rounded limit may lie just below the largest weight, which belongs to the last bin.
    counts = torch.histc(weights.clamp(-limit, limit), HISTOGRAM_BINS, -limit, limit)
    return {"limit": limit, "counts": [int(count) for count in counts]}


def environment(device: torch.device | str = "cpu") -> dict:
    """What the numbers were made with: versions, revision, device, threads, and who did the convolutions."""
    device = torch.device(device)
    found = {name: metadata.version(name) for name in ("torch", "torchvision", "numpy")}
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "pruning": __version__, "revision": _revision(), "python": platform.python_version(), **found,
        "device": cuda or _processor(), "threads": torch.get_num_threads(), "system": platform.system(),
        "convolutions": convolution.form() if device.type == "cpu" else "torch",
    }


@functools.cache
def _revision() -> str:
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=find_root(), capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "unknown"


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@functools.lru_cache(maxsize=2)
def dataset_of(name: str, device: str) -> datasets.Dataset:
    """The dataset, kept in memory for the next run."""
    return datasets.load(name, device)


@functools.cache
def fingerprint_of(name: str) -> str | None:
    """The fingerprint of the dataset as it is here, None where it is not at hand."""
    return datasets.fingerprint(name)


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
    """A list of ``kind`` from a list, a single value or their text; None stays None."""
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


def checked(model: type[Strict], values: dict, place: str = "") -> Strict:
    """The model made of values; ``StudyError`` names each key, what is wrong and what was given.

    ``place`` is said before each key: the file and the keys above.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        said = []
        for finding in error.errors():
            key = place + ".".join(str(part) for part in finding["loc"])
            if finding["type"] == "extra_forbidden":
                known = _BenchmarkSpec if finding["loc"][0] == "benchmarks" else model
                said.append(f"{key}: unknown key; known are {', '.join(known.model_fields)}")
            elif finding["type"] == "missing":
                said.append(f"{key}: the key is missing")
            else:
                said.append(f"{key}: {finding['msg'].removeprefix('Value error, ')} (got {finding['input']!r})")
        raise StudyError("; ".join(said)) from error


def main(arguments: list[str] | None = None) -> int:
    """List the studies; of one: see how far it is, run it, make its table, put it into the README, start it afresh."""
    parser = argparse.ArgumentParser(prog="python -m pruning.study.runner", description=main.__doc__)
    parser.add_argument("action", choices=("list", "status", "run", "table", "readme", "fresh"))
    parser.add_argument("study", nargs="?", default="digits")
    parser.add_argument("--benchmark", help="only this benchmark")
    for name in ("requirements", "methods", "seeds"):
        parser.add_argument(f"--{name}", help="only these, as a list such as [3]")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    from pruning.analysis.readme import readme
    from pruning.analysis.tables import write_table

    try:
        if given.action == "list":
            for name in names():
                found = load(name)
                print(f"{name:10} {len(found.runs):4} runs  {found.title}")
            return 0
        study = load(given.study)
        chosen = study.select(given.benchmark, given.requirements, given.methods, given.seeds)
        if given.action == "status":
            done = sum(current(run) is not None for run in chosen)
            print(f"{study.name}: {done} of {len(chosen)} runs have a current record")
        elif given.action == "table":
            found = recorded(study)
            print(f"{write_table(study.name, found)}: {len(found)} of {len(study.runs)} runs")
        elif given.action == "readme":
            path, more = root() / "README.md", {"smallest": [], "methods": []}
            for name in more:
                with contextlib.suppress(StudyError):
                    more[name] = recorded(load(name))
            text = readme(path.read_text(encoding="utf-8"), recorded(study), METHODS, more["smallest"], more["methods"])
            write_whole(path, text.encode())
        elif given.action == "fresh":
            for run in chosen:
                kept = (run.record_path, run.place("work", ".checkpoint"), run.place("models", ".model"))
                for path in (*kept, *folder(run.study).glob(f"work/dense-{run.benchmark}-{run.seed}-*/*.dense")):
                    path.unlink(missing_ok=True)
            print(f"{study.name}: {len(chosen)} runs will be done again")
        else:
            for number, run in enumerate(chosen, start=1):
                result = perform(run, given.device)["result"]
                print(
                    f"{number}/{len(chosen)} {run.name}: density {result['density']:.4f}, "
                    f"test accuracy {result['test_accuracy']:.4f}, {result['iterations']} iterations", flush=True,
                )
    except (StudyError, DamagedFile, datasets.DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
