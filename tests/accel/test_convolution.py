"""The compiled kernel gives what PyTorch gives: values, gradients, predictions, and only where it may."""

import subprocess
import warnings

import pytest
import torch
from torch import nn

from pruning.accel import convolution
from pruning.accel.convolution import run, windows
from pruning.masks import masked, masked_layers
from pruning.notation import input_shape, lenet

NETWORKS = [
    "28x28-6c5-16c5-120-84-10", "28x28-6c3-16c3-36c4-240-120-84-10",
    "3x32x32-6c5-16c5-120-84-10", "3x32x32-6c3-16c3-36c4-240-120-84-10",
    "28x28-300-100-10", "2x9x9-1c1-10", "11x9-3c2-5c2-4c1-10", "3x31x21-5c5-9c4-17c2-10",
]


@pytest.fixture(autouse=True)
def compiled():
    assert convolution.available(), "a C compiler belongs to the tests' machine"


def network(notation, density=1.0, seed=0):
    torch.manual_seed(seed)
    model = masked(lenet(notation))
    for layer in masked_layers(model).values():
        layer.prune(torch.rand(layer.mask.shape) < density)
    return model


def gradients(model):
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def close(found, expected):
    scale = expected.abs().max().clamp(min=1e-6)
    assert (found - expected).abs().max() <= 2e-5 * scale


@pytest.mark.parametrize("density", [1.0, 0.3, 0.02])
@pytest.mark.parametrize("count", [1, 16, 37])
@pytest.mark.parametrize("notation", NETWORKS)
def test_values_and_gradients_are_pytorchs(notation, count, density):
    model = network(notation, density)
    images = torch.randn(count, *input_shape(notation))
    expected = model(images)
    expected.square().sum().backward()
    wanted = gradients(model)
    found = run(model, images)
    assert found.grad_fn is not None
    found.square().sum().backward()
    close(found, expected)
    for name, gradient in gradients(model).items():
        close(gradient, wanted[name])
    with torch.no_grad():
        assert torch.equal(run(model, images), found)


def test_gradient_of_a_kept_weight_that_is_zero_and_of_a_pruned_one():
    model = network(NETWORKS[0], 0.5)
    layer = model.conv2
    with torch.no_grad():
        layer.weight.zero_()
    run(model, torch.randn(8, 1, 28, 28)).sum().backward()
    assert (layer.weight.grad[layer.mask] != 0).any()
    assert (layer.weight.grad[~layer.mask] == 0).all()


def test_relu_before_pooling_is_the_same():
    model = network(NETWORKS[0])
    swapped = nn.Sequential(*[list(model)[i] for i in (0, 2, 1, 3, 5, 4, *range(6, len(model)))])
    assert [type(part) for part in swapped][1:3] == [nn.ReLU, nn.MaxPool2d]
    images = torch.randn(5, 1, 28, 28)
    assert len(convolution._stages(list(swapped))[0]) == 2
    assert torch.equal(run(swapped, images), run(model, images))


def test_a_diverged_training_shows_as_nan():
    model = network(NETWORKS[0])
    images = torch.randn(3, 1, 28, 28)
    images[1, 0, 14, 14] = float("nan")
    found = run(model, images)
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("layers", [
    [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()],
    [nn.Conv2d(1, 4, 3, stride=2), nn.ReLU()],
    [nn.Conv2d(1, 4, 3, bias=False), nn.ReLU()],
    [nn.Conv2d(1, 4, (3, 2)), nn.ReLU()],
    [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()],
    [nn.Conv2d(1, 4, 3), nn.MaxPool2d(3), nn.ReLU()],
    [nn.Conv2d(1, 4, 3), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()],
    [nn.Conv2d(1, 4, 3), nn.Sigmoid()],
    [nn.Conv2d(1, 4, 3)],
    [nn.Conv2d(1, 1201, 3), nn.ReLU()],
])
def test_other_layers_are_left_to_pytorch(layers):
    model = masked(nn.Sequential(*layers))
    images = torch.randn(3, 1, 9, 9)
    assert convolution._stages(list(model))[0] == []
    assert torch.equal(run(model, images), model(images))


def test_all_convolutions_or_none():
    model = masked(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()))
    images = torch.randn(3, 1, 9, 9)
    assert not convolution.suits(model) and torch.equal(run(model, images), model(images))


def test_hooks_are_heard():
    model, seen = network(NETWORKS[0]), []
    model.conv2.register_forward_hook(lambda *_: seen.append("conv2"))
    run(model, torch.randn(2, 1, 28, 28))
    assert seen == ["conv2"]


def test_images_of_another_size_get_pytorchs_error():
    with pytest.raises(RuntimeError, match="channels"):
        run(network(NETWORKS[0]), torch.randn(2, 3, 28, 28))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(network(NETWORKS[0]), torch.randn(2, 1, 20, 20))


def test_without_a_compiler_pytorch_does_it(monkeypatch):
    model, images = network(NETWORKS[0]), torch.randn(4, 1, 28, 28)
    found = run(model, images)
    monkeypatch.setenv("PRUNING_KERNEL", "off")
    assert not convolution.available()
    close(run(model, images), found)


@pytest.mark.parametrize(("compiler", "said"), [("no-such-compiler", "no C compiler"), ("false", "could not be compiled")])
def test_a_missing_or_failing_compiler_is_a_warning(monkeypatch, tmp_path, compiler, said):
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path))
    with pytest.warns(UserWarning, match=said):
        assert convolution._library.__wrapped__() is None


def test_a_cache_that_cannot_be_written_does_no_harm(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert convolution._library.__wrapped__() is not None


def test_the_compiler_has_no_warning():
    command = ["cc", *convolution.FLAGS, "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-o", "/dev/null", str(convolution.SOURCE)]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("flip", [False, True])
def test_windows_are_the_same_on_both_paths(monkeypatch, flip):
    generator = torch.Generator().manual_seed(3)
    padded = torch.randn(20, 3, 12, 10, generator=generator)
    picked = torch.randint(20, (9,), generator=generator)
    down, right = torch.randint(3, (2, 9), generator=generator)
    mirrored = torch.rand(9, generator=generator) < 0.5 if flip else None
    found = windows(padded, picked, down, right, mirrored, 10, 8)
    monkeypatch.setenv("PRUNING_KERNEL", "off")
    assert torch.equal(windows(padded, picked, down, right, mirrored, 10, 8), found)
