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

SANITIZED = [
    "-std=c99",
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-Wall",
    "-Wextra",
    "-Werror",
]


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


def many_layers() -> nn.Module:
    """Whatever layers can be exported, with names of their own, and statistics as after training."""
    torch.manual_seed(0)
    layers = {
        "a": nn.Conv2d(3, 8, 3, padding=1, bias=False), "b": nn.BatchNorm2d(8), "c": nn.ReLU(), "d": nn.MaxPool2d(2),
        "e": nn.Conv2d(8, 8, (3, 2), stride=(2, 1), padding="valid", dilation=(1, 2), groups=2), "f": nn.ReLU(),
        "g": nn.AvgPool2d(3, 1, padding=1), "h": nn.ReLU(), "i": nn.Dropout2d(),
        "j": nn.Conv2d(8, 6, (2, 4), padding="same"), "k": nn.BatchNorm2d(6, affine=False),
        "l": nn.MaxPool2d((3, 2), (2, 1), padding=(1, 0)), "m": nn.Conv2d(6, 6, 2, stride=2, padding=(2, 1), groups=6),
        "n": nn.AvgPool2d((1, 2), ceil_mode=False), "o": nn.ReLU(), "p": nn.AdaptiveAvgPool2d((1, None)),
        "q": nn.Flatten(), "r": nn.Linear(12, 10), "s": nn.BatchNorm1d(10), "t": nn.ReLU(), "u": nn.Linear(10, 4),
    }  # fmt: skip
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (many_layers(), (3, 17, 20)),
        (nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (1, 9, 30)),
        # More activations than a program's stack is trusted with.
        (nn.Sequential(nn.Conv2d(1, 2, 3, (9, 7)), nn.ReLU(), nn.Flatten(), nn.Linear(2400, 3)), (1, 270, 280)),
    ],
)
def test_layers_of_any_setting_are_exported(model, shape, tmp_path):
    images = torch.randn(40, *shape, generator=torch.Generator().manual_seed(1))
    model = masked(copy.deepcopy(model))
    for layer in masked_layers(model).values():
        layer.prune(torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(2)) < 0.7)
    with torch.no_grad():
        if isinstance(model[-1], nn.Linear):  # so that the images are told apart
            model[-1].bias -= model(images).mean(0)
        logits = copy.deepcopy(model).double()(images.double())
    sure = (logits.topk(2).values.diff(dim=1).abs() > 1e-5).flatten().numpy()
    assert sure.mean() > 0.9 and len(logits.argmax(1).unique()) > 1
    for place, network in enumerate((model, remove_dead_neurons(model, shape))):
        assert to_onnx(network, shape, tmp_path / "model.onnx") > 0  # checked against PyTorch before it is written
        program = compiled(to_c(network, shape), tmp_path / f"program{place}", *SANITIZED)
        assert np.array_equal(run_program(program, images)[sure], logits.argmax(1).numpy()[sure])


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


class Doubling(nn.Sequential):
    def __call__(self, x):
        return 2 * super().__call__(x)


def patched(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: 2 * x
    return layer


POOL, TWICE = nn.MaxPool2d(2), nn.Linear(16, 16)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Flatten(), nn.Linear(16, 3), nn.Sigmoid()], r"layer '2' \(Sigmoid\) is not known"),
        ([nn.Sequential(Residual()), nn.Flatten(), nn.Linear(16, 3)], r"layer '0.0' \(Residual\) is not known"),
        ([Skipping(nn.ReLU()), nn.Flatten(), nn.Linear(16, 3)], r"layer '0' \(Skipping\) is not known"),
        ([Doubling(nn.Flatten(), nn.Linear(16, 3))], r"layer '0' \(Doubling\) has a __call__ or forward of its own"),
        ([nn.Flatten(), patched(nn.Linear(16, 3))], r"layer '1' \(Linear\) has a __call__ or forward of its own"),
        ([patched(nn.Dropout()), nn.Flatten(), nn.Linear(16, 3)], r"layer '0' \(Dropout\) has a __call__ or forward"),
        ([nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")], r"layer '0' \(Conv2d\) must .* pad with zeros"),
        (
            [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)],
            r"layer '2' \(BatchNorm2d\) must come right after a layer",
        ),
        ([nn.Conv2d(1, 2, 3), nn.Flatten(), nn.BatchNorm1d(8)], r"layer '2' \(BatchNorm1d\) must come right after a"),
        ([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(3)], "layer '1' .* does not fit what arrives, 2x2x2"),
        ([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)], "layer '1' .* normalises by the batch"),
        ([nn.Conv2d(1, 2, 3), nn.LeakyReLU()], r"layer '1' \(LeakyReLU\) is not known"),
        ([nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 3)], "layer '0' .* does not fit what arrives, 1x4x4"),
        ([nn.Conv2d(1, 2, 5), nn.Flatten(), nn.Linear(8, 3)], "layer '0' .* does not fit what arrives, 1x4x4"),
        ([nn.Flatten(), nn.Linear(15, 3)], "layer '1' .* does not fit what arrives, 1x4x4"),
        ([nn.Linear(4, 3)], r"layer '0' \(Linear\) needs a Flatten before it"),
        ([nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)], r"layer '0' \(MaxPool2d\) must come after a layer"),
        ([nn.Conv2d(1, 2, 1), nn.MaxPool2d(3, 2, ceil_mode=True)], "layer '1' .* must pool whole windows"),
        ([nn.Conv2d(1, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False)], "layer '1' .* must pool whole windows"),
        ([nn.Conv2d(1, 2, 1), nn.AvgPool2d(2, divisor_override=3)], "layer '1' .* must pool whole windows"),
        ([nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(3)], "layer '1' .* must divide what arrives"),
        (
            [nn.Conv2d(1, 2, 3), POOL, POOL, nn.Flatten(), nn.Linear(2, 3)],
            "layer '2' .* does not fit what arrives, 2x1x1",
        ),
        ([nn.Conv2d(1, 2, 1), nn.Flatten(), POOL], r"layer '2' \(MaxPool2d\) must come before the Flatten"),
        ([nn.Flatten(2), nn.Linear(16, 3)], r"layer '0' \(Flatten\) must flatten all but the batch"),
        ([nn.Flatten(), TWICE, nn.ReLU(), TWICE], "layer '3' .* is the layer '1' too"),
        ([nn.Conv2d(1, 2, 4)], "must end with a Flatten or Linear layer"),
        ([nn.Flatten()], "must end with a Flatten or Linear layer"),
    ],
)
def test_what_cannot_be_exported_is_named(layers, message):
    for export in (stages, to_c):
        with pytest.raises(ValueError, match=message):
            export(masked(nn.Sequential(*layers)), (1, 4, 4))
    with pytest.raises(ValueError, match=r"the model \(Residual\) is not known"):
        stages(Residual(), (1, 4, 4))
