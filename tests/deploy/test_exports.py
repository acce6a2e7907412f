import copy
import importlib
import itertools
import pickle
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning.deploy import onnx, storage
from pruning.deploy.c99 import FLAGS, compiled, run_program, table_bytes, to_c
from pruning.deploy.command import main
from pruning.deploy.dead_neurons import remove_dead_neurons
from pruning.deploy.latency import measure_latency
from pruning.deploy.onnx import session, to_onnx
from pruning.deploy.stages import notation_of
from pruning.masks import masked, masked_layers, unmasked
from pruning.notation import input_shape, layers, lenet
from pruning.study.datasets import fingerprint, load

LENET = "28x28-6c5-16c5-120-84-10"
SHAPE = (1, 28, 28)
SANITIZED = (
    "-std=c99",
    "-g",
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-Wall",
    "-Wextra",
    "-Werror",
)
NOTATIONS = [
    "12x12-4c3-6c3-9-7-3",
    "3x13x11-3c3-5c2-8-4",
    "20x20-3c3-5c3-7c2-9-3",
    "16x16-3c3-4c3-4c2-3c1-3",
    "40x40-3c5-6",
    "2x70x9-2c2-4",
    "5x4-6-3",
    "4x4-3",
]


def pruned(notation: str, density: float, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = masked(lenet(notation))
    for layer in masked_layers(model).values():
        layer.prune(torch.rand(layer.weight.shape, generator=generator) < density)
        with torch.no_grad():
            layer.bias.uniform_(-0.5, 0.5, generator=generator)
    return model


def images(notation: str, count: int = 40) -> torch.Tensor:
    return torch.randn(count, *input_shape(notation), generator=torch.Generator().manual_seed(1))


def narrowed(model: nn.Module, notation: str) -> tuple[nn.Module, str]:
    """The network without dead neurons, and its notation."""
    small = remove_dead_neurons(model, input_shape(notation))
    return small, notation_of(small, input_shape(notation))


@torch.no_grad()
def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """In double precision, so that what is left of a difference comes from the numbers stored in float32."""
    precise = copy.deepcopy(model).double()
    return torch.cat([precise(part.double()) for part in x.split(1000)])


def clear(found: torch.Tensor) -> np.ndarray:
    """Which images' class no rounding decides: the two largest logits lie further apart than 1e-4.

    Logits in float32 were off by up to 7e-6 on the real data.
    """
    two = found.topk(2).values
    return (two[:, 0] - two[:, 1] > 1e-4).numpy()


@pytest.fixture(scope="module")
def real():
    """A LeNet of 5 % of its synapses, trained for seconds on MNIST or the digits; test data, logits."""
    torch.set_num_threads(1)
    data = load("mnist" if fingerprint("mnist") else "digits")
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = masked(lenet(LENET))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, nesterov=True)
    for iteration in range(375):
        if iteration >= 150 and iteration % 25 == 0:
            for layer in masked_layers(model).values():
                kept = max(0.04 if layer.synapses > 5000 else 0.25, 0.6 ** (iteration // 25 - 5))
                weights = layer.weight.detach().abs()
                layer.prune(weights > weights.flatten().kthvalue(int((1 - kept) * layer.synapses)).values)
        batch = torch.randint(len(data.train.images), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(data.train.images[batch]), data.train.labels[batch]).backward()
        optimizer.step()
    return model, data.test, logits(model, data.test.images)


@pytest.mark.arithmetic
@pytest.mark.slow
def test_removing_dead_neurons_on_real_data_changes_no_class_and_leaves_no_neuron_without_use(real):
    model, test, before = real
    small, short = narrowed(model, LENET)
    after, sure = logits(small, test.images), clear(before)
    assert (before.argmax(1) == test.labels).float().mean() > 0.8  # a network that has learned something
    assert sure.mean() > 0.999 and torch.equal(before.argmax(1)[sure], after.argmax(1)[sure])
    assert torch.allclose(before, after, atol=1e-5)
    assert sum(layer.biases for layer in layers(short)) < 200
    assert narrowed(small, short)[1] == short


@pytest.mark.arithmetic
@pytest.mark.parametrize("notation", NOTATIONS)
@pytest.mark.parametrize("density", [0.02, 0.1, 0.4, 1])
def test_removing_dead_neurons_computes_the_same_function(notation, density):
    for seed in range(4):
        model = pruned(notation, density, seed)
        small, short = narrowed(model, notation)
        assert torch.allclose(logits(small, images(notation)), logits(model, images(notation)), atol=1e-6)
        described = layers(short)
        assert short.startswith(notation.split("-")[0]) and described[-1].biases == layers(notation)[-1].biases
        for before, after in itertools.pairwise(described):
            neurons = small.get_submodule(before.name).effective_weight().flatten(1)
            incoming = small.get_submodule(after.name).effective_weight().reshape(after.biases, before.biases, -1)
            assert before.biases == 1 or (neurons.any(1).all() and incoming.any(2).any(0).all())
        assert density < 1 or short == notation


@pytest.mark.arithmetic
def test_a_neuron_without_inputs_lives_on_in_the_next_biases():
    notation = "12x12-2c3-3c3-4-2"
    model = pruned(notation, 1.0)
    for name, neuron, bias in (("conv1", 1, 0.7), ("conv2", 0, 0.9), ("fc1", 2, 1.5)):
        layer = model.get_submodule(name)
        keep = layer.mask.clone()
        keep[neuron] = False
        layer.prune(keep)
        with torch.no_grad():
            layer.bias[neuron] = bias
    small, short = narrowed(model, notation)
    assert short == "12x12-1c3-2c3-3-2"
    # on the way: what the silent filter of conv1 adds through the kernels of conv2
    expected = model.conv2.bias[1:] + 0.7 * model.conv2.weight[1:, 1].sum((1, 2))
    assert torch.allclose(small.conv2.bias, expected)
    assert torch.allclose(small.fc2.bias, model.fc2.bias + 1.5 * model.fc2.weight[:, 2])
    assert torch.allclose(logits(small, images(notation)), logits(model, images(notation)), atol=1e-6)


def test_a_negative_constant_is_cut_by_relu():
    model = pruned("4x4-3-2", 1.0)
    model.fc1.prune(torch.arange(3)[:, None].ne(1).expand(3, 16))
    with torch.no_grad():
        model.fc1.bias[1] = -2.0
    small, short = narrowed(model, "4x4-3-2")
    assert short == "4x4-2-2" and torch.equal(small.fc2.bias, model.fc2.bias)


def test_a_neuron_that_nothing_reads_goes_and_takes_its_inputs_along():
    model = pruned("12x12-2c3-3c3-4-2", 1.0)
    model.fc1.prune(torch.arange(3).repeat_interleave(model.fc1.weight.shape[1] // 3).ne(1).expand_as(model.fc1.mask))
    keep = torch.ones_like(model.conv2.mask)
    keep[[0, 2], 0] = False  # the first filter of conv1 is read by the second of conv2 alone
    model.conv2.prune(keep)
    assert narrowed(model, "12x12-2c3-3c3-4-2")[1] == "12x12-1c3-2c3-4-2"


def test_an_empty_network_keeps_one_neuron_a_layer():
    notation = "12x12-4c3-6c3-9-7-3"
    model = pruned(notation, 0)
    small, short = narrowed(model, notation)
    assert short == "12x12-1c3-1c3-1-1-3"
    assert torch.equal(logits(small, images(notation)), logits(model, images(notation)))


def test_plain_and_channels_last_models_are_the_same_to_it(tmp_path):
    notation = "12x12-4c3-6c3-9-7-3"
    model = pruned(notation, 0.5)
    model.conv1.prune(torch.arange(4)[:, None, None, None].ne(2).expand(4, 1, 3, 3))
    with torch.no_grad():
        model.conv1.bias[2] = 1.0  # a constant to fold into the kernels of conv2
    expected = narrowed(model, notation)
    assert expected[1].startswith("12x12-3c3-6c3")
    for other in (unmasked(copy.deepcopy(model)), copy.deepcopy(model).to(memory_format=torch.channels_last)):
        small, short = narrowed(other, notation)
        assert short == expected[1]
        assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), expected[0].state_dict().values()))
        assert to_c(other, input_shape(notation)) == to_c(model, input_shape(notation))
    assert model.conv1.weight.shape == (4, 1, 3, 3)


@pytest.mark.arithmetic
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_pytorchs_own_exporters_take_a_masked_model_or_say_what_to_give_them(tmp_path):
    notation = "12x12-4c3-6c3-9-7-3"
    model = pruned(notation, 0.3).eval()
    with torch.no_grad():  # as an optimizer leaves it: what is stored under the mask is not zero
        model.fc1._parameters["weight"].add_(1)
    x = images(notation, 1)
    with torch.no_grad():
        expected = copy.deepcopy(model)(x)
    for network in (model, unmasked(copy.deepcopy(model))):
        torch.onnx.export(copy.deepcopy(network), (x,), tmp_path / "model.onnx", dynamo=False, input_names=["images"])
        ready = session((tmp_path / "model.onnx").read_bytes())
        assert np.allclose(ready.run(None, {"images": x.numpy()})[0], expected, atol=1e-5)
        for exported in (
            torch.export.export(copy.deepcopy(network), (x,)).module(),
            torch.jit.trace(copy.deepcopy(network), x),
            torch.fx.symbolic_trace(copy.deepcopy(network)),
        ):
            assert torch.allclose(exported(x), expected, atol=1e-6)
    before = type(model.fc1)
    with pytest.raises(RuntimeError, match=r"cannot compile masked layers: give it unmasked\(copy.deepcopy\(model\)\)"):
        torch.jit.script(model)
    assert type(model.fc1) is before
    assert torch.allclose(torch.jit.script(unmasked(copy.deepcopy(model)))(x), expected, atol=1e-6)


def test_another_quantization_than_8_bits_is_refused():
    for make in (to_c, table_bytes):
        with pytest.raises(ValueError, match="quantize must be None or 8, got 4"):
            make(pruned("4x4-3", 1), (1, 4, 4), quantize=4)


def test_weights_that_c_cannot_write_are_named():
    def network() -> nn.Sequential:
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
        return masked(model).double()

    wrong = [(name, value) for name in ("0.weight", "3.bias") for value in (float("nan"), float("inf"), 1e39)]
    wrong.append(("1.running_mean", 1e39))  # what BatchNorm makes of a bias
    for (name, value), quantize in itertools.product(wrong, (None, 8)):
        model = network()
        with torch.no_grad():
            model.state_dict()[name].view(-1)[1] = value
        layer = name[0].replace("1", "0")
        for make in (to_c, table_bytes):
            with pytest.raises(ValueError, match=rf"layer '{layer}' has .* NaN, infinite or beyond float32"):
                make(model, (1, 4, 4), quantize)
    assert to_c(network(), (1, 4, 4))


def test_hooks_are_refused_where_no_outputs_are_compared():
    for place, before in itertools.product(("", "1", "2"), (True, False)):
        model = masked(nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Identity()))
        layer = model.get_submodule(place)
        if before:
            hook = layer.register_forward_pre_hook(lambda layer, given: -given[0])
        else:
            hook = layer.register_forward_hook(lambda layer, given, output: -output)
        with pytest.raises(ValueError, match=f"{f'layer {place!r}' if place else 'the model'} has forward hooks"):
            to_c(model, (1, 4, 4))
        hook.remove()
        assert to_c(model, (1, 4, 4))


