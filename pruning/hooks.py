"""What a method does at every iteration: scores from gradients, network surgery, RigL, biased weight decay.

    >>> BiasedDecay().decay(torch.tensor([0.0, 0.1, -1.0]))      # the gradient that is added to the loss's
    tensor([ 0.0000e+00,  5.0000e-05, -1.6529e-06])

A training loop asks for a hook's step between the backward pass and the optimizer's: where ``control.watching``, it
calls ``control.observe(iteration)``.

A hook's settings are given when it is made; what it keeps from one iteration to the next are its fields with
``init=False``, which go into checkpoints. A method's hook is a prototype: each control works on a copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from pruning.layers import Synapses
from pruning.processes import mean, several

if TYPE_CHECKING:
    from pruning.pruner import Pruner


@dataclass
class Hook:
    """The hook that does nothing, and what hooks share.

    ``acts`` says whether ``step`` is to be called, ``early`` whether from the first iteration on rather than from the
    first pruning on. ``dense`` asks for gradients of pruned synapses too (``dense_grad`` of the masked layers).
    With ``learns_masked`` the weights under the mask are left to the optimizer.
    """

    acts: ClassVar[bool] = False
    dense: ClassVar[bool] = False
    learns_masked: ClassVar[bool] = False

    @property
    def early(self) -> bool:
        """Whether ``step`` is to be called from the first iteration on."""
        return False

    @property
    def ready(self) -> bool:
        """Whether there is what scores are made of."""
        return True

    def step(self, pruner: Pruner, iteration: int) -> None:
        """Act between the backward pass and the optimizer's step of ``iteration``."""

    def pruned(self, iteration: int, thresholds: Mapping[str, float], ramp: int) -> None:
        """Take note of a pruning after ``iteration``; ``ramp`` is the control's, in iterations."""

    def scores(self, pruner: Pruner) -> dict[str, Tensor]:
        """Score every layer's synapses by the method's criterion, at a pruning."""
        return pruner.criterion_scores()


@dataclass
class GradientScores(Hook):
    """Ask a criterion of gradients at every iteration; its last answer are the scores.

    With ``once`` only the first mini-batch counts, before any update: pruning at initialisation
    (SNIP, Lee et al. 2019).
    """

    once: bool = False
    memory: dict[str, Tensor] = field(init=False, default_factory=dict, repr=False)
    acts: ClassVar[bool] = True

    @property
    def early(self) -> bool:
        return self.once

    @property
    def ready(self) -> bool:
        return bool(self.memory)

    def step(self, pruner: Pruner, iteration: int) -> None:
        if self.once and self.memory:
            return
        for name, layer in pruner.layers.items():
            gradient = layer.gradient
            # A layer without a gradient in this step, or with an overflow as a gradient scaler skips, keeps its scores.
            if gradient is not None and gradient.isfinite().all():
                self.memory[name] = pruner.criterion(layer, self.memory.get(name))

    def scores(self, pruner: Pruner) -> dict[str, Tensor]:
        if not self.memory:
            raise RuntimeError("the criterion has seen no gradient: call observe(iteration) while watching is true")
        return self.memory


@dataclass
class NetworkSurgery(Hook):
    """Dynamic network surgery (Guo et al. 2016): what was pruned goes on learning, and may come back.

    Every synapse, pruned or not, is updated with the gradient of the effective weight; every
    ``every`` iterations the masks follow from the thresholds of the last round. A pruned
    synapse's gradient counts ``rate`` times: a fifth of this recipe's learning rate is the
    paper's 0.01. At the full rate many of them grow at once to mend one fault, and come back together.
    """

    every: int = 10
    rate: float = 0.2
    thresholds: dict[str, float] | None = field(init=False, default=None, repr=False)
    acts: ClassVar[bool] = True
    dense: ClassVar[bool] = True
    learns_masked: ClassVar[bool] = True

    def __post_init__(self):
        if self.every < 1 or not 0 <= self.rate <= 1:
            raise ValueError(f"every must be at least 1 and rate lie in [0, 1], got {self.every} and {self.rate}")

    @torch.no_grad()
    def step(self, pruner: Pruner, iteration: int) -> None:
        for layer in pruner.layers.values():
            gradient, dense = layer.gradient, layer.dense_grad
            if gradient is None or dense is None:
                continue
            # In place, as the optimizer wants the weight's memory layout. What was done to the gradient since the
            # backward pass, such as unscaling or clipping, counts for pruned synapses too.
            scale = _scale(gradient[layer.mask], dense[layer.mask])
            gradient.copy_(torch.where(layer.mask, gradient, scale * self.rate * dense))
        if self.thresholds and iteration % self.every == 0:
            pruner.apply(self.thresholds)

    def pruned(self, iteration: int, thresholds: Mapping[str, float], ramp: int) -> None:
        self.thresholds = dict(thresholds)


