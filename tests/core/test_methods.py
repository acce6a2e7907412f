"""The known pruning methods: for each a property that it must have by its paper."""

import collections
import copy
import functools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small import examples, tiny
from torch import nn

from pruning import allocation, criteria, density, masked, masked_layers
from pruning.accel import convolution
from pruning.control import PruneControl
from pruning.hooks import BiasedDecay, NetworkSurgery, RigL
from pruning.methods import METHODS, Method
from pruning.schedules import GeometricSchedule
from pruning.strategies import Rewind, Rounds
from pruning.study.config import Settings
from pruning.study.states import DenseStates, StateFile
from pruning.study.training import batches, prepare, step, train

NETWORK = "28x28-6c5-16c5-120-84-10"
SETTINGS = Settings(batch=32, warmup=20, averaging=0.9, interval=20, patience=4, budget=240, ramp=80)
KNOWN = sorted(set(METHODS) - {"unpruned", "iterative", "gradual", "oneshot", "random"})
pytestmark = [pytest.mark.arithmetic, pytest.mark.usefixtures("as_in_a_run")]


def linear(*weights):
    layer = masked(nn.Linear(len(weights), 1, bias=False))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
    return layer


def magnitudes(layers):
    return {name: layer.weight.detach().abs() for name, layer in layers.items()}


def kept(layers, scores, thresholds):
    keep = allocation.above_threshold
    return {name: int(keep(layer, scores[name], thresholds[name]).sum()) for name, layer in layers.items()}


def iterate(control, iteration, rate=0.1):
    """One iteration of a loop of one's own, its examples a function of the iteration."""
    images, labels = examples(iteration)
    F.cross_entropy(control.pruner.model(images), labels).backward()
    if control.watching:
        control.observe(iteration)
    control.pruner.optimizer.step()
    control.pruner.optimizer.zero_grad()


