import copy
from itertools import accumulate

import pytest
import torch
from torch import nn

from pruning import density, masked_layers
from pruning.notation import layers, lenet
from pruning.study import datasets
from pruning.study.config import HASHED_FIELDS, Recipe, Run, Settings
from pruning.study.hashed import HashedConv2d, HashedLinear, hashed, ladder
from pruning.study.records import read_record
from pruning.study.runner import run as carry_out
from pruning.study.training import accuracy

pytestmark = pytest.mark.arithmetic

NETWORK = "28x28-6c5-16c5-120-84-10"
RECIPE = Recipe(batch=32, warmup=20, averaging=0.9, interval=20)


def test_a_layer_has_the_stated_number_of_parameters():
    layer = HashedLinear(30, 20, weights=17, seed=1)
    assert [tuple(parameter.shape) for parameter in layer.parameters()] == [(17,), (20,)]
    assert (layer.synapses, layer.connections) == (17, 600)
    conv = HashedConv2d(3, 8, 5, weights=9, bias=False)
    assert sum(parameter.numel() for parameter in conv.parameters()) == conv.synapses == 9
    assert conv.connections == 600 and conv(torch.randn(2, 3, 7, 7)).shape == (2, 8, 3, 3)
    assert set(layer.state_dict()) == {"weight", "bias", "mask"}, "indices and signs follow from the seed"
    assert layer.virtual_weight().abs().unique().numel() <= 17


def test_every_weight_is_shared_evenly_with_both_signs():
    layer = HashedLinear(300, 200, weights=20)
    counts = layer.index.flatten().bincount(minlength=20)
    expected = 60000 / 20  # six standard deviations of a binomial count
    assert (counts - expected).abs().max() < 6 * (expected * (1 - 1 / 20)) ** 0.5
    assert abs(layer.sign.sum()) < 6 * 60000**0.5 and layer.sign.abs().eq(1).all()


def test_forward_equals_a_plain_layer_with_the_virtual_weight():
    for layer, plain, shape in (
        (HashedLinear(12, 5, weights=7), nn.Linear(12, 5), (4, 12)),
        (HashedConv2d(2, 3, 3, weights=7), nn.Conv2d(2, 3, 3), (4, 2, 6, 6)),
    ):
        plain.load_state_dict({"weight": layer.virtual_weight().detach(), "bias": layer.bias.detach()})
        x = torch.randn(shape)
        assert torch.equal(layer(x), plain(x))


