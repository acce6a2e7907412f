"""HashedNets (Chen et al. 2015): connections that share few real weights, chosen by a hash function.

    model = hashed(lenet("28x28-300-100-10"), density=0.02, seed=0)

Such a network is not pruned: it is trained with its few weights from the start. A real weight
counts as one synapse here, so that a density means the same number of stored weights as a pruned
network's; which weight a connection shares follows from the seed and takes no memory.

    python -m pruning.hashed digits-2c --requirement 0.95 --seed 0

puts it beside the pruning methods of a study: a ladder of densities, each trained from its
initialisation with the study's recipe until the requirement is met. All iterations count.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.datasets import DataError, Dataset, load
from pruning.masks import _Masked
from pruning.networks import layers as network_layers
from pruning.networks import lenet
from pruning.schedule import Ladder
from pruning.study import BENCHMARKS, Settings, StudyError, find
from pruning.training import WEIGHTS, Training, accuracy, assembled, generator, prepare, train

HASHED = 3  # the purpose of a random generator, beside those of ``training``


class _Hashed(_Masked):
    """What both hashed layers share: ``weight`` and ``mask`` [weights], and each connection's index and sign.

    ``index`` (int64) and ``sign`` (+1 or -1) have the shape of the virtual weight; they follow
    from the seed and are not part of ``state_dict``. A prune control can cut shared weights too.
    """

    index: Tensor
    sign: Tensor

    def _hash(self, shape: tuple[int, ...], weights: int, seed: int) -> None:
        if not 1 <= weights <= math.prod(shape):
            raise ValueError(f"weights must be from 1 to the {math.prod(shape)} connections, got {weights}")
        source = torch.Generator().manual_seed(seed)
        self.register_buffer("index", torch.randint(weights, shape, generator=source), persistent=False)
        self.register_buffer("sign", torch.randint(2, shape, generator=source) * 2.0 - 1, persistent=False)
        bound = 1 / math.sqrt(math.prod(shape[1:]))  # PyTorch's own for the virtual weight
        self.weight = nn.Parameter(torch.empty(weights).uniform_(-bound, bound, generator=source))
        self.register_buffer("mask", torch.ones(weights, dtype=torch.bool))

    def virtual_weight(self) -> Tensor:
        """The weight of every connection: the shared one with the connection's sign."""
        return self.effective_weight()[self.index] * self.sign

    @property
    def connections(self) -> int:
        """Number of connections that share the weights; ``synapses`` counts the weights."""
        return self.index.numel()


class HashedLinear(_Hashed, nn.Linear):
    """``nn.Linear`` with ``weights`` shared weights; input [..., in], output [..., out]."""

    def __init__(self, in_features: int, out_features: int, weights: int, seed: int = 0, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        self._hash((out_features, in_features), weights, seed)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.virtual_weight(), self.bias)


class HashedConv2d(_Hashed, nn.Conv2d):
    """``nn.Conv2d`` (stride, padding and groups as given) with ``weights`` shared weights."""

    def __init__(self, *args, weights: int, seed: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self._hash(tuple(self.weight.shape), weights, seed)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.virtual_weight(), self.bias)


def hashed(model: nn.Module, density: float, seed: int = 0) -> nn.Module:
    """Turn every ``nn.Linear`` and ``nn.Conv2d`` into a hashed twin with the fraction ``density`` of its weights.

    At least one a layer; biases are kept. Works in place and returns the model (a new module
    where the model itself is one layer).
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must lie in (0, 1], got {density}")
    for number, (name, layer) in enumerate(list(model.named_modules())):
        if type(layer) not in (nn.Linear, nn.Conv2d):
            continue
        weights = max(round(density * layer.weight.numel()), 1)
        twin = _twin(layer, weights, generator(seed, HASHED, number).initial_seed())
        twin.bias = layer.bias
        if not name:
            return twin
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, twin)
    return model


def _twin(layer: nn.Linear | nn.Conv2d, weights: int, seed: int) -> HashedLinear | HashedConv2d:
    if isinstance(layer, nn.Linear):
        return HashedLinear(layer.in_features, layer.out_features, weights, seed, layer.bias is not None)
    return HashedConv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        layer.groups, layer.bias is not None, layer.padding_mode, weights=weights, seed=seed,
    )


@dataclass(frozen=True)
class Rung:
    """One training: ``weights`` real ones of ``synapses`` connections, and whether it met the requirement.

    ``iterations`` counts this training, ``spent`` all of them so far, the one of the unpruned
    network counted; ``effort`` is that over the unpruned network's.
    """

    weights: int
    synapses: int
    reached: bool
    accuracy: float
    iterations: int
    spent: int
    effort: float
    model: nn.Module

    @property
    def density(self) -> float:
        return self.weights / self.synapses


def ladder(
    notation: str, dataset: Dataset, settings: Settings, requirement: float, seed: int, keep: float = 0.7,
) -> Iterator[Rung]:
    """HashedNets of fewer and fewer weights, ``keep`` times those of the last, until one misses the requirement.

    The first is the unpruned network. Each later training may take as long as that one, and the
    settings' patience more; all of them share the settings' budget of iterations.
    """
    recipe, synapses = settings.recipe, sum(layer.synapses for layer in network_layers(notation))
    training = prepare(notation, recipe, requirement, None, seed, dataset.train.images.device, budget=settings.budget)
    schedule, spent, dense, weights, number = Ladder(keep), 0, None, synapses, 0
    while True:
        control = train(training, dataset, recipe, seed).control
        spent += training.iteration
        dense = dense or training.iteration
        found = control.best["accuracy"] if control.reached else control.events[-1].accuracy
        yield Rung(
            weights, synapses, control.reached, found, training.iteration, spent, spent / dense, control.delivered(),
        )
        allowed = min(dense + settings.patience * recipe.interval, settings.budget - spent)
        if not control.reached or allowed < recipe.interval:
            return
        number += 1
        training = _prepared(notation, settings, requirement, seed, schedule.amount(number), allowed, dataset)
        weights = training.control.synapses


def _prepared(notation, settings, requirement, seed, density, budget, dataset) -> Training:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, WEIGHTS).initial_seed())
        model = hashed(lenet(notation), density, seed).to(dataset.train.images.device)
    return assembled(model, settings.recipe, requirement, None, seed, budget=budget)


def main(arguments: list[str] | None = None) -> int:
    """HashedNets of fewer and fewer weights, one line each; the test split is read for the last that met it."""
    parser = argparse.ArgumentParser(prog="python -m pruning.hashed", description=main.__doc__)
    parser.add_argument("benchmark")
    parser.add_argument("--requirement", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        settings = find(given.benchmark).settings[given.benchmark]
        name, notation = BENCHMARKS[given.benchmark]
        dataset, best = load(name), None
        for rung in ladder(notation, dataset, settings, given.requirement, given.seed):
            best = rung if rung.reached else best
            print(
                f"{rung.weights} weights ({100 * rung.density:.2f} %): validation accuracy {rung.accuracy:.4f}, "
                f"{rung.iterations} iterations, effort {rung.effort:.2f}, {'met' if rung.reached else 'not met'}",
                flush=True,
            )
        if best:
            print(f"delivered: {best.weights} weights, test accuracy {accuracy(best.model, dataset.test):.4f}")
    except (StudyError, DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
