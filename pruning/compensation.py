"""Compensation: what the weights that stay must change by, so that the outputs survive a pruning.

    >>> from pruning import masked
    >>> model = masked(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2)))
    >>> jacobian = Jacobian(model, [torch.randn(64, 20)])      # how the outputs depend on every weight and bias
    >>> jacobian.rows.shape
    torch.Size([64, 692])
    >>> keep = {name: layer.weight.abs() > 0.05 for name, layer in masked_layers(model).items()}
    >>> jacobian.compensate(keep, [model])      # prune to these masks, and change what stays

A network's outputs are taken as linear in its weights around where it stands, as Optimal Brain
Surgeon does with the loss (Hassibi and Stork 1993). Cutting synapses moves the outputs of some samples by
their Jacobian times the weights cut; a ridge regression finds the least change of the other weights that
moves them back. The Jacobian stays thin, one row a sample (as the per-sample
gradients of CHITA, Benbaki et al. 2023), so no matrix of weights by weights is ever made.
"""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pruning.gradients import Batch, SampleGradients, call
from pruning.masks import masked_layers, unmasked

MEMORY = 2**30  # bytes
SLICE = 2**14  # columns that are in double precision at once


@dataclass(frozen=True)
class Columns:
    """What has a column in a Jacobian: synapses that are not pruned, and all other parameters that may change.

    ``weights`` names the parameter of each masked layer; ``masks`` and ``shapes`` are by the name of the parameter.
    ``frozen`` names those that are to stay as they are, and have columns because they may be cut.
    """

    weights: Mapping[str, str]
    masks: Mapping[str, Tensor]
    shapes: Mapping[str, torch.Size]
    frozen: Container[str]

    @classmethod
    def of(cls, model: nn.Module, frozen: Container[str] = ()) -> Columns:
        """Find those of a model."""
        parameters = dict(model.named_parameters())
        names = {id(value): name for name, value in parameters.items()}
        layers = masked_layers(model)
        weights = {layer: names[id(part.parameter)] for layer, part in layers.items()}
        masks = {weights[layer]: part.mask.clone() for layer, part in layers.items()}
        chosen = [name for name in parameters if name in masks or name not in frozen]
        still = {name for name in chosen if name in frozen}
        if len(still) == len(chosen):
            raise ValueError("all parameters are frozen: none can make up for what is cut")
        return cls(weights, masks, {name: parameters[name].shape for name in chosen}, still)

    def within(self, keep: Mapping[str, Tensor]) -> Columns:
        """Return those that masks ``keep`` leave (by layer, bool, shape of the weight)."""
        return replace(self, masks={self.weights[layer]: mask.clone() for layer, mask in keep.items()})

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """Count the columns of each parameter."""
        masks = self.masks
        return {n: int(masks[n].sum()) if n in masks else shape.numel() for n, shape in self.shapes.items()}

    @property
    def total(self) -> int:
        """Count all columns."""
        return sum(self.counts.values())

    def flat(self, values: Mapping[str, Tensor]) -> Tensor:
        """Put values in the parameters' shapes, by name, into a vector [columns]."""
        return torch.cat([self._chosen(name, values[name]) for name in self.shapes])

    def _chosen(self, name: str, value: Tensor) -> Tensor:
        return value[self.masks[name]] if name in self.masks else value.flatten()

    def write(self, vector: Tensor, parameters: Mapping[str, Tensor]) -> None:
        """Write a vector [columns] into parameters."""
        for (name, shape), new in zip(self.shapes.items(), vector.split(list(self.counts.values()))):
            if name in self.masks:
                parameters[name].masked_scatter_(self.masks[name], new.to(parameters[name].dtype))
            else:
                parameters[name].copy_(new.view(shape))

    def stays(self, keep: Mapping[str, Tensor]) -> Tensor:
        """Say which belong to what ``keep`` keeps [columns]."""
        device = next(iter(keep.values())).device
        ones = {name: torch.ones(shape, dtype=torch.bool, device=device) for name, shape in self.shapes.items()}
        return self.flat(ones | {self.weights[layer]: mask for layer, mask in keep.items()})

    def movable(self, device: torch.device) -> Tensor:
        """Say which may change [columns]."""
        flags = torch.tensor([name not in self.frozen for name in self.counts])
        return flags.repeat_interleave(torch.tensor(list(self.counts.values()))).to(device)

    def places(self, numbers: Tensor) -> dict[str, tuple[slice, Tensor]]:
        """Find some columns by their ascending numbers: their places among these, and the entries of the parameters."""
        found, start = {}, 0
        for name, count in self.counts.items():
            ends = torch.tensor([start, start + count], device=numbers.device)
            first, last = torch.searchsorted(numbers, ends).tolist()
            if first < last:
                inside, mask = numbers[first:last] - start, self.masks.get(name)
                found[name] = slice(first, last), inside if mask is None else mask.flatten().nonzero()[inside, 0]
            start += count
        return found


