"""Allocations: what is asked for is what is kept, also where scores are equal."""

import copy
import math
import statistics

import pytest
import torch
from torch import nn

from pruning import allocation, criteria, density, masked, masked_layers
from pruning.control import PruneControl
from pruning.methods import METHODS, Method
from pruning.schedules import GeometricSchedule, LinearThreshold
from pruning.strategies import Rounds


def linear(*weights):
    layer = masked(nn.Linear(len(weights), 1, bias=False))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
    return layer


def test_thresholds_by_deviation_by_hand():
    # Deviations: of (1, -1, 3, -3) the root of (1 + 1 + 9 + 9) / 4; of (2, 4) one.
    layers = {"a": linear(1.0, -1.0, 3.0, -3.0), "b": linear(2.0, 4.0)}
    found = allocation.std_threshold(layers, {}, {"a": 0.5, "b": 3.0})
    assert found == pytest.approx({"a": 0.5 * math.sqrt(5), "b": 3.0})
    layers["a"].prune(torch.tensor([[True, False, True, True]]))  # left: 1, 3, -3 of mean 1/3
    expected = statistics.pstdev([1, 3, -3])
    assert allocation.std_threshold(layers, {}, {"a": 1, "b": 1})["a"] == pytest.approx(expected)
    layers["a"].prune(torch.zeros(1, 4, dtype=torch.bool))
    assert allocation.std_threshold(layers, {}, {"a": 1, "b": 1})["a"] == math.inf


def kept(layers, scores, thresholds):
    return {name: int((scores[name] > thresholds[name]).sum()) for name in layers}


@pytest.mark.parametrize(("amount", "count"), [(1, 10), (0.99, 10), (0.5, 5), (0.31, 3), (0.1, 1), (0.01, 1), (0, 1)])
def test_uniform_keeps_exact_counts(amount, count):
    layers = {"a": linear(*range(1, 11)), "b": linear(*range(101, 111))}
    scores = {name: layer.weight.detach().abs() for name, layer in layers.items()}
    thresholds = allocation.uniform(layers, scores, dict.fromkeys(layers, amount))
    assert kept(layers, scores, thresholds) == {"a": count, "b": count}
    assert thresholds["a"] == (10 - count if count < 10 else -math.inf)


def test_across_takes_the_best_of_all_layers():
    layers = {"a": linear(*range(1, 11)), "b": linear(*range(101, 111))}
    scores = {name: layer.weight.detach().abs() for name, layer in layers.items()}
    assert allocation.global_threshold(layers, scores, {"a": 0.6, "b": 0.6}) == {"a": 8.0, "b": 8.0}
    assert kept(layers, scores, allocation.global_threshold(layers, scores, {"a": 0.5, "b": 0.1})) == {"a": 0, "b": 6}


def test_densities_count_what_is_pruned_already():
    layers = {"a": linear(*range(1, 11))}
    layers["a"].prune(torch.arange(1, 11)[None] > 4)
    scores = {"a": torch.arange(10, 0, -1.0)[None]}  # the pruned ones score best, and stay out
    for allocate in (allocation.uniform, allocation.global_threshold):
        thresholds = allocate(layers, scores, {"a": 0.4})
        layer = copy.deepcopy(layers["a"])
        layer.prune(scores["a"] > thresholds["a"])
        assert layer.significant == 4 and not layer.mask[0, :4].any()


def test_of_equal_scores_so_many_stay_as_are_asked_for():
    layer = linear(1.0, 2.0, 2.0, 2.0, 3.0)
    scores = {"a": criteria.magnitude(layer)}
    for amount, count in ((0.2, 1), (0.4, 2), (0.6, 3), (0.8, 4), (1.0, 5)):
        thresholds = allocation.uniform({"a": layer}, scores, {"a": amount})
        keep = allocation.above_threshold(layer, scores["a"], thresholds["a"])
        assert int(keep.sum()) == count and keep[0, 4] and (count == 5 or not keep[0, 0])


def counts(layers, scores, thresholds):
    keep = allocation.above_threshold
    return {name: int(keep(layer, scores[name], thresholds[name]).sum()) for name, layer in layers.items()}


def constant(value):
    model = masked(nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(20, 20), nn.Linear(20, 10)))
    with torch.no_grad():
        model[2].weight.fill_(value)
    return model


