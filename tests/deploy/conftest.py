import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning.masks import masked, masked_layers
from pruning.notation import lenet
from pruning.study.datasets import load


@pytest.fixture(scope="session")
def digits() -> nn.Module:
    """A LeNet of 5 % of its synapses, trained for some seconds on handwritten digits."""
    torch.set_num_threads(1)
    train = load("digits").train
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = masked(lenet("28x28-6c5-16c5-120-84-10"))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, nesterov=True)
    for iteration in range(240):
        if iteration in (150, 180, 210):
            for layer in masked_layers(model).values():
                kept = max(0.05 if layer.synapses > 5000 else 0.3, 0.4 - (iteration - 150) / 150)
                layer.prune(layer.weight.detach().abs() >= layer.weight.detach().abs().quantile(1 - kept))
        batch = torch.randint(len(train.images), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(train.images[batch]), train.labels[batch]).backward()
        optimizer.step()
    for layer in masked_layers(model).values():
        layer.set_mask(layer.mask)  # momentum moves what is stored under the mask
    return model
