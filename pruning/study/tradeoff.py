"""Accuracy against density at fixed compression ratios, and how much each layer alone can lose.

The compression ratio is all synapses over significant ones, the theoretical speed-up all multiply-accumulates of an
image over those of significant synapses (Blalock et al. 2020). Every method starts from one dense training of ``dense``
iterations per seed and has at the k-th ratio had ``stage`` times k more. ``iterative``, ``random`` and ``gradual`` pass
through all ratios on one trajectory. So does ``adaptive``, without a requirement to stop it: it prunes in compensated
steps of a tenth. The mini-batches that it measures on count as iterations. ``oneshot`` is pruned from the dense network
to each of them at once and has all the rest to recover; ``small`` is a dense network with all widths scaled to the same
number of synapses, trained from its first weights for the sum, ``unpruned`` the whole one for the longest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from pruning import allocation
from pruning.adaptive import AccuracyDriven, measured_on, take_step
from pruning.files import load_state
from pruning.masks import masked_layers
from pruning.methods import METHODS, Method
from pruning.notation import layers as network_layers
from pruning.pruner import Pruner
from pruning.schedules import PolynomialSchedule
from pruning.strategies import Rounds
from pruning.study.config import SMALL, STEPS, Plan, Run
from pruning.study.locks import locked
from pruning.study.networks import Network, described
from pruning.study.states import Context
from pruning.study.training import Training, accuracy, batches, generator, prepare, step

RANDOM = 4  # the purpose of a random generator (see ``training.generator``)


@dataclass(frozen=True)
class _Curve:
    """What the measurements of a run share: its parts, and the dense training that they start from."""

    run: Run
    plan: Plan
    context: Context

    def batches(self, done: int) -> Iterator:
        """Return the batches after ``done`` iterations."""
        return batches(self.context.dataset, self.run.settings, self.run.seed, done)

    def train(self, training: Training, stream: Iterator, iterations: int) -> None:
        """Train for so many iterations."""
        for _ in range(iterations):
            step(training, self.run.settings, *next(stream))

    def new(self, made_as: Network) -> Training:
        """Make a training of a network from its first weights."""
        return prepare(made_as, self.run.settings, 0.5, METHODS["unpruned"], self.run.seed, self.context.device)

    def dense(self) -> Training:
        """Return the training that all methods of a benchmark and seed start from; trained once, then resumed."""
        saved = self.context.dense.at(f"{self.plan.dense}-iterations")
        with locked(saved.path.with_suffix(".lock")):
            if (state := saved.load(self.context.device)) is None:
                training = self.new(self.context.network)
                self.train(training, self.batches(0), self.plan.dense)
                saved.save(training.state_dict())
                # As every later run has it: loaded tensors may differ in memory layout, and so in rounding.
                state = load_state(saved.path, saved.owner, self.context.device)
        training = self.new(self.context.network)
        training.load_state_dict(state)
        return training

    def prune(self, training: Training, density: float, stream: Iterator, rng: torch.Generator) -> None:
        """Prune a training to a density as the run's method does; mini-batches that measure count as iterations."""
        method = METHODS[self.run.method]
        if not isinstance(method.strategy, AccuracyDriven):
            cut(training, method, density, rng)
            return
        pruner = Pruner(
            training.model, method.criterion, method.allocation,
            optimizer=training.optimizer, average=training.average, score_average=True, seed=self.run.seed,
        )  # fmt: skip
        strategy, aimed = method.strategy, density * pruner.synapses
        images = [next(stream)[0] for _ in range(strategy.measured)]
        training.iteration += len(images)
        pruner.round = training.iteration  # the random combinations of the outputs follow from it
        jacobian = measured_on(pruner, images, training.control.measuring) if images else None
        before = math.inf
        while aimed + 0.5 < pruner.significant < before:
            before, least = pruner.significant, max(strategy.tolerance.keep * pruner.significant, aimed)
            _, jacobian = take_step(pruner, least, jacobian, strategy.sensitive)