EXACT = ("uniform", "global_threshold", "erk", "lamp")


@pytest.mark.parametrize("value", [0.0, 0.1, 5.0])
@pytest.mark.parametrize("name", EXACT)
def test_layers_of_equal_weights_are_pruned_to_the_density_asked_for(name, value):
    model = constant(value)
    method = Method(criteria.magnitude, getattr(allocation, name), Rounds(GeometricSchedule(0.75)))
    control = PruneControl(model, 0.5, method)
    for iteration in range(1, 12):
        control.update(iteration, 0.9)
        asked = 0.75**iteration
        assert abs(density(model) - asked) * 735 <= len(masked_layers(model))
        if name != "global_threshold":  # which may find that others are better than all of a layer's
            assert all(layer.significant for layer in masked_layers(model).values())
        if name == "uniform":
            for layer in masked_layers(model).values():
                assert abs(layer.significant - asked * layer.synapses) <= 1


@pytest.mark.parametrize("name", EXACT)
def test_a_network_of_zeros_keeps_what_is_asked_for(name):
    model = constant(0.0)
    with torch.no_grad():
        for layer in masked_layers(model).values():
            layer.weight.zero_()
    layers = masked_layers(model)
    scores = {name: criteria.magnitude(layer) for name, layer in layers.items()}
    thresholds = getattr(allocation, name)(layers, scores, dict.fromkeys(layers, 0.4))
    kept_now = {
        name: int(allocation.above_threshold(layer, scores[name], thresholds[name]).sum())
        for name, layer in layers.items()
    }
    assert abs(sum(kept_now.values()) - 0.4 * 735) <= 3 and min(kept_now.values()) > 0
    if name == "global_threshold":
        assert all(abs(kept_now[each] - 0.4 * layer.synapses) <= 1 for each, layer in layers.items())


def test_a_common_bound_is_shared_in_proportion_and_empties_no_layer():
    layers = {"few": linear(1.0), "many": linear(*[1.0] * 50), "better": linear(*[2.0] * 9)}
    scores = {name: criteria.magnitude(layer) for name, layer in layers.items()}
    for count in range(11, 60):
        thresholds = allocation.global_threshold(layers, scores, dict.fromkeys(layers, count / 60))
        now = {
            name: int(allocation.above_threshold(layers[name], scores[name], thresholds[name]).sum()) for name in layers
        }
        assert sum(now.values()) == count and now["few"] == 1 and now["better"] == 9


def test_the_order_among_equals_is_fixed_and_spread():
    layer = masked(nn.Linear(30, 20))
    with torch.no_grad():
        layer.weight.fill_(0.5)
    before = torch.ones(20, 30, dtype=torch.bool)
    for amount in (0.75, 0.5, 0.25, 0.1):
        scores = criteria.magnitude(layer)
        keep = allocation.above_threshold(
            layer, scores, allocation.uniform({"": layer}, {"": scores}, {"": amount})[""]
        )
        assert int(keep.sum()) == amount * 600 and not (keep & ~before).any()
        rows, columns = keep.sum(1), keep.sum(0)
        assert rows.min() > 0 and columns.min() > 0 and rows.max() - rows.min() <= 3
        before = keep


def test_equal_weights_stay_under_a_threshold_of_their_deviation():
    model = constant(0.0)
    method = Method(criteria.magnitude, allocation.std_threshold, Rounds(LinearThreshold(0.1)))
    control = PruneControl(model, 0.5, method)
    control.update(1, 0.9)
    assert control.densities()["2"] == 1 and control.densities()["3"] < 1


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].strategy.needs == ()])
def test_channels_last_masks_take_ties_too(method):
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 4))
    model = masked(network.to(memory_format=torch.channels_last))
    with torch.no_grad():
        model[0].weight.fill_(0.1)
    layers = masked_layers(model)
    scores = {name: criteria.magnitude(layer) for name, layer in layers.items()}
    thresholds = METHODS[method].allocation(layers, scores, dict.fromkeys(layers, 0.5))
    keep = METHODS[method].masking(layers["0"], scores["0"], thresholds["0"])
    assert keep.shape == model[0].mask.shape and keep.any()
