"""HashedNets (Chen et al. 2015): connections that share few real weights, chosen by a hash function.

    >>> hashed(build("28x28-300-100-10"), density=0.02).fc1
    HashedLinear(in_features=784, out_features=300, bias=True, synapses=4704)

Such a network is not pruned: it is trained with its few weights from the start. A real weight
counts as one synapse here, so that a density means the same number of stored weights as a pruned
network's; which weight a connection shares follows from the seed and takes no memory.

``ladder`` puts it beside the pruning methods: a ladder of densities, each trained from its
initialisation with the same recipe until the requirement is met. A study takes it as the method ``hashed``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.layers import Masked
from pruning.methods import METHODS
from pruning.study.config import Recipe
from pruning.study.datasets import Dataset
from pruning.study.networks import Network, build
from pruning.study.training import WEIGHTS, Outcome, generator, prepare, prepare_model, train

HASHABLE = (nn.Linear, nn.Conv2d)
HASHED = 3  # the purpose of a random generator, beside those of ``training``


class _Hashed(Masked, nn.Module):
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
        self.register_parameter("weight", nn.Parameter(torch.empty(weights).uniform_(-bound, bound, generator=source)))
        self.register_buffer("mask", torch.ones(weights, dtype=torch.bool))

    def virtual_weight(self) -> Tensor:
        """Return the weight of every connection: the shared one with the connection's sign."""
        return self.effective_weight()[self.index] * self.sign

    @property
    def connections(self) -> int:
        """Number of connections that share the weights; ``synapses`` counts the weights."""
        return self.index.numel()


class HashedLinear(_Hashed, nn.Linear):  # type: ignore[override]  # the weight is a parameter here
    """``nn.Linear`` with ``weights`` shared weights; input [..., in], output [..., out]."""

    def __init__(self, in_features: int, out_features: int, weights: int, seed: int = 0, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        self._hash((out_features, in_features), weights, seed)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.virtual_weight(), self.bias)


class HashedConv2d(_Hashed, nn.Conv2d):  # type: ignore[override]  # the same
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
        if type(layer) not in HASHABLE:
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
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias is not None,
        layer.padding_mode,
        weights=weights,
        seed=seed,
    )


def ladder(
    made_as: Network,
    dataset: Dataset,
    recipe: Recipe,
    requirement: float,
    seed: int,
    patience: int,
    budget: int,
    keep: float,
    **given,
) -> Outcome:
    """Train HashedNets of fewer and fewer weights, ``keep`` times those of the last, until one misses the requirement.

    The first is the unpruned network. Each later training starts from its initialisation and may take as long as that
    one, and ``patience`` evaluations more; ``budget`` limits the iterations of all together. The outcome has the events
    of all and delivers the smallest network that met the requirement; every iteration counts, and a density is that of
    stored weights to connections. ``given`` is passed to ``train``.
    """
    device = dataset.train.images.device
    unpruned = METHODS["unpruned"]
    dense = prepare(made_as, recipe, requirement, unpruned, seed, device, budget=budget)
    first = train(dense, dataset, recipe, seed, **given)
    events, model, best = list(first.events), first.model, first.best
    spent, seconds, rung, action = first.iterations, first.seconds, 0, None
    while action is None and first.start:
        rung += 1
        allowed = min(first.start + patience * recipe.interval, budget - spent)
        if allowed < recipe.interval:
            action = "budget spent"
            break
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(seed, WEIGHTS).initial_seed())
            small = hashed(build(made_as), keep**rung, seed).to(device)
        sizes = {
            name: (layer.synapses, layer.connections)
            for name, layer in small.named_modules()
            if isinstance(layer, (HashedLinear, HashedConv2d))
        }
        stored, connections = map(sum, zip(*sizes.values()))
        density, densities = stored / connections, {name: part / whole for name, (part, whole) in sizes.items()}
        training = prepare_model(small, recipe, requirement, unpruned, seed, budget=allowed)
        outcome = train(training, dataset, recipe, seed, **given)
        events += [
            replace(event, iteration=spent + event.iteration, density=density, densities=densities, action="wait")
            for event in outcome.events
        ]
        spent, seconds = spent + outcome.iterations, seconds + outcome.seconds
        if outcome.best:
            model, best = outcome.model, {**outcome.best, "iteration": spent, "density": density, "events": len(events)}
        else:
            action = "budget spent" if spent >= budget else "not recovered"
    if action:
        events[-1] = replace(events[-1], action=action)
    return Outcome(tuple(events), first.start, best, first.model.state_dict(), model, spent, seconds)
