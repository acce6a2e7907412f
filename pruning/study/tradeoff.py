"""Accuracy against density at fixed compression ratios, and how much each layer alone can lose.

    study = load("tradeoff")
    record = perform(study.curves[0])     # trains, or reads the record if it is there and current

The compression ratio is all synapses over those left, the theoretical speed-up all
multiply-accumulates of an image over those of the synapses left (Blalock et al. 2020). Every
method starts from one dense training of ``dense`` iterations a seed and has at the k-th ratio had
``stage`` times k more. ``iterative``, ``random`` and ``gradual`` pass through all ratios on one
trajectory, ``oneshot`` is pruned from the dense network to each of them at once and has all the
rest to recover; ``small`` is a dense network with all widths scaled to the same number of
synapses, trained from its first weights for the sum, ``unpruned`` the whole one for the longest.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import yaml
from pydantic import Field, field_validator, model_validator

from pruning import allocation
from pruning.methods import METHODS, Method
from pruning.files import DamagedFile, load_state, save_state, set_aside, write_whole
from pruning.masks import masked_layers
from pruning.schedules import PolynomialSchedule
from pruning.strategies import Rounds
from pruning.study import datasets
from pruning.study.locks import locked
from pruning.notation import Layer
from pruning.notation import layers as network_layers
from pruning.study.paths import root
from pruning.study.records import digest, folder, read_record, write_record
from pruning.study.runner import (
    BENCHMARKS,
    PROTOCOL,
    Seed,
    Settings,
    Strict,
    StudyError,
    UniqueKeys,
    checked,
    checked_device,
    dataset_of,
    environment,
    fingerprint_of,
)
from pruning.study.training import Recipe, Training, accuracy, batches, generator, prepare, step

# To be raised when a change to this module makes the same parameters give other numbers.
VERSION = 1
LOTS = 4  # the purpose of a random generator (see ``training.generator``)
STEPS = 20  # prunings of a stage, where a method prunes little by little
PRUNERS = ("iterative", "gradual", "oneshot", "random")
KINDS = ("unpruned", *PRUNERS, "small")
SCAN = "scan"
COLUMNS = (
    "benchmark", "method", "ratio", "seed", "density", "compression", "speedup", "validation_accuracy",
    "test_accuracy", "iterations",
)
SCAN_COLUMNS = ("benchmark", "layer", "kind", "density", "seed", "validation_accuracy")

Count = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(gt=1)]
Density = Annotated[float, Field(gt=0, lt=1)]


class Plan(Strict):
    """How long is trained, and where is looked: iterations, compression ratios, densities of one layer alone."""

    dense: Count
    stage: Count
    rounds: Count
    ratios: Annotated[tuple[Ratio, ...], Field(min_length=1, strict=False)]
    densities: Annotated[tuple[Density, ...], Field(min_length=1, strict=False)]

    @field_validator("ratios")
    @classmethod
    def _rising(cls, found: tuple) -> tuple:
        if list(found) != sorted(set(found)):
            raise ValueError("must rise, without one twice")
        return found

    @model_validator(mode="after")
    def _room(self) -> Plan:
        if self.stage < 2 * self.rounds:
            raise ValueError(f"half a stage of {self.stage} iterations has no room for {self.rounds} rounds")
        return self


class _Spec(Plan):
    kind: str
    title: str
    benchmarks: Annotated[dict[str, dict], Field(min_length=1)]
    methods: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]

    @field_validator("benchmarks", "methods", "seeds")
    @classmethod
    def _known(cls, found, about):
        known = {"benchmarks": BENCHMARKS, "methods": KINDS}.get(about.field_name, found)
        for name in found:
            if name not in known:
                raise ValueError(f"no '{name}' among {', '.join(known)}")
        if len(set(found)) < len(found):
            raise ValueError("lists something twice")
        return found


class Curve(Strict):
    """One record: a benchmark, a method (or the scan of its layers) and a seed."""

    study: str
    benchmark: str
    method: str
    seed: Seed
    plan: Plan
    settings: Settings

    @property
    def network(self) -> str:
        return BENCHMARKS[self.benchmark][1]

    @property
    def name(self) -> str:
        """The record's file name without ending, unique within its study."""
        return f"{self.benchmark}-{self.method}-{self.seed}"

    @property
    def parameters(self) -> dict:
        """All that the numbers follow from, but the data."""
        unused = {"ratios", "stage", "rounds"} if self.method == SCAN else {"densities"}
        return {
            "protocol": [PROTOCOL, VERSION], "network": self.network, "benchmark": self.benchmark,
            "method": self.method, "seed": self.seed, "recipe": vars(self.settings.recipe),
            "plan": self.plan.model_dump(mode="json", exclude=unused),
        }

    @property
    def key(self) -> str:
        """SHA-256 of the parameters."""
        return digest(self.parameters)

    @property
    def dense_key(self) -> str:
        """SHA-256 of what the dense training follows from."""
        shared = {key: self.parameters[key] for key in ("protocol", "network", "seed", "recipe")}
        return digest(shared | {"dense": self.plan.dense})

    def place(self, kind: str, ending: str) -> Path:
        """Where the curve's file of this kind (``runs`` or ``work``) lies."""
        return folder(self.study) / kind / f"{self.name}{ending}"


