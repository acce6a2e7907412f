"""The same function in fewer neurons: those without a synapse in or out do nothing a constant could not do.

>>> from pruning import masked
>>> from pruning.notation import lenet
>>> model = masked(lenet("28x28-300-100-10"))
>>> model.fc2.mask[:40] = False      # 40 of 100 neurons without a synapse in
>>> remove_dead_neurons(model, (1, 28, 28)).fc2.out_features
60
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from pruning.deploy.stages import Stage, stages
from pruning.masks import masked, unmasked


def remove_dead_neurons(model: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Copy a sequential network without the neurons and filters that have no synapse in or none out.

    What such a neuron puts out without any input, its bias (cut by ReLU where one follows), is
    folded into the biases of the next layer: without padding it is the same everywhere, under
    maximum pooling too. So outputs change by no more than the rounding of float32. A layer keeps
    at least one neuron. ``shape`` (C, H, W) is that of one image. Returns a masked model on the
    CPU; a weight of zero counts as pruned. Raises ``ValueError`` as ``stages`` does.
    """
    chain = stages(model, shape)
    for stage, after in itertools.pairwise(chain):
        silent = ~stage.weight.reshape(len(stage.weight), -1).any(axis=1)
        constant = np.where(silent, np.maximum(stage.bias, 0) if stage.relu else stage.bias, 0)
        incoming = _by_source(stage, after)
        after.bias = after.bias + incoming.sum(2) @ constant
        incoming[:, silent] = 0  # a view: these are the weights of the next layer
    for stage, after in reversed(list(itertools.pairwise(chain))):
        incoming = _by_source(stage, after)
        used = np.asarray(incoming.any(axis=(0, 2)))
        if not used.any():
            used[0], stage.weight[0], stage.bias[0] = True, 0, 0
        stage.weight, stage.bias = stage.weight[used], stage.bias[used]
        after.weight = incoming[:, used].reshape(len(incoming), -1, *after.weight.shape[2:])
    small = unmasked(copy.deepcopy(model)).cpu()
    for stage in chain:
        layer = small.get_submodule(stage.place)
        layer.weight = nn.Parameter(torch.from_numpy(stage.weight).float())
        layer.bias = nn.Parameter(torch.from_numpy(stage.bias).float())
        if stage.convolution:
            layer.out_channels, layer.in_channels = stage.weight.shape[:2]
        else:
            layer.out_features, layer.in_features = stage.weight.shape
    return masked(small, zeros_pruned=True)


def _by_source(stage: Stage, after: Stage) -> np.ndarray:
    """View the weights of ``after`` as [out, neurons of stage, weights of each]."""
    return after.weight.reshape(len(after.weight), len(stage.bias), -1)
