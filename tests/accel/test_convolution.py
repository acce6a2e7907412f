"""The compiled kernel gives what PyTorch gives: values, gradients, predictions, and only where it may.

Small integers are summed without rounding in any order, and equal values in a pooling window are
equal everywhere: with them the comparisons are for equality, on every processor.
"""

import copy
import os
import platform
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning.accel import convolution
from pruning.accel.convolution import run, windows
from pruning.masks import masked, masked_layers
from pruning.notation import input_shape, lenet

pytestmark = pytest.mark.arithmetic

NETWORKS = [
    "28x28-6c5-16c5-120-84-10",
    "28x28-6c3-16c3-36c4-240-120-84-10",
    "3x32x32-6c5-16c5-120-84-10",
    "3x32x32-6c3-16c3-36c4-240-120-84-10",
    "2x9x9-1c1-10",
    "11x9-3c2-5c2-4c1-10",
    "3x31x21-5c5-9c4-17c2-10",
]
LANES = {"x86-64-v2": 4, "x86-64-v3": 8, "x86-64-v4": 16}
CHECK = Path(__file__).with_name("kernel_check.c")
STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I", str(convolution.SOURCE.parent))
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture
def compiled():
    if os.environ.get("PRUNING_KERNEL") == "off":
        pytest.skip("PRUNING_KERNEL=off: PyTorch does the convolutions")
    assert convolution.available(), "a C compiler belongs to the tests' machine"


@pytest.fixture(params=LANES)
def target(request, compiled, monkeypatch):
    """Each processor of the family that this machine can act out."""
    monkeypatch.setenv("PRUNING_KERNEL", request.param)
    try:
        convolution.available()
    except ValueError as error:
        pytest.skip(str(error))
    return request.param


def network(notation, density=1.0, seed=0):
    torch.manual_seed(seed)
    model = masked(lenet(notation))
    for layer in masked_layers(model).values():
        layer.prune(torch.rand(layer.mask.shape) < density)
    return model


def of_integers(notation, density):
    """The network's convolutions, pruned; kept weights may be 0."""
    model = network(notation, density)
    model = model[: [type(part) for part in model].index(nn.Flatten)]
    with torch.no_grad():
        for layer in masked_layers(model).values():
            layer.weight.copy_(torch.randint(-1, 2, layer.weight.shape) * layer.mask)
            layer.bias.copy_(torch.randint(1, 4, layer.bias.shape))
    return model


def gradients(model):
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def agrees(notation, count, density):
    """Assert that the kernel's values and gradients are those of PyTorch in double precision."""
    model = of_integers(notation, density)
    images = torch.randint(-1, 2, (count, *input_shape(notation))).float()
    exact = copy.deepcopy(model).double()
    expected = exact(images.double())
    back = torch.randint(-1, 2, expected.shape)
    expected.backward(back.double())
    found = run(model, images)
    found.backward(back.float())
    assert torch.equal(found.double(), expected) and expected.any()
    wanted = gradients(exact)
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient.double(), wanted[name]), name
    with torch.no_grad():
        assert torch.equal(run(model, images), found)


def close(found, expected):
    """Whether values, not gradients, are equal within what float32 sums of some hundred terms may lose."""
    return (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("density", [1.0, 0.3, 0.02])
@pytest.mark.parametrize("count", [1, 16, 37])
@pytest.mark.parametrize("notation", NETWORKS)
def test_values_and_gradients_are_pytorchs(compiled, notation, count, density):
    agrees(notation, count, density)


@pytest.mark.parametrize("notation", [NETWORKS[1], NETWORKS[-1]])
def test_values_and_gradients_are_pytorchs_on_other_processors(target, notation):
    assert convolution.lanes() == LANES[target]
    assert convolution.form() == f"compiled for {target}, {LANES[target]} lanes"
    agrees(notation, 37, 0.3)


@pytest.mark.parametrize("notation", [*NETWORKS, "28x28-300-100-10"])
def test_logits_are_pytorchs(notation):
    model, images = network(notation, 0.5), torch.randn(9, *input_shape(notation))
    found, expected = run(model, images), copy.deepcopy(model).double()(images.double())
    assert close(found, expected) and found.grad_fn is not None


def test_gradient_of_a_kept_weight_that_is_zero_and_of_a_pruned_one():
    model = network(NETWORKS[0], 0.5)
    layer = model.conv2
    with torch.no_grad():
        layer.weight.zero_()
    run(model, torch.randn(8, 1, 28, 28)).sum().backward()
    assert (layer.weight.grad[layer.mask] != 0).any()
    assert (layer.weight.grad[~layer.mask] == 0).all()


def test_relu_before_pooling_is_the_same(compiled):
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


@pytest.mark.parametrize(
    "layers",
    [
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
    ],
)
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


def test_pytorch_does_it_where_the_kernel_is_off(compiled, monkeypatch):
    model, images = network(NETWORKS[0]), torch.randn(4, 1, 28, 28)
    found = run(model, images)
    monkeypatch.setenv("PRUNING_KERNEL", "off")
    assert not convolution.available() and convolution.form() == "torch"
    assert close(run(model, images), found)


@pytest.mark.parametrize(
    ("compiler", "said"), [("no-such-compiler", "no C compiler"), ("false", "could not be compiled")]
)
def test_a_missing_or_failing_compiler_is_a_warning(monkeypatch, tmp_path, compiler, said):
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path))
    with pytest.warns(UserWarning, match=said):
        assert convolution._loaded.__wrapped__("native") is None