class Curves(Strict):
    """A study of trade-offs: its name, title and curves, the scans of layers last."""

    name: str
    title: str
    curves: tuple[Curve, ...]


def load(name: str | Path = "tradeoff") -> Curves:
    """The study ``studies/<name>.yaml``, or the one in a YAML file; ``StudyError`` says what is wrong."""
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else root() / "studies" / f"{name}.yaml"
    if not path.is_file():
        raise StudyError(f"no study '{name}' ({path} is missing)")
    try:
        found = yaml.load(path.read_bytes(), UniqueKeys)
    except yaml.YAMLError as error:
        raise StudyError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(found, dict) or found.get("kind") != "tradeoff":
        raise StudyError(f"{path}: a study of trade-offs says 'kind: tradeoff'")
    spec = checked(_Spec, found, f"{path}: ")
    settings = {name: _settings(path, name, own) for name, own in spec.benchmarks.items()}
    plan = Plan(**{key: getattr(spec, key) for key in Plan.model_fields})
    return Curves(name=path.stem, title=spec.title, curves=tuple(
        Curve(study=path.stem, benchmark=name, method=method, seed=seed, plan=plan, settings=settings[name])
        for method in (*spec.methods, SCAN) for name in settings for seed in spec.seeds
    ))


def _settings(path: Path, name: str, own: dict) -> Settings:
    for key in own:
        if key not in Recipe.__dataclass_fields__:
            known = ", ".join(Recipe.__dataclass_fields__)
            raise StudyError(f"{path}: benchmarks.{name}.{key}: unknown key; known are {known}")
    return checked(Settings, own, f"{path}: benchmarks.{name}.")


def current(curve: Curve) -> dict | None:
    """The curve's record if it is whole and made from the same parameters and data, else None."""
    try:
        record = read_record(curve.place("runs", ".json"))
    except (FileNotFoundError, DamagedFile):
        return None
    here = fingerprint_of(BENCHMARKS[curve.benchmark][0])
    return record if record.get("key") == curve.key and here in (None, record.get("fingerprint")) else None


def recorded(study: Curves) -> list[dict]:
    """The current records of the study, in its order; none where nothing was measured yet."""
    return [record for curve in study.curves if (record := current(curve))]


def perform(curve: Curve, device: str = "cpu", warn: Callable[[str], None] = print) -> dict:
    """The curve's record: read if it is current, else trained for.

    What cannot be used is set aside with a word to ``warn``; another process at work on the same
    curve is waited for. On the CPU all runs on one thread, denormal numbers taken as zero.
    """
    target = checked_device(device)
    path = curve.place("runs", ".json")
    with locked(curve.place("work", ".lock"), lambda pid: warn(f"process {pid} is at work on {curve.name}: waiting")):
        record = current(curve)
        if record is not None:
            return record
        if path.exists():
            aside = set_aside(path, folder(curve.study) / "work" / "set-aside")
            warn(f"the record of {curve.name} is damaged, or of other parameters or data; set aside as {aside}")
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        dataset = dataset_of(BENCHMARKS[curve.benchmark][0], str(target))
        make = {"unpruned": _unpruned, "small": _small, SCAN: _scan}.get(curve.method, _pruned)
        record = {
            "run": {"study": curve.study, "name": curve.name} | curve.parameters, "key": curve.key,
            "fingerprint": dataset.fingerprint, "data": dataset.title,
            "points": list(make(curve, dataset, target, warn)), "environment": environment(target),
        }
        write_record(path, record)
        return record