def controlled(method, requirement=0.5, seed=0, **given):
    model = tiny(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    return PruneControl(model, requirement, method, optimizer=optimizer, average=copy.deepcopy(model), **given)


# Allocations


def test_lamp_by_hand():
    layers = {"a": linear(-1.0, 2.0, 3.0), "b": linear(20.0, 10.0)}
    assert allocation.lamp_scores(torch.tensor([1.0, 2, 3])).tolist() == pytest.approx([1 / 14, 4 / 13, 1])
    scores = magnitudes(layers)
    found = [allocation.lamp(layers, scores, dict.fromkeys(layers, amount)) for amount in (1, 0.8, 0.6, 0.4)]
    assert found == [  # in the order 1/14 (a's 1), 1/5 (b's 10), 4/13 (a's 2)
        {"a": -math.inf, "b": -math.inf},
        {"a": 1, "b": -math.inf},
        {"a": 1, "b": 10},
        {"a": 2, "b": 10},
    ]
    layers["a"].prune(torch.tensor([[False, True, True]]))  # what is left: 4/13 and 1, of 1/5 and 1
    assert allocation.lamp(layers, magnitudes(layers), dict.fromkeys(layers, 0.6)) == {"a": -math.inf, "b": 10}


@pytest.mark.parametrize("amount", [0.5, 0.1, 0.02, 1e-6])
def test_lamp_keeps_a_synapse_in_every_layer(amount):
    generator = torch.Generator().manual_seed(0)
    layers = {str(scale): linear(*(scale * torch.randn(200, generator=generator)).tolist()) for scale in (1e-4, 1, 90)}
    layers["equal"] = linear(0.5, 0.5)
    layers["zero"] = linear(0.0, 0.0)
    scores = magnitudes(layers)
    found = kept(layers, scores, allocation.lamp(layers, scores, dict.fromkeys(layers, amount)))
    assert min(found.values()) >= 1
    assert abs(sum(found.values()) - max(round(amount * 604), 5)) <= 1  # that of the layer of zeros
    across = kept(layers, scores, allocation.global_threshold(layers, scores, dict.fromkeys(layers, amount)))
    assert across["0.0001"] == 0 or amount == 0.5


def test_erk_by_hand():
    shapes = {"conv": (16, 6, 5, 5), "fc": (120, 256)}
    found = allocation.erk_densities(shapes, 0.1)
    factor = 0.1 * (2400 + 30720) / ((16 + 6 + 5 + 5) + (120 + 256))
    assert found == pytest.approx({"conv": factor * 32 / 2400, "fc": factor * 376 / 30720})


@pytest.mark.parametrize("density", [1.0, 0.9, 0.5, 0.2, 0.05])
def test_erk_densities_keep_the_total_and_the_proportions(density):
    shapes = {name: tuple(layer.weight.shape) for name, layer in masked_layers(masked(prepared().model)).items()}
    found = allocation.erk_densities(shapes, density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert sum(found[name] * sizes[name] for name in shapes) == pytest.approx(density * sum(sizes.values()))
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    factors = {name: found[name] / raw[name] for name in shapes if found[name] < 1}
    assert all(0 < value <= 1 for value in found.values())
    for name, value in found.items():
        if value == 1 and factors:  # kept whole, as its share would be denser than that
            assert max(factors.values()) * raw[name] >= 1
    assert len({round(factor, 6) for factor in factors.values()}) <= 1
    assert (not factors) == (density == 1)


def test_erk_prunes_to_its_densities():
    layers = masked_layers(tiny())
    scores = magnitudes(layers)
    expected = allocation.erk_densities({"0": (3, 2, 3, 3), "2": (5, 12)}, 0.3)
    found = kept(layers, scores, allocation.erk(layers, scores, dict.fromkeys(layers, 0.3)))
    assert found == {"0": round(54 * expected["0"]), "2": round(60 * expected["2"])}


# Criteria of gradients


def prepared(method=METHODS["unpruned"], requirement=0.4, recipe=SETTINGS, **given):
    # At iteration 20 the average classifies about 0.22 of the validation images rightly, at 40 about 0.68.
    return prepare(NETWORK, recipe, requirement, method, 0, **SETTINGS.limits | given)


def test_snip_is_the_derivative_with_respect_to_a_gate():
    model = tiny().double()
    images, labels = examples(0)
    images = images.double()
    F.cross_entropy(model(images), labels).backward()

    def loss(layer, place, gate):
        gated = copy.deepcopy(model)
        with torch.no_grad():
            gated.get_submodule(layer).weight.view(-1)[place] *= gate
            return float(F.cross_entropy(gated(images), labels))

    for name, layer in masked_layers(model).items():
        scores = criteria.snip(layer, None)
        assert scores.shape == layer.weight.shape
        numeric = [abs(loss(name, n, 1 + 1e-5) - loss(name, n, 1 - 1e-5)) / 2e-5 for n in range(layer.synapses)]
        assert scores.flatten().tolist() == pytest.approx(numeric, abs=1e-8)


def test_snip_scores_are_those_of_the_first_batch_at_initialisation():
    control = controlled(METHODS["snip"])
    model, (images, labels) = tiny(), examples(1)
    F.cross_entropy(model(images), labels).backward()
    expected = {name: criteria.snip(layer, None) for name, layer in masked_layers(model).items()}
    for iteration in range(1, 6):
        iterate(control, iteration)
    assert all(torch.equal(control.hook.memory[name], expected[name]) for name in expected)
    control.update(5, 0.9)
    best = torch.cat([scores.flatten() for scores in expected.values()]).argsort(descending=True)
    mask = torch.cat([layer.mask.flatten() for layer in control.pruner.layers.values()])
    assert set(mask.nonzero().flatten().tolist()) == set(best[: round(0.7 * 114)].tolist())


def test_sensitivity_is_the_mean_of_mini_batches():
    layer = linear(2.0, -3.0)
    layer.weight.grad = torch.tensor([[0.5, -1.0]])
    first = criteria.ema_snip(layer, None)
    layer.weight.grad = torch.tensor([[-1.0, 1.0]])
    second = criteria.ema_snip(layer, first)
    assert first.tolist() == [[1, 3]] and second.flatten().tolist() == pytest.approx([1.01, 3])


def test_movement_keeps_what_moves_away_from_zero_and_magnitude_the_opposite():
    layer = linear(1.0, 0.2)
    target = torch.tensor([[0.5, 0.45]])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scores, total = None, torch.zeros(1, 2)
    for _ in range(20):
        F.mse_loss(layer.effective_weight(), target, reduction="sum").backward()
        total -= layer.weight.detach() * layer.weight.grad
        scores = criteria.movement(layer, scores)
        optimizer.step()
        optimizer.zero_grad()
    assert torch.allclose(scores, total) and not scores.requires_grad
    assert scores[0, 0] < 0 < scores[0, 1]
    layers = {"a": layer}
    by_movement = scores > allocation.uniform(layers, {"a": scores}, {"a": 0.5})["a"]
    by_magnitude = layer.weight.abs() > allocation.uniform(layers, magnitudes(layers), {"a": 0.5})["a"]
    assert by_movement.tolist() == [[False, True]] and by_magnitude.tolist() == [[True, False]]


def test_a_criterion_of_gradients_needs_the_loop_to_call():
    control = controlled(METHODS["movement"])
    assert control.update(10, 0.9).action == "wait" and control.watching
    with pytest.raises(RuntimeError, match=r"call observe\(iteration\)"):
        control.update(20, 0.9)
    control = controlled(METHODS["lottery"])
    with pytest.raises(RuntimeError, match=r"the weights of iteration 50 are not there: call observe"):
        control.update(60, 0.9)


def test_the_requirement_met_before_the_iteration_to_rewind_to():
    control = controlled(METHODS["lottery"])
    for iteration in range(1, 11):
        iterate(control, iteration)
    control.update(10, 0.9)
    assert (
        control.pruner.checkpoints["early"] is control.pruner.checkpoints["dense"]
        and control.restarted == 0
        and not control.watching
    )
    before = control.pruner.model.state_dict()["2.weight"].clone()
    for iteration in range(11, 21):
        iterate(control, iteration)
    control.update(20, 0.9)
    layer = control.pruner.layers["2"]
    assert control.restarted == 10 and torch.equal(layer.weight, torch.where(layer.mask, before, 0))


# Gradients of pruned synapses


def test_the_dense_gradient_is_that_of_the_effective_weight():
    model = tiny()
    for layer in masked_layers(model).values():
        layer.prune(torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5)
    plain = copy.deepcopy(model)
    images, labels = examples(0)
    F.cross_entropy(plain(images), labels).backward()
    for layer in masked_layers(model).values():
        layer.dense_gradient = True
    F.cross_entropy(model(images), labels).backward()

    free = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5))
    free.load_state_dict({name: value for name, value in model.state_dict().items() if "mask" not in name})
    F.cross_entropy(free(images), labels).backward()
    for name, layer in masked_layers(model).items():
        wanted, sparse = free.get_submodule(name).weight.grad, plain.get_submodule(name)
        assert torch.allclose(layer.dense_grad, wanted, atol=1e-7) and wanted[~layer.mask].any()
        assert torch.equal(layer.weight.grad, sparse.weight.grad) and sparse.dense_grad is None
        assert not layer.weight.grad[~layer.mask].any()
        assert copy.deepcopy(layer).dense_gradient and copy.deepcopy(layer).dense_grad is None
    found = model[2].dense_grad
    F.cross_entropy(model(images), labels).backward()
    assert torch.allclose(model[2].dense_grad, 2 * found)  # sums up, as grad does
    with torch.no_grad():
        model(images)
    for name in ("movement", "biased", "gradual"):
        control = controlled(METHODS[name])
        control.update(1, 0.9)
        assert not any(layer.dense_gradient for layer in control.pruner.layers.values())