def curve(run: Run, context: Context) -> tuple[dict, None]:
    """Measure a method at every compression ratio; the record's parts."""
    assert run.plan
    measure = {"unpruned": _unpruned, SMALL: _small}.get(run.method, _pruned)
    return {"points": list(measure(_Curve(run, run.plan, context)))}, None


@torch.no_grad()
def scan(run: Run, context: Context) -> tuple[dict, None]:
    """Prune each layer of the dense network alone to every density; the record's parts."""
    assert run.plan
    average, validation = _Curve(run, run.plan, context).dense().average, context.dataset.validation
    whole, points = accuracy(average, validation), []
    for part in described(context.network):
        place = {"layer": part.name, "kind": part.kind}
        points.append(place | {"density": 1.0, "validation_accuracy": whole})
        for density in run.plan.densities:
            model = copy.deepcopy(average)
            layer = {part.name: masked_layers(model)[part.name]}
            scores = {part.name: layer[part.name].weight.abs()}
            threshold = allocation.uniform(layer, scores, {part.name: density})[part.name]
            layer[part.name].prune(scores[part.name] > threshold)
            points.append(place | {"density": density, "validation_accuracy": accuracy(model, validation)})
    return {"points": points}, None


def _pruned(curve: _Curve) -> Iterator[dict]:
    method, plan = METHODS[curve.run.method], curve.plan
    rng = generator(curve.run.seed, RANDOM)
    training, stream, before = curve.dense(), curve.batches(plan.dense), 1.0
    for number, ratio in enumerate(plan.ratios, start=1):
        if getattr(method.strategy, "from_dense", False):
            training, stream = curve.dense(), curve.batches(plan.dense)
            length, steps = number * plan.stage, {0: 1 / ratio}
        else:
            length, steps = plan.stage, prunings(method, before, 1 / ratio, plan.stage, plan.rounds)
        begin, end = training.iteration, training.iteration + length
        while training.iteration < end:
            for time in [time for time in steps if begin + time <= training.iteration]:
                curve.prune(training, steps.pop(time), stream, rng)
            curve.train(training, stream, 1)
        assert not steps and training.iteration == end, "Run has checked that a stage has room for its cuts"
        before = 1 / ratio
        yield _point(curve, ratio, training, curve.context.network)


def _small(curve: _Curve) -> Iterator[dict]:
    for number, ratio in enumerate(curve.plan.ratios, start=1):
        notation = scaled(curve.run.network, ratio)
        training = curve.new(notation)
        curve.train(training, curve.batches(0), curve.plan.dense + number * curve.plan.stage)
        yield _point(curve, ratio, training, notation) | {"network": notation}


def _unpruned(curve: _Curve) -> Iterator[dict]:
    training = curve.dense()
    curve.train(training, curve.batches(curve.plan.dense), len(curve.plan.ratios) * curve.plan.stage)
    yield _point(curve, 1.0, training, curve.context.network)


