import copy

import numpy as np
import pytest
import torch
from torch import nn

from pruning.deploy.c99 import compiled, run_program, to_c
from pruning.deploy.dead_neurons import remove_dead_neurons
from pruning.deploy.onnx import to_onnx
from pruning.deploy.stages import notation_of, stages
from pruning.masks import masked, masked_layers
from pruning.notation import input_shape, lenet


def own_network() -> nn.Module:
    """Nested, without some biases and ReLUs, one ReLU used twice, dropout, a kernel that is not square."""
    relu = nn.ReLU()
    first, second = nn.Conv2d(3, 5, (3, 2), bias=False), nn.Conv2d(5, 4, 2)
    features = nn.Sequential(first, relu, nn.MaxPool2d(2, 2), second, nn.Identity())
    linears = nn.Linear(4 * 4 * 5, 12), relu, nn.Linear(12, 8), nn.Linear(8, 3, bias=False)
    return nn.Sequential(features, nn.Flatten(), nn.Dropout(), *linears)


@pytest.mark.parametrize("density", [0.05, 0.3, 1])
def test_any_sequential_network_is_narrowed_and_exported(density, tmp_path):
    images = torch.randn(30, 3, 12, 13, generator=torch.Generator().manual_seed(1))
    for seed in range(3):
        torch.manual_seed(seed)
        model = masked(own_network()).eval()
        for layer in masked_layers(model).values():
            layer.prune(torch.rand_like(layer.weight) < density)
        with torch.no_grad():
            expected = model(images)
            small = remove_dead_neurons(model, (3, 12, 13))
            assert torch.allclose(small.eval()(images), expected, atol=1e-5)
        before, after = (sum(layer.synapses for layer in masked_layers(m).values()) for m in (model, small))
        assert after == before if density == 1 else after < before
        for network in (model, small):
            program = compiled(to_c(network, (3, 12, 13)), tmp_path / "program")
            assert np.array_equal(run_program(program, images), expected.argmax(1).numpy())
            assert to_onnx(network, (3, 12, 13), tmp_path / "model.onnx") > 0


@pytest.mark.parametrize("notation", ["28x28-6c5-16c5-120-84-10", "3x32x32-6c3-16c3-36c4-240-120-84-10", "4x4-3"])
def test_the_notation_of_a_network_is_found_again(notation):
    model = lenet(notation)
    for network in (model, masked(copy.deepcopy(model)), model.to(memory_format=torch.channels_last)):
        assert notation_of(network, input_shape(notation)) == notation


def test_another_network_has_no_notation():
    model = lenet("12x12-4c3-6c3-9-3")
    model.relu1 = nn.Identity()
    with pytest.raises(ValueError, match=r"not a lenet\('12x12-4c3-6c3-9-3'"):
        notation_of(model, (1, 12, 12))
    with pytest.raises(ValueError, match="not a lenet"):
        notation_of(own_network(), (3, 12, 13))


class Residual(nn.Module):
    def forward(self, x):
        return x


class Skipping(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


POOL, TWICE = nn.MaxPool2d(2), nn.Linear(16, 16)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Flatten(), nn.Linear(16, 3), nn.Sigmoid()], r"layer '2' \(Sigmoid\) is not known"),
        ([nn.Sequential(Residual()), nn.Flatten(), nn.Linear(16, 3)], r"layer '0.0' \(Residual\) is not known"),
        ([Skipping(nn.ReLU()), nn.Flatten(), nn.Linear(16, 3)], r"layer '0' \(Skipping\) is not known"),
        ([nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, 3)], r"layer '0' \(Conv2d\) must have stride 1"),
        ([nn.Conv2d(1, 2, 3, stride=2), nn.Flatten(), nn.Linear(2, 3)], r"layer '0' \(Conv2d\) must have stride 1"),
        ([nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3)], "layer '0' .* does not fit what arrives, 1x4x4"),
        ([nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(8, 3)], "layer '0' .* does not fit what arrives, 1x4x4"),
        ([nn.Flatten(), nn.Linear(15, 3)], "layer '1' .* does not fit what arrives, 1x4x4"),
        ([nn.Linear(4, 3)], r"layer '0' \(Linear\) needs a Flatten before it"),
        ([nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)], r"layer '0' \(MaxPool2d\) must come after a layer"),
        ([nn.Conv2d(1, 2, 1), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(2, 3)], "layer '1' .* must pool 2x2"),
        ([nn.Conv2d(1, 2, 1), *2 * [POOL], nn.Flatten(), nn.Linear(2, 3)], "layer '2' .* must pool 2x2 .* once"),
        ([nn.Flatten(2), nn.Linear(16, 3)], r"layer '0' \(Flatten\) must flatten all but the batch"),
        ([nn.Flatten(), TWICE, nn.ReLU(), TWICE], "layer '3' .* is the layer '1' too"),
        ([nn.Conv2d(1, 2, 4)], "must end with a Linear layer"),
        ([nn.Flatten()], "must end with a Linear layer"),
    ],
)
def test_what_cannot_be_exported_is_named(layers, message):
    for export in (stages, to_c):
        with pytest.raises(ValueError, match=message):
            export(masked(nn.Sequential(*layers)), (1, 4, 4))
    with pytest.raises(ValueError, match=r"the model \(Residual\) is not known"):
        stages(Residual(), (1, 4, 4))