def away_from_ties(model, images, gap=1e-5):
    """The images whose maxima and ReLUs no rounding decides: all that they choose between lies ``gap`` apart."""
    clear, x = torch.ones(len(images), dtype=torch.bool), images.double()
    with torch.no_grad():
        for part in copy.deepcopy(model).double():
            if isinstance(part, nn.MaxPool2d):
                two = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).topk(2).values
                clear &= (two[..., 0] - two[..., 1]).flatten(1).amin(1) > gap
            elif isinstance(part, nn.ReLU):
                clear &= x.abs().flatten(1).amin(1) > gap
            x = part(x)
    return images[clear]


def test_the_dense_gradient_through_compiled_convolutions():
    model = prepared().model
    for layer in masked_layers(model).values():
        layer.prune(torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.2)
        layer.dense_gradient = True
    images = away_from_ties(model, torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(2)))
    assert len(images) > 32
    labels = torch.arange(len(images)) % 10
    found = []
    for forward in (convolution.run, nn.Module.__call__):
        F.cross_entropy(forward(model, images), labels).backward()
        found.append({name: layer.dense_grad for name, layer in masked_layers(model).items()})
        for layer in masked_layers(model).values():
            layer.dense_grad = None
    for name, layer in masked_layers(model).items():
        assert torch.allclose(found[0][name], found[1][name], atol=1e-6)
        assert found[0][name][~layer.mask].any()