def prunings(method: Method, before: float, after: float, stage: int, rounds: int) -> dict[int, float]:
    """Return the density by iteration of a stage in which a method goes from the density ``before`` to ``after``.

    The last cut comes in the middle of the stage, the second half is recovery. In rounds:
    ``rounds`` cuts by equal factors, equally far apart, the first at once. By iterations:
    ``STEPS`` cuts along a cubic (Zhu and Gupta 2017).
    """
    half = stage // 2
    if isinstance(method.strategy, (Rounds, AccuracyDriven)):
        times = [half * number // (rounds - 1) for number in range(rounds)] if rounds > 1 else [0]
        return {time: before * (after / before) ** ((number + 1) / rounds) for number, time in enumerate(times)}
    fall = PolynomialSchedule(after / before)
    return {half * number // STEPS: before * fall.amount(number / STEPS) for number in range(1, STEPS + 1)}


@torch.no_grad()
def cut(training: Training, method: Method, density: float, rng: torch.Generator) -> None:
    """Prune the model, its average and its momentum to ``density`` of all synapses.

    Criterion and allocation are the method's. Where the allocation takes quality factors, the
    smallest factor is taken with which no more than that stays.
    """
    layers = masked_layers(training.model)
    scores = {name: method.criterion(layer, rng) for name, layer in layers.items()}
    if method.allocation is allocation.std_threshold:
        thresholds = _thresholds(method, layers, scores, density)
    else:
        thresholds = method.allocation(layers, scores, dict.fromkeys(layers, density))
    for name, layer in layers.items():
        training.control.pruner.set_mask(name, layer.mask & (scores[name] > thresholds[name]))


def _thresholds(method: Method, layers: dict, scores: dict, density: float) -> dict[str, float]:
    wanted = round(density * sum(layer.synapses for layer in layers.values()))
    pace = getattr(method.strategy, "convolution_pace", 1.0)
    paces = {name: pace if layer.weight.ndim == 4 else 1.0 for name, layer in layers.items()}
    low, high = 0.0, 1.0

    def pruned(factor: float) -> tuple[dict[str, float], int]:
        thresholds = method.allocation(layers, scores, {name: factor * pace for name, pace in paces.items()})
        kept = sum(int((layer.mask & (scores[name] > thresholds[name])).sum()) for name, layer in layers.items())
        return thresholds, kept

    while pruned(high)[1] > wanted:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if pruned(middle)[1] > wanted else (low, middle)
    return pruned(high)[0]


def scaled(notation: str, ratio: float) -> str:
    """Return a network of this shape with at most the ``ratio``-th part of its synapses, and hardly fewer.

    All widths but input and output shrink by one factor, to one at least; kernels stay. What
    rounding leaves over goes to single maps and neurons, the widest layer's first. Raises
    ``ValueError`` where even one map and one neuron a layer are too many.
    """
    size, *tokens, classes = notation.split("-")
    limit = sum(layer.synapses for layer in network_layers(notation)) / ratio
    parts = [token.partition("c") for token in tokens]
    widths, kernels = [int(width) for width, _, _ in parts], [c + kernel for _, c, kernel in parts]

    def named(chosen: Iterable[int]) -> str:
        return "-".join((size, *(f"{width}{kernel}" for width, kernel in zip(chosen, kernels)), classes))

    def fits(chosen: Iterable[int]) -> bool:
        return sum(layer.synapses for layer in network_layers(named(chosen))) <= limit

    def at(factor: float) -> list[int]:
        return [max(1, round(width * factor)) for width in widths]

    if not fits(at(0)):
        raise ValueError(f"{notation} cannot be made {ratio:g} times smaller by its widths")
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(at(middle)) else (low, middle)
    chosen = at(low)
    for place in sorted(range(len(chosen)), key=lambda place: -widths[place]):
        while fits(wider := [width + (number == place) for number, width in enumerate(chosen)]):
            chosen = wider
    return named(chosen)


def _point(curve: _Curve, ratio: float, training: Training, made_as: Network) -> dict:
    dataset, pruned = curve.context.dataset, masked_layers(training.average)
    whole, table = described(curve.context.network), described(made_as)
    significant = {layer.name: pruned[layer.name].significant for layer in table}
    synapses, kept = sum(layer.synapses for layer in whole), sum(significant.values())
    macs = sum(significant[layer.name] * layer.output_positions for layer in table)
    return {
        "ratio": ratio,
        "significant": kept,
        "density": kept / synapses,
        "compression": synapses / kept,
        "speedup": sum(layer.macs for layer in whole) / max(macs, 1),
        "densities": {layer.name: round(significant[layer.name] / layer.synapses, 5) for layer in table},
        "validation_accuracy": accuracy(training.average, dataset.validation),
        "test_accuracy": accuracy(training.average, dataset.test),
        "iterations": training.iteration,
    }
