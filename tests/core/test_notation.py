import math

import pytest
import torch
from torch import nn

from pruning.notation import input_shape, layers, lenet

pytestmark = pytest.mark.arithmetic

LENET = "28x28-6c5-16c5-120-84-10"
CIFAR = "3x32x32-6c3-16c3-36c4-240-120-84-10"
DENSE = "28x28-300-100-10"
CAFFE = "28x28-20c5-50c5-500-10"

# Worked out by hand: synapses of each layer, and the positions at which a kernel is applied:
# 28-5+1 = 24, pooled 12, 12-5+1 = 8, pooled 4; 32-3+1 = 30, pooled 15, 13, pooled 6, 6-4+1 = 3.
BY_HAND = {
    LENET: ([150, 2400, 30720, 10080, 840], [576, 64, 1, 1, 1], 236),
    CIFAR: ([162, 864, 9216, 77760, 28800, 10080, 840], [900, 169, 9, 1, 1, 1, 1], 512),
    DENSE: ([235200, 30000, 1000], [1, 1, 1], 410),
    CAFFE: ([500, 25000, 400000, 5000], [576, 64, 1, 1], 580),
}
TOTALS = {  # synapses, multiply-accumulates
    LENET: (44_190, 281_640),
    CIFAR: (127_722, 492_240),
    DENSE: (266_200, 266_200),
    CAFFE: (430_500, 2_293_000),
}


@pytest.mark.parametrize("notation", BY_HAND)
def test_layers_are_those_worked_out_by_hand(notation):
    synapses, positions, biases = BY_HAND[notation]
    described = layers(notation)
    assert [layer.synapses for layer in described] == synapses
    assert [layer.output_positions for layer in described] == positions
    assert sum(layer.biases for layer in described) == biases
    total = sum(layer.synapses for layer in described), sum(layer.macs for layer in described)
    assert total == TOTALS[notation]


@pytest.mark.parametrize("notation", BY_HAND)
def test_the_model_is_what_layers_describes(notation):
    model = lenet(notation)
    outputs = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out}))
    logits = model(torch.zeros(2, *input_shape(notation)))
    assert logits.shape == (2, 10)
    weighted = [name for name, module in model.named_children() if hasattr(module, "weight")]
    assert weighted == [layer.name for layer in layers(notation)]
    for layer in layers(notation):
        module = model.get_submodule(layer.name)
        assert isinstance(module, nn.Conv2d if layer.kind == "conv" else nn.Linear)
        assert tuple(module.weight.shape) == layer.shape
        assert module.bias.numel() == layer.biases
        assert math.prod(outputs[layer.name].shape[2:]) == layer.output_positions


def test_input_shape_implies_one_channel():
    assert input_shape(DENSE) == (1, 28, 28)
    assert input_shape(CIFAR) == (3, 32, 32)
    assert input_shape("2x9x7-10") == (2, 9, 7)


def test_names_and_order():
    assert list(dict(lenet(LENET).named_children())) == [
        "conv1",
        "pool1",
        "relu1",
        "conv2",
        "pool2",
        "relu2",
        "flatten",
        "fc1",
        "relu3",
        "fc2",
        "relu4",
        "fc3",
    ]
    assert list(dict(lenet(DENSE).named_children())) == ["flatten", "fc1", "relu1", "fc2", "relu2", "fc3"]


def test_third_convolution_is_not_pooled():
    names = [name for name, _ in lenet(CIFAR).named_children()]
    assert names[6:9] == ["conv3", "relu3", "flatten"]
    assert "pool3" not in names


def test_same_function_as_relu_before_pooling():
    torch.manual_seed(0)
    model, images = lenet(LENET), torch.randn(3, 1, 28, 28)
    x = images
    for number in (1, 2):
        x = torch.max_pool2d(model.get_submodule(f"conv{number}")(x).relu(), 2)
    x = model.fc2(model.fc1(x.flatten(1)).relu()).relu()
    assert torch.equal(model(images), model.fc3(x))


def test_initialisation_follows_the_global_seed():
    def weights(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return lenet(LENET).conv1.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_layers_need_no_model():
    assert layers("3x224x224-99999c7-9999c9-99999-10")[0].output_positions == 218 * 218


@pytest.mark.parametrize(
    ("notation", "faulty", "place", "expected"),
    [
        ("", "", 0, "input's size"),
        ("28-10", "28", 0, "input's size"),
        ("1x2x3x4-10", "1x2x3x4", 0, "input's size"),
        ("0x28-10", "0x28", 0, "input's size"),
        ("28X28-10", "28X28", 0, "input's size"),
        (" 28x28-10", " 28x28", 0, "input's size"),
        ("28x28", "", 5, "output layer"),
        ("28x28-6c5", "", 9, "output layer"),
        ("28x28-10-", "", 9, "expected a layer"),
        ("28x28--10", "", 6, "expected a layer"),
        ("28x28-0c5-10", "0c5", 6, "1 or more"),
        ("28x28-6c0-10", "6c0", 6, "1 or more"),
        ("28x28-6c5-0", "0", 10, "1 or more"),
        ("28x28-6c-10", "6c", 6, "expected a layer"),
        ("28x28-6c5 -10", "6c5 ", 6, "no spaces"),
        ("28x28-10\n", "10\n", 6, "no spaces"),
        ("28x28-6.5-10", "6.5", 6, "expected a layer"),
        ("28x28-120-6c5-10", "6c5", 10, "convolutions come before"),
        ("28x28-6c29-10", "6c29", 6, "29x29, the feature map that arrives 28x28"),
        ("28x28-6c5-16c5-30c5-10", "30c5", 15, "5x5, the feature map that arrives 4x4"),
        ("28x28-6c28-10", "6c28", 6, "pooling after it: 1x1"),
        ("28x28-6c5-16c12-10", "16c12", 10, "pooling after it: 1x1"),
        ("9x28-6c5-16c5-10", "16c5", 9, "5x5, the feature map that arrives 2x12"),
    ],
)
def test_a_fault_shows_its_place(notation, faulty, place, expected):
    with pytest.raises(ValueError, match="not a network") as caught:
        lenet(notation)
    _, shown, caret, reason = str(caught.value).split("\n")
    assert shown == "  " + notation.replace("\n", " ")
    assert caret == "  " + " " * place + "^" * max(1, len(faulty))
    assert notation[place : place + len(faulty)] == faulty
    assert expected in reason


@pytest.mark.parametrize("notation", [None, 28, ["28x28", "10"], b"28x28-10"])
def test_only_text_is_a_notation(notation):
    with pytest.raises(TypeError, match="a network is text"):
        layers(notation)