# RigL


def test_rigl_keeps_the_number_of_synapses_and_exchanges_by_magnitude_and_gradient():
    control = controlled(replace(METHODS["rigl"], strategy=Rounds(GeometricSchedule(0.5))), ramp=400)
    iterate(control, 1)
    control.update(1, 0.9)
    counts = {name: layer.significant for name, layer in control.pruner.layers.items()}
    assert sum(counts.values()) == pytest.approx(57, abs=1)
    exchanged = 0
    for iteration in range(2, 122):
        before = {
            name: (layer.mask.clone(), layer.weight.detach().clone()) for name, layer in control.pruner.layers.items()
        }
        images, labels = examples(iteration)
        F.cross_entropy(control.pruner.model(images), labels).backward()
        gradients = {name: layer.dense_grad.clone() for name, layer in control.pruner.layers.items()}
        control.observe(iteration)
        for name, layer in control.pruner.layers.items():
            mask, weight = before[name]
            assert layer.significant == counts[name]
            dropped, grown = mask & ~layer.mask, layer.mask & ~mask
            if not dropped.any():
                continue
            exchanged += int(dropped.sum())
            since = iteration - 1
            assert since < 100 and since % 10 == 0, "only in its phase, a fourth of the ramp, ten times"
            assert not layer.weight[grown].any() and not layer.weight.grad[dropped].any()
            assert weight.abs()[dropped].max() <= weight.abs()[mask & layer.mask & (layer.weight != 0)].min()
            assert gradients[name].abs()[grown].min() >= gradients[name].abs()[~layer.mask].max()
        control.pruner.optimizer.step()
        control.pruner.optimizer.zero_grad()
        for name, layer in control.pruner.layers.items():
            momentum = control.pruner.optimizer.state[layer.weight]["momentum_buffer"]
            assert not layer.weight[~layer.mask].any() and not momentum[~layer.mask].any()
            assert torch.equal(masked_layers(control.pruner.average)[name].mask, layer.mask)
    assert exchanged > 0


def test_rigls_exchange_falls_as_a_cosine():
    regrow = RigL(0.3)
    assert [regrow.exchanged(since, 100) for since in (0, 25, 50, 75, 100, 500)] == pytest.approx(
        [0.3, 0.15 * (1 + math.sqrt(0.5)), 0.15, 0.15 * (1 - math.sqrt(0.5)), 0, 0]
    )


# Dynamic network surgery


def test_splicing_between_two_thresholds():
    layer = linear(0.85, 0.95, 1.05, 1.15, 0.85, 0.95, 1.05, 1.15)
    layer.mask[0, 4:] = False
    layer.learns_masked = True  # its pruned weights are kept, and scored
    found = allocation.spliced(layer, criteria.magnitude(layer), 1.0)
    assert found.tolist() == [[False, True, True, True, False, False, False, True]]


@pytest.mark.parametrize("splicing", [True, False])
def test_surgery_brings_a_wrongly_cut_synapse_back(splicing):
    # The first weight is small when it is cut, though the problem needs it most.
    layer, target = linear(0.01, 0.5, 0.6, 0.7), torch.tensor([[2.0, 0.5, 0.6, 0.7]])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.02, momentum=0.5)
    control = PruneControl(layer, 0.5, METHODS["surgery" if splicing else "iterative"], optimizer=optimizer)
    control.update(1, 0.9)
    assert layer.mask.tolist() == [[False, True, True, True]]
    inputs = torch.eye(4)
    for iteration in range(2, 100):
        F.mse_loss(layer(inputs), target.T, reduction="sum").backward()
        if control.watching:
            control.observe(iteration)
        optimizer.step()
        optimizer.zero_grad()
    assert bool(layer.mask[0, 0]) == splicing
    assert layer.effective_weight()[0, 0].item() == pytest.approx(2.0 if splicing else 0.0, abs=0.05)


