"""A model that can be counted by hand, and mini-batches for it."""

import torch
from torch import nn

from pruning import masked


def tiny(seed=0):
    """Synapses: conv 3 x 2 x 3 x 3 = 54, fc 5 x 12 = 60; images [N, 2, 4, 4]."""
    torch.manual_seed(seed)
    return masked(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5)))


def examples(seed):
    """Eight images [8, 2, 4, 4] and their labels [8]."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(8, 2, 4, 4, generator=source), torch.randint(5, (8,), generator=source)