@pytest.mark.arithmetic
@pytest.mark.parametrize("notation", NOTATIONS)
def test_onnx_runtime_gives_the_logits_of_pytorch(notation, tmp_path):
    model = pruned(notation, 0.3)
    path = tmp_path / "model.onnx"
    assert to_onnx(model, input_shape(notation), path) == path.stat().st_size
    ready = session(path.read_bytes())
    for count in (1, 7):
        x = images(notation, count)
        assert np.allclose(ready.run(None, {"images": x.numpy()})[0], logits(model, x).numpy(), atol=1e-5)


def test_onnx_that_differs_from_pytorch_is_not_written(tmp_path, monkeypatch):
    honest = onnx.stages

    def forged(model, shape):
        chain = honest(model, shape)
        chain[0].bias[0] += 1
        return chain

    monkeypatch.setattr(onnx, "stages", forged)
    with pytest.raises(RuntimeError, match="differ"):
        to_onnx(pruned("4x4-3", 1), (1, 4, 4), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.arithmetic
@pytest.mark.slow
def test_c_gives_every_test_image_the_class_of_pytorch(real, tmp_path):
    model, test, wanted = real
    small = remove_dead_neurons(model, SHAPE)
    expected, sure = wanted.argmax(1).numpy(), clear(wanted)
    plain = run_program(compiled(to_c(small, SHAPE), tmp_path / "float"), test.images)
    assert sure.mean() > 0.999 and np.array_equal(plain[sure], expected[sure])
    quantized = run_program(compiled(to_c(small, SHAPE, 8), tmp_path / "eight"), test.images)
    assert (quantized != expected).mean() < 0.003
    assert table_bytes(small, SHAPE, 8) < 8 * 1024 < table_bytes(small, SHAPE)
    for quantize, unquantized in ((None, plain), (8, quantized)):
        careful = compiled(to_c(small, SHAPE, quantize), tmp_path / "careful", *SANITIZED)
        found = run_program(careful, test.images[:300])
        assert np.array_equal(found[sure[:300]], unquantized[:300][sure[:300]])


@pytest.mark.parametrize("notation", NOTATIONS)
def test_c_of_any_network(notation, tmp_path):
    x = images(notation)
    for density, quantize in ((0.3, None), (0.3, 8), (0, None))[: 3 if notation == "5x4-6-3" else 2]:
        model = pruned(notation, density)
        if quantize:  # weights that 8 bits hold exactly
            with torch.no_grad():
                for layer in masked_layers(model).values():
                    layer.weight.mul_(1e6).round_().clamp_(-127, 127).div_(64)
        program = compiled(to_c(model, input_shape(notation), quantize), tmp_path / "program", *SANITIZED)
        wanted = logits(model, x)
        sure = clear(wanted)
        classes = run_program(program, x)
        assert sure.mean() > 0.9 and np.array_equal(classes[sure], wanted.argmax(1).numpy()[sure]), (density, quantize)


def test_the_file_holds_the_significant_synapses_and_says_how_large_its_tables_are():
    model = pruned(LENET, 0.05)
    size = {"float": 4, "int8_t": 1, "uint8_t": 1, "uint16_t": 2}
    for quantize in (None, 8):
        source = to_c(model, SHAPE, quantize)
        tables = re.findall(r"static const (\w+) (\w+)\[(\d+)\] = \{([^}]*)\}", source)
        assert sum(size[kind] * int(count) for kind, _, count, _ in tables) == table_bytes(model, SHAPE, quantize)
        assert f"{table_bytes(model, SHAPE, quantize)} bytes of tables" in source
        for _, name, count, values in tables:
            assert values.count(",") == int(count) - 1
            layer, part = name.split("_")
            if part in ("at", "weight"):
                assert int(count) == model.get_submodule(layer).significant
        if quantize:
            for layer in ("conv1", "fc2"):
                parts = {name: values for _, name, _, values in tables}
                kept = model.get_submodule(layer).weight[model.get_submodule(layer).mask].detach().numpy()
                factor = float.fromhex(parts[f"{layer}_factor"].strip(" \nf"))
                written = np.array([int(value) for value in parts[f"{layer}_weight"].split(",")])
                assert abs(written).max() == 127 and np.allclose(written * factor, kept, rtol=0, atol=factor * 0.501)
        else:
            written = [
                float.fromhex(value.strip(" \nf"))
                for value in re.search(r"fc3_weight\[\d+\] = \{([^}]*)", source)[1].split(",")
            ]
            assert written == model.fc3.weight[model.fc3.mask].tolist()


def test_a_program_says_what_is_wrong_with_its_input(tmp_path):
    program = compiled(to_c(pruned("4x4-3", 1), (1, 4, 4)), tmp_path / "program")

    def run(data, *arguments):
        return subprocess.run([program, *arguments], input=data, capture_output=True, text=False)

    assert run(b"").returncode == 0 and run(b"").stdout == b""
    cut = run(bytes(4 * 16 + 3))
    assert cut.returncode == 1 and b"16 float32" in cut.stderr
    for arguments in (("0",), ("x",), ("1", "2"), ("-3",)):
        assert run(bytes(64), *arguments).returncode == 2
    assert float(run(bytes(640), "3").stdout) >= 0
    with pytest.raises(RuntimeError, match="cc failed"):
        compiled("int classify(;", tmp_path / "broken")


def test_the_file_compiles_without_its_main_into_other_programs(tmp_path):
    (tmp_path / "model.c").write_text(to_c(pruned("4x4-3", 0.5), (1, 4, 4)))
    (tmp_path / "device.c").write_text(
        "int classify(const float *); int main(void) { float x[16] = {0}; return classify(x) > 2; }"
    )
    subprocess.run(["cc", *FLAGS, "-pedantic", "model.c", "device.c", "-o", "device", "-lm"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "device"]).returncode == 0


@pytest.mark.slow
def test_latency_compares_all_programs_on_the_same_images(real):
    model, test, _ = real
    table = measure_latency(model, test.images[:20], rounds=2)
    assert list(table.columns) == ["program", "us", "low", "high", "speedup"]
    assert list(table["program"]) == [
        "PyTorch dense",
        "ONNX Runtime dense",
        "ONNX Runtime compact",
        "ONNX Runtime, a call alone",
        "C",
        "C, 8-bit weights",
    ]
    assert (table["low"] <= table["us"]).all() and (table["us"] <= table["high"]).all() and (table["us"] > 0).all()
    assert table.set_index("program")["speedup"]["ONNX Runtime dense"] == 1


@pytest.mark.arithmetic
@pytest.mark.slow
def test_the_command_takes_a_state_dict_and_then_what_it_wrote(real, tmp_path, capsys):
    model, test, _ = real
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert main([str(tmp_path / "model.pt"), str(tmp_path / "out"), "--network", LENET, "--quantize", "8"]) == 0
    printed = capsys.readouterr().out
    files = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"model.prn", "model.onnx", "model.c"}
    for name, size in files.items():
        assert re.search(rf"{re.escape(name)} +{size} bytes", printed)
    stored, notation = storage.load_network(tmp_path / "out" / "model.prn")
    assert f"without dead neurons {notation}" in printed
    wanted = logits(stored, test.images[:500])
    expected, sure = wanted.argmax(1).numpy()[clear(wanted)], clear(wanted)
    x = test.images[:500].numpy()
    found = session((tmp_path / "out" / "model.onnx").read_bytes()).run(None, {"images": x})[0].argmax(1)
    assert sure.mean() > 0.99 and np.array_equal(found[sure], expected)
    assert "8-bit weights" in (tmp_path / "out" / "model.c").read_text()

    assert main([str(tmp_path / "out" / "model.prn"), str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "model.prn").read_bytes() == (tmp_path / "out" / "model.prn").read_bytes()
    program = compiled((tmp_path / "again" / "model.c").read_text(), tmp_path / "program")
    assert np.array_equal(run_program(program, test.images[:500])[sure], expected)


def test_the_command_can_keep_every_weight_and_reads_zeros_as_pruned(tmp_path):
    notation = "12x12-4c3-6c3-9-7-3"
    model = pruned(notation, 0.3)
    torch.save(unmasked(copy.deepcopy(model)).state_dict(), tmp_path / "plain.pt")
    assert main([str(tmp_path / "plain.pt"), str(tmp_path), "--network", notation, "--clusters", "0"]) == 0
    stored = storage.load(tmp_path / "model.prn")
    assert torch.equal(logits(stored, images(notation)), logits(narrowed(model, notation)[0], images(notation)))
    assert stored.fc1.significant <= model.fc1.significant


def test_the_command_takes_a_notation_by_its_structure_whatever_the_layers_are_called(tmp_path):
    notation = "12x12-4c3-6c3-9-7-3"
    model = pruned(notation, 0.3)
    for name, state in (("masks", model), ("plain", unmasked(copy.deepcopy(model)))):
        torch.save(nn.Sequential(*copy.deepcopy(state)).state_dict(), tmp_path / "model.pt")
        assert main([str(tmp_path / "model.pt"), str(tmp_path / name), "--network", notation]) == 0
    assert (tmp_path / "masks" / "model.prn").read_bytes() == (tmp_path / "plain" / "model.prn").read_bytes()
    assert storage.load(tmp_path / "masks" / "model.prn").conv1.in_channels == 1


OWN = """
from torch import nn

def sequential():
    features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2))
    return nn.Sequential(features, nn.Flatten(), nn.Dropout(), nn.Linear(6 * 16, 5))

def branching():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(6 * 36, 5))

def of_a_study(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

def nothing():
    return None
"""


@pytest.mark.arithmetic
def test_the_command_takes_a_sequential_network_that_a_function_makes(tmp_path, monkeypatch, capsys):
    (tmp_path / "deploy_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    deploy_nets = importlib.import_module("deploy_nets")
    torch.manual_seed(0)
    model = masked(deploy_nets.sequential())
    for layer in masked_layers(model).values():
        layer.prune(torch.rand_like(layer.weight) < 0.4)
    model[0][0].prune(torch.arange(6).ne(2).view(6, 1, 1, 1).expand(6, 3, 3, 3))
    model(torch.randn(20, 3, 8, 8))  # statistics of BatchNorm
    torch.save(model.state_dict(), tmp_path / "model.pt")
    asked = "--network", "deploy_nets:sequential", "--input", "3x8x8", "--clusters", "0"
    assert main([str(tmp_path / "model.pt"), str(tmp_path / "out"), *asked]) == 0
    assert "without dead neurons 3x8x8-5c3-5" in capsys.readouterr().out
    again = masked(deploy_nets.sequential()).eval()
    again.load_state_dict(storage.decode_state((tmp_path / "out" / "model.prn").read_bytes()))
    x = torch.randn(50, 3, 8, 8)
    wanted = logits(model.eval(), x)
    assert torch.equal(again(x), model(x))
    found = session((tmp_path / "out" / "model.onnx").read_bytes()).run(None, {"images": x.numpy()})[0]
    assert np.allclose(found, wanted, atol=1e-5)
    program, sure = compiled((tmp_path / "out" / "model.c").read_text(), tmp_path / "program"), clear(wanted)
    assert np.array_equal(run_program(program, x)[sure], wanted.argmax(1).numpy()[sure])
    # What it wrote is taken again.
    assert main([str(tmp_path / "out" / "model.prn"), str(tmp_path / "again"), *asked]) == 0
    assert (tmp_path / "again" / "model.c").read_bytes() == (tmp_path / "out" / "model.c").read_bytes()
    torch.save(deploy_nets.of_a_study((3, 8, 8), 7).state_dict(), tmp_path / "study.pt")
    asked = "--network", "deploy_nets:of_a_study", *asked[2:]
    assert main([str(tmp_path / "study.pt"), str(tmp_path / "study"), *asked]) == 0
    assert "3x8x8-7" in capsys.readouterr().out
    torch.save(deploy_nets.branching().state_dict(), tmp_path / "branching.pt")
    for arguments, message in (
        (("model.pt", *asked[:2]), "--input CxHxW and --network package.module:function go together"),
        (("model.pt", "--network", "3x8x8-5", *asked[2:]), "--input CxHxW and --network"),
        (("model.pt", "--network", "deploy_nets:missing", *asked[2:]), "makes no network: AttributeError"),
        (("model.pt", "--network", "deploy_nets:nothing", *asked[2:]), "returned NoneType, not a network"),
        (
            ("model.pt", "--network", "deploy_nets:branching", *asked[2:]),
            "does not fit 'deploy_nets:branching'",
        ),
        (("branching.pt", "--network", "deploy_nets:branching", *asked[2:]), "layer '1' (Sigmoid) is not known"),
        (("out/model.prn",), "holds no notation"),
    ):
        assert main([str(tmp_path / arguments[0]), str(tmp_path / "none"), *arguments[1:]]) == 1, arguments
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


RUN = "import sys; from pruning.deploy.command import main; sys.exit(main())"


class Bomb:
    def __reduce__(self):
        return (print, ("pickled code ran",))


@pytest.mark.slow
def test_the_command_says_what_is_wrong(tmp_path, capsys):
    notation = "4x4-3"
    model = pruned(notation, 1)
    torch.save(model.state_dict(), tmp_path / "good.pt")
    torch.save({"model": model.state_dict()}, tmp_path / "nested.pt")
    (tmp_path / "noise").write_bytes(struct.pack("<16f", *range(16)))
    (tmp_path / "bomb").write_bytes(pickle.dumps(Bomb(), protocol=2))
    data = storage.encode(model, "csr", notation)
    (tmp_path / "good.prn").write_bytes(data)
    (tmp_path / "cut.prn").write_bytes(data[:-1])
    (tmp_path / "nameless.prn").write_bytes(storage.encode(model, "csr"))
    (tmp_path / "file").touch()
    for arguments, message in (
        (["missing"], "missing"),
        (["good.pt"], "--network"),
        (["good.pt", "--network", "4x4-5"], "does not fit '4x4-5'"),
        (["good.pt", "--network", "4x4-z"], "not a network"),
        (["nested.pt", "--network", notation], "state dict"),
        (["noise", "--network", notation], "neither a stored network nor a state dict"),
        (["bomb", "--network", notation], "neither a stored network nor a state dict"),
        (["cut.prn"], "truncated or altered"),
        (["nameless.prn"], "no notation"),
        (["good.prn", "--network", "4x4-5"], "holds the network '4x4-3'"),
        (["good.prn", "--clusters", "300"], "1 to 256"),
    ):
        assert main([str(tmp_path / arguments[0]), str(tmp_path / "out"), *arguments[1:]]) == 1, arguments
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and message in captured.err, captured.err
        assert "pickled code ran" not in captured.out + captured.err
    assert main([str(tmp_path / "good.prn"), str(tmp_path / "file" / "out")]) == 1
    assert not (tmp_path / "out").exists()
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "missing"), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