def test_a_processor_that_the_compiler_does_not_know_is_an_error(compiled, monkeypatch):
    monkeypatch.setenv("PRUNING_KERNEL", "z80")
    with pytest.raises(ValueError, match="PRUNING_KERNEL=z80: .* does not compile for it; .* such as x86-64-v3"):
        run(network(NETWORKS[0]), torch.randn(1, 1, 28, 28))


def test_a_processor_that_is_not_this_one_is_an_error(compiled, monkeypatch, tmp_path):
    source = tmp_path / "convolution.c"
    source.write_text("int lanes(void) { return 0; }")
    monkeypatch.setattr(convolution, "SOURCE", source)
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="PRUNING_KERNEL=native: this processor does not have its instructions"):
        convolution._loaded.__wrapped__("native")


def test_a_cache_that_cannot_be_written_does_no_harm(compiled, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert convolution._loaded.__wrapped__("native") is not None


def test_each_processor_has_its_own_file_in_the_cache(compiled, monkeypatch, tmp_path):
    source, cache = tmp_path / "convolution.c", tmp_path / "cache"
    source.write_text("int lanes(void) { return 0; }")
    monkeypatch.setattr(convolution, "SOURCE", source)
    monkeypatch.setenv("PRUNING_CACHE", str(cache))
    other = "x86-64" if platform.machine() == "x86_64" else "armv8-a"
    for asked, files in ((other, 1), ("native", 2), (other, 2)):
        convolution._compiled(shutil.which("cc"), asked)
        assert len(list(cache.iterdir())) == files


def build(folder, compiler, *flags):
    """The program that the kernel's check compiles to; a skip where the compiler or what its flags ask is missing."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    (folder / "empty.c").write_text("int main(void) { return 0; }")
    for file in (folder / "empty.c", CHECK):
        command = [compiler, *STRICT, *flags, str(file), "-o", str(folder / "program")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and file != CHECK:
            pytest.skip(f"{compiler} {' '.join(flags)} does not work here: {done.stderr.splitlines()[0]}")
        assert done.returncode == 0, done.stderr
    return folder / "program"


def check(*command):
    """Run the kernel's own check; a skip on a processor that it was not compiled for."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[:2000] + done.stderr
    assert "lanes: 0 differences" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["native", *LANES])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_kernels_own_check(tmp_path, compiler, processor):
    check(build(tmp_path, compiler, "-O3", f"-march={processor}"))


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_kernel_touches_no_memory_but_its_own(tmp_path, compiler):
    check(build(tmp_path, compiler, "-O0", "-march=native", *SANITIZERS))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 (package qemu-user) is not installed")
def test_the_kernels_own_check_on_arm(tmp_path):
    check("qemu-aarch64", build(tmp_path, "aarch64-linux-gnu-gcc", "-O3", "-static"))


@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="qemu-x86_64 (package qemu-user) is not installed")
@pytest.mark.skipif(platform.machine() != "x86_64", reason=f"{platform.machine()} does not compile for x86-64")
def test_a_processor_without_the_instructions_is_noticed(tmp_path):
    program = build(tmp_path, "gcc", "-O3", "-static", "-march=x86-64-v3")
    done = subprocess.run(["qemu-x86_64", "-cpu", "Nehalem", str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 77, done.stderr


@pytest.mark.parametrize("flip", [False, True])
def test_windows_are_the_same_on_both_paths(compiled, monkeypatch, flip):
    generator = torch.Generator().manual_seed(3)
    padded = torch.randn(20, 3, 12, 10, generator=generator)
    picked = torch.randint(20, (9,), generator=generator)
    down, right = torch.randint(3, (2, 9), generator=generator)
    mirrored = torch.rand(9, generator=generator) < 0.5 if flip else None
    found = windows(padded, picked, down, right, mirrored, 10, 8)
    monkeypatch.setenv("PRUNING_KERNEL", "off")
    assert torch.equal(windows(padded, picked, down, right, mirrored, 10, 8), found)
