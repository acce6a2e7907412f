"""What a method does at every iteration, between its prunings: traces, splicing, regrowth, biased decay.

Each is a frozen dataclass whose ``step(control, iteration)`` is called after the backward pass and
before the optimizer's update, from the first iteration on where ``early`` is true, else once the
requirement was met. ``dense`` says that it needs gradients of pruned synapses too
(``dense_grad`` of the masked layers). What it keeps from one iteration to the next lies in
``control.memory``, tensors by layer, which goes into checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from pruning.control import PruneControl


@dataclass(frozen=True)
class Trace:
    """Asks the method's criterion, one of gradients, in every iteration; its last answer are the scores.

    With ``once`` only the first mini-batch counts, before any update: pruning at initialisation
    (SNIP, Lee et al. 2019).
    """

    once: bool = False
    dense: ClassVar[bool] = False

    @property
    def early(self) -> bool:
        return self.once

    def step(self, control: PruneControl, iteration: int) -> None:
        if self.once and control.memory:
            return
        for name, layer in control.layers.items():
            control.memory[name] = control.method.criterion(layer, control.memory.get(name))


@dataclass(frozen=True)
class Splice:
    """Dynamic network surgery (Guo et al. 2016): what was cut goes on learning, and may come back.

    Every synapse, cut or not, is updated with the gradient of the effective weight; every
    ``every`` iterations the masks are made anew with the thresholds of the last round. A cut
    synapse's gradient counts ``rate`` times: a fifth of this recipe's learning rate is the
    paper's 0.01. At the full rate many of them grow at once to mend one fault, and come back together.
    """

    every: int = 10
    rate: float = 0.2
    early: ClassVar[bool] = False
    dense: ClassVar[bool] = True

    def __post_init__(self):
        if self.every < 1 or not 0 <= self.rate <= 1:
            raise ValueError(f"every must be at least 1 and rate lie in [0, 1], got {self.every} and {self.rate}")

    @torch.no_grad()
    def step(self, control: PruneControl, iteration: int) -> None:
        for layer in control.layers.values():
            # In place, as the optimizer wants the weight's memory layout.
            layer.weight.grad.copy_(torch.where(layer.mask, layer.dense_grad, self.rate * layer.dense_grad))
        if control.thresholds and iteration % self.every == 0:
            control.apply(control.thresholds)


@dataclass(frozen=True)
class Regrow:
    """RigL (Evci et al. 2020): drops the smallest weights and grows where the gradient is largest.

    The number of synapses of each layer stays. After each pruning, a phase of a fourth of the
    control's ``ramp`` begins, with ten updates; the fraction of a layer's synapses that is
    exchanged falls from ``fraction`` to zero as a cosine. A grown synapse starts at zero.
    """

    fraction: float = 0.3
    early: ClassVar[bool] = False
    dense: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must lie between 0 and 1, got {self.fraction}")

    def exchanged(self, since: int, phase: int) -> float:
        """The fraction exchanged ``since`` iterations after the pruning, in a phase of ``phase`` iterations."""
        return self.fraction / 2 * (1 + math.cos(math.pi * since / phase)) if since < phase else 0.0

    @torch.no_grad()
    def step(self, control: PruneControl, iteration: int) -> None:
        if control.pruned is None:
            return
        phase, since = max(control.ramp // 4, 1), iteration - control.pruned
        if since >= phase or since % max(phase // 10, 1):
            return
        for name, layer in control.layers.items():
            count = int(self.exchanged(since, phase) * layer.significant)
            count = min(count, layer.synapses - layer.significant)
            if not count:
                continue
            weights = torch.where(layer.mask, layer.weight.abs(), math.inf).flatten()
            kept = layer.mask.flatten().clone()
            kept[weights.topk(count, largest=False).indices] = False
            gradients = torch.where(kept, -math.inf, layer.dense_grad.abs().reshape(-1))
            grown = kept.clone()
            grown[gradients.topk(count).indices] = True
            # Twice, so that a synapse that was dropped and grows at once starts at zero too.
            control.set_mask(name, kept.view_as(layer.mask))
            control.set_mask(name, grown.view_as(layer.mask))
            layer.weight.grad.masked_fill_(~kept.view_as(layer.mask), 0)


@dataclass(frozen=True)
class Bias:
    """Biased weight decay (Hanson and Pratt 1989): small weights decay, large ones are let be.

    The hyperbolic bias of a synapse, ``strength`` x s|w| / (1 + s|w|) with the scale s, is
    added to the loss: its gradient is ``strength`` x s sign(w) / (1 + s|w|)^2.
    """

    strength: float = 2e-5
    scale: float = 10.0
    early: ClassVar[bool] = False
    dense: ClassVar[bool] = False

    def __post_init__(self):
        if not (0 < self.strength < math.inf and 0 < self.scale < math.inf):
            raise ValueError(f"strength and scale must be positive, got {self.strength} and {self.scale}")

    @torch.no_grad()
    def step(self, control: PruneControl, iteration: int) -> None:
        for layer in control.layers.values():
            layer.weight.grad.add_(self.decay(layer.weight))

    def decay(self, weight: torch.Tensor) -> torch.Tensor:
        """The bias's gradient, of ``weight``'s shape."""
        return self.strength * self.scale * weight.sign() / (1 + self.scale * weight.abs()).square()
