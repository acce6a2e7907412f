"""Compensation: what the weights that stay must change by, so that the outputs survive a pruning.

    jacobian = Jacobian(model, [images])     # how the outputs depend on every weight
    jacobian.compensate(keep, [model])      # prune to the masks keep, and change what stays

A network's outputs are taken as linear in its weights around where it stands, as Optimal Brain
Surgeon does with the loss (Hassibi and Stork 1993). Cutting synapses moves the outputs of some images by
their Jacobian times the weights cut; a ridge regression finds the least change of the other weights that
moves them back. The Jacobian stays thin, one row an image (as the per-sample
gradients of CHITA, Benbaki et al. 2023), so no matrix of weights by weights is ever made.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from pruning.masks import masked_layers, unmasked

CHUNK = 64  # images whose gradients are held for all weights at once


class Jacobian:
    """Gradients of a masked model's outputs by its weights, a row an image.

    Each row is the gradient of one random combination of an image's outputs, signs of +1 and -1 with
    their mean taken away: over many images that is worth all outputs, up to what is added to all
    alike. ``images`` are mini-batches [N, C, H, W], logits [N, classes]; the signs follow from ``generator``.
    ``frozen`` names parameters, other than weights with a mask, that are to stay as they are.
    ``rows`` has the shape [images, columns], divided by the square root of the number of images; its columns are
    the synapses that are not pruned and all other parameters, so it takes four bytes an image and weight.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        images: Iterable[Tensor],
        generator: torch.Generator | None = None,
        frozen: Container[str] = (),
    ):
        self.masks = {_weight(name): layer.mask.clone() for name, layer in masked_layers(model).items()}
        plain = unmasked(copy.deepcopy(model)).eval()
        values = {
            name: value.detach() for name, value in plain.named_parameters() if name in self.masks or name not in frozen
        }
        gradients = vmap(grad(_combined, argnums=1), in_dims=(None, None, 0, 0))
        found = []
        for chunk in (part for batch in images for part in batch.split(CHUNK)):
            outputs = functional_call(plain, values, (chunk[:1],)).shape[1]
            rows = gradients(plain, values, chunk, _signs(len(chunk), outputs, generator).to(chunk))
            found.append(torch.cat([self._columns(name, row) for name, row in rows.items()], 1))
        self.shapes = {name: value.shape for name, value in values.items()}
        self.rows = torch.cat(found)
        self.rows /= math.sqrt(len(self.rows))

    def _columns(self, name: str, rows: Tensor) -> Tensor:
        rows = rows.flatten(1)
        return rows[:, self.masks[name].flatten()] if name in self.masks else rows

    def _stays(self, keep: Mapping[str, Tensor]) -> Tensor:
        """Which columns belong to what ``keep`` keeps [columns]."""
        keep = {_weight(name): kept for name, kept in keep.items()}
        return torch.cat(
            [
                keep[name][mask].flatten()
                if (mask := self.masks.get(name)) is not None
                else torch.ones(shape.numel(), dtype=torch.bool, device=self.rows.device)
                for name, shape in self.shapes.items()
            ]
        )

    def within(self, keep: Mapping[str, Tensor]) -> Jacobian:
        """Return the same rows for masks ``keep`` within those they were made with: a next step needs no measuring."""
        other = copy.copy(self)
        other.rows = self.rows[:, self._stays(keep)]
        other.masks = {_weight(name): kept.clone() for name, kept in keep.items()}
        return other

    @torch.no_grad()
    def compensate(self, keep: Mapping[str, Tensor], models: Iterable[nn.Module], damping: float = 0.1) -> None:
        """Prune every model in place to the masks ``keep`` (by layer, bool, shape of the weight) and change what stays.

        The models have the masks the Jacobian was made with, and ``keep`` lies within them.
        ``damping`` is the weight of the change itself against that of the outputs, in units of the mean
        squared column of the Jacobian.
        """
        stays = self._stays(keep)
        left, cut = self.rows[:, stays], self.rows[:, ~stays]
        ridge = damping * self.rows.square().sum() / self.rows.shape[1]
        gram = left @ left.T
        gram.diagonal().add_(ridge.clamp_min(torch.finfo(gram.dtype).tiny))
        solved = torch.linalg.cholesky(gram)
        for model in models:
            parameters = dict(model.named_parameters())
            weights = torch.cat([self._columns(name, parameters[name][None])[0] for name in self.shapes])
            moved = cut @ weights[~stays]
            weights[stays] += left.T @ torch.cholesky_solve(moved[:, None], solved)[:, 0]
            weights[~stays] = 0
            done = 0
            for name, shape in self.shapes.items():
                mask = self.masks.get(name)
                count = shape.numel() if mask is None else int(mask.sum())
                new = weights[done : done + count]
                if mask is None:
                    parameters[name].copy_(new.view(shape))
                else:
                    parameters[name].masked_scatter_(mask, new)
                done += count
            for name, layer in masked_layers(model).items():
                layer.set_mask(keep[name])


def _weight(layer: str) -> str:
    """Name a layer's weight; the layer without a name is the model itself."""
    return f"{layer}.weight" if layer else "weight"


def _signs(count: int, outputs: int, generator: torch.Generator | None) -> Tensor:
    """Random signs less their mean [count, outputs]: of one output its sign, of two outputs never the same."""
    signs = torch.randint(0, 2, (count, outputs), generator=generator) * 2.0 - 1
    if outputs == 2:
        signs[:, 1] = -signs[:, 0]
    return signs - signs.mean(1, keepdim=True) if outputs > 1 else signs


def _combined(plain: nn.Module, values: Mapping[str, Tensor], image: Tensor, signs: Tensor) -> Tensor:
    return (functional_call(plain, dict(values), (image[None],))[0] * signs).sum()