class Jacobian:
    """Gradients of a masked model's outputs by its weights, a row a sample.

    ``batches`` are mini-batches of the model's inputs in any form that ``pruning.gradients`` takes, which also says
    what ``output`` and ``logits`` are: each row is the gradient of one random combination of a sample's outputs, which
    follows from ``generator``. ``frozen`` names parameters that are to stay as they are, but for what is cut of them.

    ``rows`` has the shape [samples, columns], divided by the square root of the number of samples, in the parameters'
    precision. They are kept where they take at most ``memory`` bytes, and their use takes about as many again.
    Otherwise ``rows`` is None: a warning tells the size, and blocks of twice ``memory`` are made when they are needed.
    """

    rows: Tensor | None

    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        generator: torch.Generator | None = None,
        frozen: Container[str] = (),
        *,
        output: Callable[[Any], Any] | None = None,
        logits: bool | None = False,
        memory: float = MEMORY,
    ):
        self.columns, self.memory = Columns.of(model, frozen), memory
        plain, chosen = unmasked(copy.deepcopy(model)), self.columns.shapes
        self.gradients = SampleGradients(plain, batches, chosen, generator, output=output, logits=logits, memory=memory)
        # Of the columns that may change, in double precision, and of those that stayed in the last step.
        self.gram: Tensor | None = None
        self.squares: Tensor | None = None  # [columns], the mean square of each column
        self.gram_left: tuple[Tensor, Tensor] | None = None
        self.rows = None
        if self.needed <= memory:
            self.rows = self._measured(torch.arange(self.columns.total, device=self.gradients.device))
        else:
            warnings.warn(
                f"compensation measures {self.columns.total:,} weights on {self.gradients.samples} samples, "
                f"{self.needed / 2**30:.1f} GiB: it works in blocks of {memory / 2**29:.2g} GiB, each a pass through "
                f"the samples, {math.ceil(self.needed / memory / 2)} for the measurement and fewer for each step; more "
                "memory or fewer samples make it faster",
                stacklevel=3,
            )

    @property
    def needed(self) -> int:
        """The bytes that all rows take together."""
        return self.gradients.samples * self.columns.total * self.gradients.dtype.itemsize

    def peak(self, samples: int) -> int:
        """Estimate the bytes that measuring so many samples and compensating take, beside the model."""
        row = self.columns.total * self.gradients.dtype.itemsize
        return int(2 * min(samples * row, self.memory) + self.gradients.chunk * self.gradients.sample_bytes)

    def _measured(self, numbers: Tensor) -> Tensor:
        """Measure some columns by their ascending numbers [count]: [samples, count]."""
        source, places = self.gradients, self.columns.places(numbers)
        rows = torch.empty(source.samples, len(numbers), dtype=source.dtype, device=source.device)
        for first, slopes in source.rows(places):
            for name, (place, entries) in places.items():
                part = slopes.pop(name).flatten(1)[:, entries]
                rows[first : first + len(part), place] = part
        rows /= math.sqrt(len(rows))
        return rows

    def _blocks(self, numbers: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through some columns by their numbers: which they are, and their rows in double precision."""
        width = max(int(2 * self.memory) // (self.gradients.samples * self.gradients.dtype.itemsize), 1)
        for some in numbers.split(width if self.rows is None else SLICE) if len(numbers) else ():
            rows = self._measured(some) if self.rows is None else self.rows[:, some]
            for here, part in zip(some.split(SLICE), rows.split(SLICE, 1)):
                yield here, part.double()
            del rows, part  # before the next are made

    def within(self, keep: Mapping[str, Tensor]) -> Jacobian:
        """Return the same rows for masks ``keep`` within those they were made with: a next step needs no measuring."""
        other, stays = copy.copy(self), self.columns.stays(keep)
        other.columns = self.columns.within(keep)
        known = self.gram_left is not None and torch.equal(self.gram_left[0], stays)
        other.gram = self.gram_left[1] if self.gram_left and known else None
        if self.rows is not None:
            other.rows = self.rows[:, stays]
        if self.squares is not None:
            other.squares = self.squares[stays]
        return other

    def mean_squares(self) -> Tensor:
        """Return the mean square of each column [columns]."""
        if self.squares is None:
            rows = self._small
            self.squares = rows.square().sum(0) if rows is not None else self._survey()[1]
        return self.squares

    @torch.no_grad()
    def compensate(self, keep: Mapping[str, Tensor], models: Iterable[nn.Module], damping: float = 0.1) -> None:
        """Prune every model in place to the masks ``keep`` (by layer, bool, shape of the weight) and change what stays.

        The models have the masks the Jacobian was made with, and ``keep`` lies within them; the first is the one that
        trains. ``damping`` is the weight of the change itself against that of the outputs, in units of the mean
        squared column of the Jacobian. Running statistics, such as those of batch normalization, are then taken from
        the measured batches; a layer that the training loop has set to evaluation keeps its own.
        """
        models, stays = list(models), self.columns.stays(keep)
        parameters: list[dict[str, Tensor]] = [dict(model.named_parameters()) for model in models]
        wide = torch.promote_types(self.gradients.dtype, torch.float32)
        vectors = [self.columns.flat(own).to(wide) for own in parameters]
        free = stays & self.columns.movable(stays.device)
        for model, own, vector, change in zip(
            models, parameters, vectors, self._changes(vectors, stays, free, damping)
        ):
            vector[free] += change
            vector[~stays] = 0
            self.columns.write(vector, own)
            for name, layer in masked_layers(model).items():
                layer.set_mask(keep[name])
        _renew_statistics(models, self.gradients.batches)

    def _changes(self, vectors: list[Tensor], stays: Tensor, free: Tensor, damping: float) -> list[Tensor]:
        """Compute what the free columns of each vector of weights [columns] change by."""
        if not free.any():
            return [vector[free] for vector in vectors]
        if (rows := self._small) is not None:
            may_change = rows[:, self.columns.movable(free.device)] if self.columns.frozen else rows
            ridge = damping * may_change.square().sum() / may_change.shape[1]
            left, cut = rows[:, free], rows[:, ~stays]
            factor = _factor(left @ left.T, ridge)
            if factor is not None:
                moved = [cut @ vector[~stays] for vector in vectors]
                return [left.T @ torch.cholesky_solve(one[:, None], factor)[:, 0] for one in moved]
        return self._changes_in_blocks(vectors, stays, free, damping)

    @property
    def _small(self) -> Tensor | None:
        """All rows [samples, columns] if they are kept in single precision or better, otherwise None."""
        return self.rows if self.rows is not None and self.rows.dtype.itemsize >= 4 else None

    def _survey(self) -> tuple[Tensor, Tensor]:
        """Compute, in blocks, the Gram matrix [samples, samples] of what may change and the mean squares [columns]."""
        samples, movable = self.gradients.samples, self.columns.movable(self.gradients.device)
        gram = torch.zeros(samples, samples, dtype=torch.float64, device=movable.device)
        squares = torch.empty(len(movable), dtype=torch.float64, device=movable.device)
        for numbers, part in self._blocks(torch.arange(len(movable), device=movable.device)):
            squares[numbers] = part.square().sum(0)
            part.mul_(movable[numbers])
            gram.addmm_(part, part.T)
        self.gram, self.squares = gram, squares
        return gram, squares

    def _changes_in_blocks(self, vectors: list[Tensor], stays: Tensor, free: Tensor, damping: float) -> list[Tensor]:
        """Compute the same, going through the cut columns in blocks."""
        gram = self._survey()[0] if self.gram is None else self.gram
        samples, movable = self.gradients.samples, self.columns.movable(free.device)
        cut, moved = torch.zeros_like(gram), [torch.zeros_like(gram[0]) for _ in vectors]
        for numbers, part in self._blocks((~stays).nonzero()[:, 0]):
            for one, vector in zip(moved, vectors):
                one.add_(part @ vector[numbers].double())
            part.mul_(movable[numbers])
            cut.addmm_(part, part.T)
        left = gram - cut
        factor = _factor(left, damping * gram.trace() / int(movable.sum()))
        if factor is None:
            raise ValueError("the gradients of the model's outputs are not finite, or too large for its precision")
        self.gram_left = stays, left
        changes = []
        for one in moved:
            weights = torch.cholesky_solve(one[:, None], factor)[:, 0] / math.sqrt(samples)
            changes.append(self.columns.flat(self.gradients.weighted(weights.to(vectors[0].dtype)))[free])
        return changes


@torch.no_grad()
def score_factors(jacobian: Jacobian, damping: float = 0.1) -> dict[str, Tensor]:
    """Return factors that make magnitudes reflect what cutting a weight does to the outputs.

    By layer, in the shape of the weight, 0 for what is pruned. Cutting one weight moves the outputs by its
    magnitude times the root mean square of its column of the Jacobian, much as Optimal Brain Damage ranks by what
    it does to the loss (LeCun et al. 1990). Few samples estimate this only roughly, and compensation restores most
    of what moves. So weights are ranked by the geometric mean of this product and the magnitude. The factor is the
    square root of the root mean square, after ``damping`` times the mean square over all columns is added to the
    mean square. Where the outputs depend on nothing, all factors are the same.
    """
    squares = jacobian.mean_squares()
    if not squares.any():
        squares = torch.ones_like(squares)
    factors = (squares + damping * squares.mean()).pow(0.25).to(jacobian.gradients.dtype)
    found = {name: torch.zeros(shape, dtype=factors.dtype, device=factors.device)
             for name, shape in jacobian.columns.shapes.items()}  # fmt: skip
    jacobian.columns.write(factors, found)
    return {layer: found[name] for layer, name in jacobian.columns.weights.items()}


def _factor(gram: Tensor, ridge: Tensor) -> Tensor | None:
    """Factorize a Gram matrix with a ridge on its diagonal; None where rounding leaves it without a factor."""
    gram = gram.clone()
    gram.diagonal().add_(ridge.clamp_min(torch.finfo(gram.dtype).tiny))
    factor, failed = torch.linalg.cholesky_ex(gram)
    return None if failed or not factor.isfinite().all() else factor


def _renew_statistics(models: list[nn.Module], batches: list[Batch]) -> None:
    """Take running statistics from the batches, where the first model's layers are in training."""
    live = models[0]
    names = [name for name, layer in live.named_modules() if _collects(layer, live)]
    for model in models if names else ():
        modes = {module: module.training for module in model.modules()}
        layers: list[Any] = [model.eval().get_submodule(name) for name in names]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.train().reset_running_stats()
            layer.momentum = None  # the mean over all batches
        for batch in batches:
            call(model, batch.inputs)
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum
        for module, training in modes.items():
            module.training = training


def _collects(layer: nn.Module, live: nn.Module) -> bool:
    """Say whether training renews a layer's statistics; in a model that is just being evaluated, frozen layers tell."""
    if getattr(layer, "running_mean", None) is None or not hasattr(layer, "reset_running_stats"):
        return False
    return layer.training or (not live.training and all(value.requires_grad for value in layer.parameters()))