def _pruned(curve: Curve, dataset: datasets.Dataset, device: torch.device, warn: Callable) -> Iterator[dict]:
    method, recipe, plan = METHODS[curve.method], curve.settings.recipe, curve.plan
    lots = generator(curve.seed, LOTS)
    training, before = _dense(curve, dataset, device, warn), 1.0
    stream = batches(dataset, recipe, curve.seed, plan.dense)
    for number, ratio in enumerate(plan.ratios, start=1):
        if getattr(method.strategy, "from_dense", False):
            training, length = _dense(curve, dataset, device, warn), number * plan.stage
            stream, steps = batches(dataset, recipe, curve.seed, plan.dense), {0: 1 / ratio}
        else:
            length, steps = plan.stage, prunings(method, before, 1 / ratio, plan.stage, plan.rounds)
        for iteration in range(length):
            if iteration in steps:
                cut(training, method, steps[iteration], lots)
            step(training, recipe, *next(stream))
        before = 1 / ratio
        yield _point(curve, ratio, training, dataset, network_layers(curve.network))


def _small(curve: Curve, dataset: datasets.Dataset, device: torch.device, warn: Callable) -> Iterator[dict]:
    recipe, plan = curve.settings.recipe, curve.plan
    for number, ratio in enumerate(plan.ratios, start=1):
        notation = scaled(curve.network, ratio)
        training = prepare(notation, recipe, 0.5, METHODS["unpruned"], curve.seed, device)
        stream = batches(dataset, recipe, curve.seed)
        for _ in range(plan.dense + number * plan.stage):
            step(training, recipe, *next(stream))
        yield _point(curve, ratio, training, dataset, network_layers(notation)) | {"network": notation}


def _unpruned(curve: Curve, dataset: datasets.Dataset, device: torch.device, warn: Callable) -> Iterator[dict]:
    recipe, plan = curve.settings.recipe, curve.plan
    training = _dense(curve, dataset, device, warn)
    stream = batches(dataset, recipe, curve.seed, plan.dense)
    for _ in range(len(plan.ratios) * plan.stage):
        step(training, recipe, *next(stream))
    yield _point(curve, 1.0, training, dataset, network_layers(curve.network))


@torch.no_grad()
def _scan(curve: Curve, dataset: datasets.Dataset, device: torch.device, warn: Callable) -> Iterator[dict]:
    average = _dense(curve, dataset, device, warn).average
    whole = accuracy(average, dataset.validation)
    for part in network_layers(curve.network):
        place = {"layer": part.name, "kind": part.kind}
        yield place | {"density": 1.0, "validation_accuracy": whole}
        for density in curve.plan.densities:
            model = copy.deepcopy(average)
            layer = {part.name: masked_layers(model)[part.name]}
            scores = {part.name: layer[part.name].weight.abs()}
            threshold = allocation.uniform(layer, scores, {part.name: density})[part.name]
            layer[part.name].prune(scores[part.name] > threshold)
            yield place | {"density": density, "validation_accuracy": accuracy(model, dataset.validation)}


def _dense(curve: Curve, dataset: datasets.Dataset, device: torch.device, warn: Callable) -> Training:
    """The training that all methods of a benchmark and seed go on from; trained once, kept in ``work``."""
    recipe = curve.settings.recipe
    path = folder(curve.study) / "work" / f"dense-{curve.benchmark}-{curve.seed}-{device.type}.state"
    owner = f"{curve.dense_key} {dataset.fingerprint}"
    training = prepare(curve.network, recipe, 0.5, METHODS["unpruned"], curve.seed, device)
    with locked(path.with_suffix(".lock")):
        try:
            training.load_state_dict(load_state(path, owner, device))
            return training
        except FileNotFoundError:
            pass
        except DamagedFile as error:
            warn(f"{error}; set aside as {set_aside(path, path.parent / 'set-aside')}, trained again")
        stream = batches(dataset, recipe, curve.seed)
        for _ in range(curve.plan.dense):
            step(training, recipe, *next(stream))
        save_state(path, training.state_dict(), owner)
    # As whoever joins later finds it: what is loaded has other memory, and must have the same numbers.
    training = prepare(curve.network, recipe, 0.5, METHODS["unpruned"], curve.seed, device)
    training.load_state_dict(load_state(path, owner, device))
    return training