def test_what_surgery_delivers_is_zero_where_it_is_cut():
    control = controlled(METHODS["surgery"])
    for iteration in range(1, 80):
        iterate(control, iteration)
        if iteration % 10 == 0:
            control.update(iteration, 0.9)
    layers = control.pruner.layers.values()
    assert any(layer.parameter[~layer.mask].any() for layer in layers), "what is cut goes on learning"
    assert not any(layer.weight[~layer.mask].any() for layer in layers), "and is not used"
    delivered = control.delivered()
    assert density(delivered) == control.best["density"] < 0.9
    for layer in masked_layers(delivered).values():
        assert not layer.weight[~layer.mask].any() and layer.weight[layer.mask].all()


# Rewinding


@pytest.mark.parametrize("early", [0, 7])
def test_rewound_weights_are_the_stored_ones_bit_for_bit(early):
    method = Method(
        criteria.magnitude, allocation.global_threshold, Rounds(GeometricSchedule(0.5), rewind=Rewind(early))
    )
    control = controlled(method)
    stored, momentum = {}, {}
    for iteration in range(1, 41):
        if iteration == early + 1:
            stored = copy.deepcopy([control.pruner.model.state_dict(), control.pruner.average.state_dict()])
            momentum = copy.deepcopy(control.pruner.optimizer.state_dict()["state"])
        iterate(control, iteration)
        if iteration % 20:
            continue
        before = {
            name: (layer.mask.clone(), layer.weight.detach().abs()) for name, layer in control.pruner.layers.items()
        }
        control.update(iteration, 0.9)
        assert control.restarted == iteration - early
        assert control.pruner.density == pytest.approx(0.5 ** (iteration // 20), abs=0.01)
        for index, (name, layer) in zip((0, 2), control.pruner.layers.items(), strict=True):
            for net, state in zip((control.pruner.model, control.pruner.average), stored, strict=True):
                found = masked_layers(net)[name]
                assert torch.equal(found.weight, torch.where(layer.mask, state[f"{name}.weight"], 0))
                assert torch.equal(found.bias, state[f"{name}.bias"]) and torch.equal(found.mask, layer.mask)
            # The masks are those of the trained weights, and grow no synapse back.
            mask, weight = before[name]
            assert not (layer.mask & ~mask).any()
            assert weight[layer.mask].min() > control.events[-1].thresholds[name] >= weight[mask & ~layer.mask].max()
            held = control.pruner.optimizer.state_dict()["state"]
            if early:
                wanted = torch.where(layer.mask, momentum[index]["momentum_buffer"], 0)
                assert torch.equal(held[index]["momentum_buffer"], wanted)
            else:
                assert index not in held or not held[index].get("momentum_buffer", torch.zeros(1)).any()


def test_rate_rewinding_repeats_the_warm_up_and_keeps_the_weights(digits):
    recipe = SETTINGS.model_copy(update={"warmup": 10})
    rates = {}
    for name in ("raterewind", "lottery", "dsd"):
        method = (
            METHODS[name]
            if name != "lottery"
            else replace(METHODS[name], strategy=Rounds(GeometricSchedule(0.7), rewind=Rewind(4)))
        )
        training = prepared(method, recipe=recipe)
        stream, found = batches(digits, recipe, 0), []
        for iteration in range(1, 33):
            step(training, recipe, *next(stream))
            found.append(training.optimizer.param_groups[0]["lr"])
            if iteration == 20:
                before = copy.deepcopy(training.model.state_dict())
                training.control.update(iteration, 0.9)
                for key, layer in training.control.pruner.layers.items():
                    went_on = torch.equal(layer.weight, torch.where(layer.mask, before[f"{key}.weight"], 0))
                    assert went_on == (name != "lottery")
        rates[name] = found
    rising = [0.05 * n / 10 for n in range(1, 11)]
    assert rates["dsd"] == pytest.approx(rising + [0.05] * 22)
    assert rates["raterewind"] == pytest.approx(rising + [0.05] * 10 + rising + [0.05] * 2)
    assert rates["lottery"] == pytest.approx(rising + [0.05] * 10 + rising[4:] + [0.05] * 6)


def test_a_training_from_early_weights_has_as_long_as_the_dense_one():
    method = Method(criteria.magnitude, allocation.global_threshold, Rounds(GeometricSchedule(0.5), rewind=Rewind(0)))
    found = [0.1, 0.1, 0.9] + [0.1] * 5
    control = controlled(method, patience=2)
    events = [control.update(10 * n, value) for n, value in enumerate(found, start=1)]
    # Nothing was pruned that met the requirement, so that the control begins anew.
    assert [event.action for event in events] == ["wait"] * 2 + ["prune"] + ["wait"] * 4 + ["regrow"]


# Dense-sparse-dense


def test_dense_sparse_dense():
    control = controlled(replace(METHODS["dsd"], strategy=Rounds(GeometricSchedule(0.7), redense=2)), patience=9)
    found = [0.9, 0.1, 0.9, 0.9, 0.1, 0.1, 0.9, 0.9]
    events = []
    for number, value in enumerate(found, start=1):
        for iteration in range(10 * number, 10 * number + 10):
            iterate(control, iteration)
        masks = {name: layer.mask.clone() for name, layer in control.pruner.layers.items()}
        events.append(control.update(10 * number, value))
        if events[-1].action == "regrow":
            assert control.pruner.density == 1
            for name, layer in control.pruner.layers.items():
                assert layer.weight[masks[name]].all() and not layer.weight[~masks[name]].any()
    assert [event.action for event in events] == [
        "prune",
        "wait",
        "regrow",
        "wait",
        "wait",
        "wait",
        "prune",
        "regrow",
    ]
    assert [event.phase for event in events] == ["train"] + ["recover"] * 2 + ["dense"] * 4 + ["recover"]
    assert [event.density for event in events] == pytest.approx([1, 0.7, 0.7, 1, 1, 1, 1, 0.49], abs=0.01)
    assert not any(event.finished for event in events)
    assert density(control.delivered()) == events[-1].density


# Biased weight decay


def test_biased_decay_is_the_gradient_of_its_bias_and_favours_large_weights():
    bias = BiasedDecay(strength=0.3, scale=5.0)
    weight = torch.tensor([-2.0, -0.1, 0.01, 0.05, 0.4, 3.0], dtype=torch.float64, requires_grad=True)
    (0.3 * 5 * weight.abs() / (1 + 5 * weight.abs())).sum().backward()
    assert torch.allclose(bias.decay(weight.detach()), weight.grad)
    ladder = torch.tensor([0.001, 0.01, 0.1, 1.0, 10.0])
    relative = bias.decay(ladder) / ladder
    assert (relative.diff() < 0).all() and (bias.decay(-ladder) == -bias.decay(ladder)).all()


def test_biased_decay_makes_small_weights_smaller_and_lets_large_ones_be():
    # A problem whose solution is known: each weight has a target of its own, which it reaches without a bias.
    target, found = torch.tensor([[0.06, 0.2, 1.0, 3.0]]), {}
    for name, method in (
        ("plain", METHODS["iterative"]),
        ("biased", replace(METHODS["iterative"], hook=BiasedDecay(strength=0.01))),
    ):
        layer = linear(0.5, 0.5, 0.5, 0.5)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.5)
        control = PruneControl(layer, 0.5, method, optimizer=optimizer)
        control.start = control.began = 0  # as if the requirement had been met; nothing is pruned
        for iteration in range(1, 200):
            F.mse_loss(layer(torch.eye(4)), target.T, reduction="sum").backward()
            if control.watching:
                control.observe(iteration)
            optimizer.step()
            optimizer.zero_grad()
        found[name] = layer.weight.detach()
    assert found["plain"] == pytest.approx(target, abs=1e-4)
    share = (found["biased"] / target)[0]
    # Where 2 (w - t) + strength x s / (1 + s w)^2 = 0.
    assert share[0] < 0.7 and (share.diff() > 0).all() and 0.999 < share[3] < 1
    # The method itself has a weaker bias: beside the recipe's weight decay much for small weights, little for large.
    weights = torch.tensor([0.001, 0.01, 1.0])
    beside = METHODS["biased"].hook.decay(weights) / (SETTINGS.weight_decay * weights)
    assert beside[0] > 100 and beside[1] > 10 and beside[2] < 0.1


# All of them


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Rewind(-1), "iteration must be 0 or more, or None, got -1"),
        (lambda: NetworkSurgery(every=0), "every must be at least 1"),
        (lambda: NetworkSurgery(rate=1.5), r"rate lie in \[0, 1\]"),
        (lambda: RigL(fraction=1), "fraction must lie between 0 and 1, got 1"),
        (lambda: BiasedDecay(strength=0), "strength and scale must be positive, got 0"),
        (lambda: BiasedDecay(scale=math.nan), "strength and scale must be positive"),
        (lambda: replace(METHODS["oneshot"].strategy, rewind=Rewind(0)), "from_dense or rewind, not both"),
    ],
)
def test_bad_parts(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("name", KNOWN)
def test_an_accuracy_that_always_suffices_comes_to_an_end(name):
    control = controlled(METHODS[name], ramp=200)
    for iteration in range(1, 3000):
        iterate(control, iteration)
        if iteration % 10:
            continue
        if control.update(iteration, 0.9, lambda: 0.9, lambda: examples(0)[0]).finished:
            break
    assert control.events[-1].action in ("nothing left to prune", "ramp completed")
    assert density(control.delivered()) == control.best["density"] < 0.07


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """By a method's name its training to the end, and the checkpoint that lay there two evaluations before it."""

    @functools.cache
    def trained(name):
        checkpoint, lay = tmp_path_factory.mktemp(name) / "a.checkpoint", collections.deque(maxlen=2)

        def look(event, training):  # which writes its own checkpoint only after this
            lay.append(checkpoint.read_bytes() if checkpoint.exists() else b"")

        training = prepared(METHODS[name])
        train(training, digits, SETTINGS, 0, checkpoint=StateFile(checkpoint, "me"), every=0, progress=look)
        return training, lay[0]

    return trained


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_a_training_goes_on_from_its_checkpoint(digits, tmp_path, whole, name):
    expected, lay = whole(name)
    control = expected.control
    evaluated = [event.iteration for event in control.events if event.phase not in ("look", "confirm")]
    assert control.reached and control.start <= evaluated[-2] < expected.iteration
    assert control.best["density"] == density(control.delivered()) < 1

    checkpoint, seen = tmp_path / "a.checkpoint", []
    checkpoint.write_bytes(lay)
    resumed = prepared(METHODS[name])
    train(
        resumed,
        digits,
        SETTINGS,
        0,
        checkpoint=StateFile(checkpoint, "me"),
        progress=lambda event, training: seen.append(event.iteration),
    )
    assert seen == evaluated[-2:] and resumed.control.events == control.events
    for part in ("model", "average"):
        ours, theirs = getattr(resumed, part).state_dict(), getattr(expected, part).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for layer in masked_layers(expected.model).values():
        assert name == "surgery" or not layer.weight[~layer.mask].any()


@pytest.fixture(scope="module")
def dense(digits, tmp_path_factory):
    """The folder in which a training without pruning left its dense phase."""
    place = tmp_path_factory.mktemp("dense")
    train(prepared(), digits, SETTINGS, 0, dense=DenseStates(place, "all"))
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", ["snip", "lottery", "surgery", "movement", "adaptive"])
def test_the_shared_dense_phase_changes_nothing(digits, dense, whole, name):
    left = (dense / "0.4.dense").read_bytes()
    shared = train(prepared(METHODS[name]), digits, SETTINGS, 0, dense=DenseStates(dense, "all"))
    assert list(shared.events) == whole(name)[0].control.events
    assert (dense / "0.4.dense").read_bytes() == left


def test_methods_that_differ_from_another_in_one_part():
    for name, base, parts in (
        ("uniform", "gradual", {"allocation"}),
        ("erk", "gradual", {"allocation"}),
        ("lamp", "gradual", {"allocation"}),
        ("sensitivity", "gradual", {"criterion", "hook"}),
        ("surgery", "iterative", {"masking", "hook"}),
        ("biased", "iterative", {"hook"}),
    ):
        pair = METHODS[name], METHODS[base]
        assert {key for key in METHODS[base].fields() if len({str(m.fields()[key]) for m in pair}) > 1} == parts
