"""Weights shared by k-means within each layer, and trained further while they stay shared.

    >>> from pruning import masked
    >>> small = share_weights(masked(nn.Linear(100, 10)), clusters=32)      # a copy
    >>> len(small.weight.unique())
    32

``fine_tune(small, loss, batches)`` trains the copy in place.

Both work on masked layers alone, and PyTorch's own quantization on plain ones alone: masked layers refuse
it, so give it ``unmasked(copy.deepcopy(model))``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pruning.layers import Masked, Synapses
from pruning.masks import masked_layers

Batch = TypeVar("Batch")
MOST = 256  # shared weights per layer: what one byte tells apart
SMALLEST = torch.finfo(torch.float16).smallest_normal  # 6.1e-5: below it, float16 has fewer than 11 bits


@torch.no_grad()
def share_weights(model: nn.Module, clusters: int = 32) -> nn.Module:
    """Copy a model so that each masked layer has at most ``clusters`` (1 to 256) distinct weights.

    K-means per layer from centroids spread evenly over its weights' range, which keeps the few
    large weights (Han et al. 2016, section 3.2: linear initialisation). Shared weights and the
    biases of masked layers are rounded to float16. A layer whose distinct weights are few enough
    and exact in float16 stays as it is. What float16 cannot hold keeps its precision: weights or
    biases with one above 65504 or all below 6.1e-5, and weights of which one would become zero.
    Raises ``ValueError`` where no layer is masked, or names what is not finite.
    """
    if not 1 <= clusters <= MOST:
        raise ValueError(f"clusters must be 1 to {MOST} per layer, got {clusters}")
    model = copy.deepcopy(model)
    for layer in _layers(model).values():
        weights = layer.parameter[layer.mask]
        if len(weights):
            centroids, labels = _kmeans(weights.cpu().double().numpy(), clusters)
            layer.parameter[layer.mask] = torch.from_numpy(centroids)[torch.from_numpy(labels)].to(weights)
    return _rounded(model)


def fine_tune(
    model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], batches: Iterable[Batch], rate: float = 1e-3
) -> nn.Module:
    """Train a model of shared weights in place, and return it.

    ``loss(model, batch)`` is a scalar; one Adam update per batch. The gradient of a shared weight
    is the sum over its synapses (Han et al. 2016, section 3.3). Biases and other parameters are
    trained too; at the end all are rounded as in ``share_weights``. Raises ``ValueError`` where no
    layer is masked, or names a layer whose weights are not shared, or not finite, before or after.
    """
    groups = []
    for name, layer in _layers(model).items():
        centroids, labels = layer.parameter.detach()[layer.mask].unique(return_inverse=True)
        if len(centroids) > MOST:
            raise ValueError(
                f"{name or 'the model'} has {len(centroids)} distinct weights: call share_weights(model) first"
            )
        groups.append((layer, nn.Parameter(centroids), labels))
    weights = {id(layer.parameter) for layer, _, _ in groups}
    others = [parameter for parameter in model.parameters() if id(parameter) not in weights]
    optimizer = torch.optim.Adam([centroids for _, centroids, _ in groups] + others, lr=rate)
    for batch in batches:
        model.zero_grad()
        loss(model, batch).backward()
        for layer, centroids, labels in groups:
            if (gradient := layer.parameter.grad) is not None:
                centroids.grad = torch.zeros_like(centroids).index_add_(0, labels, gradient[layer.mask])
        optimizer.step()
        with torch.no_grad():
            for layer, centroids, labels in groups:
                layer.parameter[layer.mask] = centroids[labels]
    model.zero_grad()
    return _rounded(model)


def _layers(model: nn.Module) -> dict[str, Synapses]:
    """Return the masked layers, with zeros where they are pruned; ``ValueError`` where there is nothing to share."""
    layers = masked_layers(model)
    if not layers:
        raise ValueError("the model has no masked layer: call masked(model, zeros_pruned=True) first")
    for layer in layers.values():
        layer.set_mask(layer.mask)
    for name, values, _ in _stored(model):
        if count := values.numel() - int(values.isfinite().sum()):
            raise ValueError(f"{name}: {count} of {values.numel()} values are NaN or infinite")
    return layers


def _stored(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Go through the weights and biases of masked layers: each by its name, and whether it has a mask."""
    weights = {id(layer.parameter) for layer in masked_layers(model).values()}
    for path, module in model.named_modules():
        for own, values in module.named_parameters(recurse=False) if isinstance(module, Masked) else ():
            if id(values) in weights or "bias" in own:
                yield f"{path}.{own}".lstrip("."), values, id(values) in weights


@torch.no_grad()
def _rounded(model: nn.Module) -> nn.Module:
    _layers(model)
    for _, values, prunable in _stored(model):
        half = values.half()
        # A bias that vanishes beside larger ones changes little; such a weight would still count as significant.
        vanishes = prunable and bool((half.eq(0) & values.ne(0)).any())
        if half.any() and half.isfinite().all() and half.abs().max() >= SMALLEST and not vanishes:
            values.copy_(half)
    return model


def _kmeans(values: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Centroids [at most ``clusters``] and the label of every value [N], without any randomness.

    Own code: scikit-learn's KMeans moves empty clusters elsewhere, so other weights would come out.
    """
    distinct, labels = np.unique(values, return_inverse=True)
    if len(distinct) <= clusters:
        return distinct, labels
    centroids = np.linspace(distinct[0], distinct[-1], clusters)
    for _ in range(300):
        labels = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
        counts = np.bincount(labels, minlength=clusters)
        means = np.bincount(labels, values, clusters) / np.maximum(counts, 1)
        updated = np.where(counts > 0, means, centroids)
        if np.array_equal(updated, centroids):
            break
        centroids = updated
    return centroids, labels