def prunings(method: Method, before: float, after: float, stage: int, rounds: int) -> dict[int, float]:
    """Density by iteration of a stage in which a method goes from the density ``before`` to ``after``.

    The last cut comes in the middle of the stage, the second half is recovery. In rounds:
    ``rounds`` cuts by equal factors, equally far apart, the first at once. By iterations:
    ``STEPS`` cuts along a cubic (Zhu and Gupta 2017).
    """
    half = stage // 2
    if isinstance(method.strategy, Rounds):
        times = [half * number // (rounds - 1) for number in range(rounds)] if rounds > 1 else [0]
        return {time: before * (after / before) ** ((number + 1) / rounds) for number, time in enumerate(times)}
    fall = PolynomialSchedule(after / before)
    return {half * number // STEPS: before * fall.amount(number / STEPS) for number in range(1, STEPS + 1)}


@torch.no_grad()
def cut(training: Training, method: Method, density: float, lots: torch.Generator) -> None:
    """Prune the model, its average and its momentum to ``density`` of all synapses.

    Criterion and allocation are the method's. Where the allocation takes quality factors, the
    smallest factor is taken with which no more than that is left.
    """
    layers = masked_layers(training.model)
    scores = {name: method.criterion(layer, lots) for name, layer in layers.items()}
    if method.allocation is allocation.std_threshold:
        thresholds = _thresholds(method, layers, scores, density)
    else:
        thresholds = method.allocation(layers, scores, dict.fromkeys(layers, density))
    for name, layer in layers.items():
        training.control.pruner.set_mask(name, layer.mask & (scores[name] > thresholds[name]))


def _thresholds(method: Method, layers: dict, scores: dict, density: float) -> dict[str, float]:
    wanted = round(density * sum(layer.synapses for layer in layers.values()))
    paces = {
        name: method.strategy.convolution_pace if layer.weight.ndim == 4 else 1.0 for name, layer in layers.items()
    }
    low, high = 0.0, 1.0

    def found(factor: float) -> tuple[dict[str, float], int]:
        thresholds = method.allocation(layers, scores, {name: factor * pace for name, pace in paces.items()})
        left = sum(int((layer.mask & (scores[name] > thresholds[name])).sum()) for name, layer in layers.items())
        return thresholds, left

    while found(high)[1] > wanted:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle)[1] > wanted else (low, middle)
    return found(high)[0]


def scaled(notation: str, ratio: float) -> str:
    """A network of this shape with at most the ``ratio``-th part of its synapses, and hardly fewer.

    All widths but input and output shrink by one factor, to one at least; kernels stay. What
    rounding leaves over goes to single maps and neurons, the widest layer's first. Raises
    ``ValueError`` where even one map and one neuron a layer are too many.
    """
    size, *tokens, classes = notation.split("-")
    limit = sum(layer.synapses for layer in network_layers(notation)) / ratio
    parts = [token.partition("c") for token in tokens]
    widths, kernels = [int(width) for width, _, _ in parts], [c + kernel for _, c, kernel in parts]

    def named(found: Iterable[int]) -> str:
        return "-".join((size, *(f"{width}{kernel}" for width, kernel in zip(found, kernels)), classes))

    def fits(found: Iterable[int]) -> bool:
        return sum(layer.synapses for layer in network_layers(named(found))) <= limit

    def at(factor: float) -> list[int]:
        return [max(1, round(width * factor)) for width in widths]

    if not fits(at(0)):
        raise ValueError(f"{notation} cannot be made {ratio:g} times smaller by its widths")
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(at(middle)) else (low, middle)
    found = at(low)
    for place in sorted(range(len(found)), key=lambda place: -widths[place]):
        while fits(wider := [width + (number == place) for number, width in enumerate(found)]):
            found = wider
    return named(found)


def _point(
    curve: Curve, ratio: float, training: Training, dataset: datasets.Dataset, table: tuple[Layer, ...]
) -> dict:
    found = masked_layers(training.average)
    whole = network_layers(curve.network)
    significant = {layer.name: found[layer.name].significant for layer in table}
    synapses, left = sum(layer.synapses for layer in whole), sum(significant.values())
    macs, macs_left = sum(layer.macs for layer in whole), sum(significant[part.name] * part.output_positions for part in table)
    return {
        "ratio": ratio, "significant": left, "density": left / synapses, "compression": synapses / left,
        "speedup": macs / max(macs_left, 1), "densities": {
            layer.name: round(significant[layer.name] / layer.synapses, 5) for layer in table
        },
        "validation_accuracy": accuracy(training.average, dataset.validation),
        "test_accuracy": accuracy(training.average, dataset.test), "iterations": training.iteration,
    }


def frame(found: Iterable[dict]) -> pd.DataFrame:
    """One row a point with ``COLUMNS``, sorted; the scans of layers left out."""
    return _rows((record for record in found if record["run"]["method"] != SCAN), COLUMNS, COLUMNS[:4])


def scans(found: Iterable[dict]) -> pd.DataFrame:
    """One row a layer, density and seed with ``SCAN_COLUMNS``, layers in the network's order."""
    return _rows((record for record in found if record["run"]["method"] == SCAN), SCAN_COLUMNS, ("benchmark", "seed"))


def _rows(found: Iterable[dict], columns: tuple[str, ...], keys: tuple[str, ...]) -> pd.DataFrame:
    rows = [record["run"] | point for record in found for point in record["points"]]
    return pd.DataFrame(rows, columns=list(columns)).sort_values(list(keys), ignore_index=True, kind="stable")


def write_tables(study: Curves) -> list[Path]:
    """Write ``tradeoff.csv`` and ``sensitivity.csv`` from the current records; returns their paths."""
    found = recorded(study)
    if not found:
        raise StudyError(f"no current record of '{study.name}': run 'make tradeoff'")
    paths = []
    for name, table in (("tradeoff", frame(found)), ("sensitivity", scans(found))):
        paths.append(folder(study.name) / f"{name}.csv")
        write_whole(paths[-1], table.to_csv(index=False, lineterminator="\n").encode())
    return paths


def main(arguments: list[str] | None = None) -> int:
    """Of a study of trade-offs: see how far it is, list the jobs left, run it, write its tables, start it afresh."""
    parser = argparse.ArgumentParser(prog="python -m pruning.study.tradeoff", description=main.__doc__)
    parser.add_argument("action", choices=("status", "jobs", "run", "table", "fresh"))
    parser.add_argument("study", nargs="?", default="tradeoff")
    parser.add_argument("--benchmark", help="only this benchmark")
    parser.add_argument("--seed", type=int, help="only this seed")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    try:
        study = load(given.study)
        chosen = [
            curve for curve in study.curves
            if given.benchmark in (None, curve.benchmark) and given.seed in (None, curve.seed)
        ]
        if not chosen:
            raise StudyError(f"'{study.name}' has no such benchmark and seed")
        if given.action == "status":
            done = sum(current(curve) is not None for curve in chosen)
            print(f"{study.name}: {done} of {len(chosen)} records are there and current")
        elif given.action == "jobs":
            left = dict.fromkeys((curve.benchmark, curve.seed) for curve in chosen if current(curve) is None)
            for benchmark, seed in left:
                print(f"--benchmark {benchmark} --seed {seed}")
        elif given.action == "table":
            for path in write_tables(study):
                print(path)
        elif given.action == "fresh":
            for curve in chosen:
                for path in (curve.place("runs", ".json"),
                             *folder(study.name).glob(f"work/dense-{curve.benchmark}-{curve.seed}-*.state")):
                    path.unlink(missing_ok=True)
        else:
            for number, curve in enumerate(chosen, start=1):
                record = perform(curve, given.device)
                last = record["points"][-1]
                print(f"{number}/{len(chosen)} {curve.name}: validation accuracy {last['validation_accuracy']:.4f} "
                      f"at density {last['density']:.4f}", flush=True)
    except (StudyError, DamagedFile, datasets.DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