def test_the_gradient_is_the_signed_sum_over_the_shared_positions():
    layer = HashedLinear(12, 5, weights=7, seed=3).double()
    virtual = layer.virtual_weight().detach().requires_grad_()
    x, y = torch.randn(4, 12, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    (layer(x) - y).square().sum().backward()
    (nn.functional.linear(x, virtual, layer.bias) - y).square().sum().backward()
    for number in range(7):
        there = layer.index == number
        assert layer.weight.grad[number] == pytest.approx(float((virtual.grad * layer.sign)[there].sum()))


def test_the_hash_follows_from_the_seed():
    first, again, other = (HashedLinear(12, 5, weights=7, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.index, again.index) and torch.equal(first.virtual_weight(), again.virtual_weight())
    assert not torch.equal(first.index, other.index)
    twin = copy.deepcopy(first)
    other.load_state_dict(first.state_dict())
    assert torch.equal(twin.virtual_weight(), first.virtual_weight())
    assert not torch.equal(other.virtual_weight(), first.virtual_weight())


@pytest.mark.parametrize("part", [1.0, 0.1, 0.001])
def test_a_network_of_a_density(part):
    torch.manual_seed(0)
    model = hashed(lenet(NETWORK), part)
    found = masked_layers(model)
    assert {name: layer.synapses for name, layer in found.items()} == {
        layer.name: max(round(part * layer.synapses), 1) for layer in layers(NETWORK)
    }
    connections = {name: layer.connections for name, layer in found.items()}
    assert connections == {layer.name: layer.synapses for layer in layers(NETWORK)}
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10) and density(model) == 1
    # Layers draw from hash functions of their own.
    assert not torch.equal(found["fc1"].index.flatten()[:100], found["fc2"].index.flatten()[:100])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: hashed(nn.Linear(2, 2), 0), r"density must lie in \(0, 1\], got 0"),
        (lambda: HashedLinear(2, 2, weights=5), "weights must be from 1 to the 4 connections, got 5"),
        (lambda: HashedLinear(2, 2, weights=0), "got 0"),
    ],
)
def test_bad_parameters(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.fixture(scope="module")
def rungs():
    """The outcome of a ladder on the digits, and the trainings it is made of."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    digits, lasts = datasets.load("digits"), []
    whole = ladder(
        NETWORK,
        digits,
        RECIPE,
        0.4,
        0,
        patience=4,
        budget=400,
        **HASHED_FIELDS,
        progress=lambda event, training: event.finished and lasts.append((training, event)),
    )
    torch.set_num_threads(before)
    return digits, whole, lasts


@pytest.mark.slow
def test_a_ladder_counts_every_iteration(rungs):
    _, whole, lasts = rungs
    total = sum(layer.synapses for layer in layers(NETWORK))
    met = [event.accuracy >= 0.4 for _, event in lasts]
    assert all(met[:-1]) and len(lasts) > 3 and whole.start == lasts[0][1].iteration
    spent = list(accumulate(event.iteration for _, event in lasts))
    assert whole.iterations == spent[-1] == whole.events[-1].iteration <= 400
    assert len(whole.events) == spent[-1] // 20 and whole.events[-1].action in ("budget spent", "not recovered")
    best = max(number for number, there in enumerate(met) if there)
    assert whole.best["iteration"] == spent[best] and whole.best["accuracy"] == lasts[best][1].accuracy
    assert whole.best["density"] == lasts[best][0].control.pruner.synapses / total == pytest.approx(0.7**best, rel=2e-2)
    seen = sorted({event.density for event in whole.events}, reverse=True)
    assert seen == pytest.approx([0.7**n for n in range(len(lasts))], rel=2e-2)


@pytest.mark.slow
def test_a_ladder_delivers_its_smallest_network_that_met_the_requirement(rungs):
    digits, whole, _ = rungs
    model, best = whole.model, whole.best
    found = masked_layers(model)
    weights = sum(layer.significant for layer in found.values())
    assert weights / sum(layer.connections for layer in found.values()) == best["density"] < 0.5
    assert accuracy(model, digits.validation) == best["accuracy"] >= 0.4


def test_a_ladder_ends_where_the_requirement_is_out_of_reach():
    digits = datasets.load("digits")
    whole = ladder(NETWORK, digits, RECIPE, 0.999, 0, patience=4, budget=40, **HASHED_FIELDS)
    assert not whole.reached and whole.iterations == 40 and whole.start is None


def test_a_study_takes_it_as_a_method(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    settings = Settings(batch=32, warmup=20, averaging=0.9, interval=20, patience=4, budget=200)
    run = Run(study="tiny", benchmark="digits-2c", requirement=0.4, method="hashed", seed=0, settings=settings)
    record = carry_out(run)
    result, parts = record["result"], record["layers"]
    assert result["reached"] and result["density"] < 1 and result["effort"] > 1
    assert result["significant"] == sum(part["significant"] for part in parts) < result["synapses"]
    assert result["macs"] == result["macs_dense"], "every connection multiplies, whatever it shares"
    assert not any("mask" in part for part in parts), "a mask of shared weights is none of connections"
    assert read_record(run.record_path) == record


def test_trainings_keep_their_own_controls(rungs):
    _, whole, lasts = rungs
    for training, last in lasts:
        control = training.control
        assert control.events[-1] == last and len(control.events) < len(whole.events)
        assert not control.reached or control.best["density"] == 1, "no control was told of the others"