@dataclass
class RigL(Hook):
    """RigL (Evci et al. 2020): drop the smallest weights and grow where the gradient is largest.

    The number of synapses of each layer stays. After each pruning, a phase of a fourth of the
    control's ``ramp`` begins, with ten updates; the fraction of a layer's synapses that is
    exchanged falls from ``fraction`` to zero as a cosine. A grown synapse starts at zero.
    """

    fraction: float = 0.3
    last: int | None = field(init=False, default=None, repr=False)
    phase: int = field(init=False, default=1, repr=False)
    acts: ClassVar[bool] = True
    dense: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, got {self.fraction}")

    def exchanged(self, since: int, phase: int) -> float:
        """Compute the fraction exchanged ``since`` iterations after the pruning, in a phase of ``phase`` iterations."""
        return self.fraction / 2 * (1 + math.cos(math.pi * since / phase)) if since < phase else 0.0

    @torch.no_grad()
    def step(self, pruner: Pruner, iteration: int) -> None:
        if self.last is None:
            return
        since = iteration - self.last
        if since >= self.phase or since % max(self.phase // 10, 1):
            return
        for name, layer in pruner.layers.items():
            count = int(self.exchanged(since, self.phase) * layer.significant)
            count = min(count, layer.synapses - layer.significant)
            dense, gradient = layer.dense_grad, layer.gradient
            if not count or dense is None or gradient is None or not dense.isfinite().all():
                continue
            weights = torch.where(layer.mask, layer.weight.abs(), math.inf).flatten()
            kept = layer.mask.flatten().clone()
            kept[weights.topk(count, largest=False).indices] = False
            gradients = torch.where(kept, -math.inf, dense.abs().reshape(-1))
            grown = kept.clone()
            grown[gradients.topk(count).indices] = True
            # Twice, so that a synapse that was dropped and grows at once starts at zero too.
            pruner.set_mask(name, kept.view_as(layer.mask))
            pruner.set_mask(name, grown.view_as(layer.mask))
            gradient.masked_fill_(~kept.view_as(layer.mask), 0)

    def pruned(self, iteration: int, thresholds: Mapping[str, float], ramp: int) -> None:
        self.last, self.phase = iteration, max(ramp // 4, 1)


@dataclass
class BiasedDecay(Hook):
    """Biased weight decay (Hanson and Pratt 1989): small weights decay, large ones hardly.

    The hyperbolic bias of a synapse, ``strength`` x s|w| / (1 + s|w|) with the scale s, is
    added to the loss: its gradient is ``strength`` x s sign(w) / (1 + s|w|)^2.
    """

    strength: float = 2e-5
    scale: float = 10.0
    acts: ClassVar[bool] = True

    def __post_init__(self):
        if not (0 < self.strength < math.inf and 0 < self.scale < math.inf):
            raise ValueError(f"strength and scale must be positive, got {self.strength} and {self.scale}")

    @torch.no_grad()
    def step(self, pruner: Pruner, iteration: int) -> None:
        for layer in pruner.layers.values():
            if layer.gradient is not None:
                layer.gradient.add_(self.decay(layer.weight))

    def decay(self, weight: Tensor) -> Tensor:
        """Compute the bias's gradient, of ``weight``'s shape."""
        return self.strength * self.scale * weight.sign() / (1 + self.scale * weight.abs()).square()


def share_dense_gradients(layers: Mapping[str, Synapses]) -> None:
    """Average the gradients of pruned synapses over the processes, where several train one model."""
    for layer in layers.values() if several() else ():
        if layer.parameter.requires_grad:
            layer.dense_grad = mean(torch.zeros_like(layer.parameter) if layer.dense_grad is None else layer.dense_grad)


def _scale(now: Tensor, then: Tensor) -> Tensor | float:
    """Find the factor that takes one gradient to another, 1 where they are equal."""
    if torch.equal(now, then):
        return 1.0
    return (now * then).sum() / then.square().sum().clamp_min(torch.finfo(then.dtype).tiny)
