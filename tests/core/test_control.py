import copy
import io
import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pruning import allocation, criteria, density, masked, masked_layers
from pruning.control import PruneControl
from pruning.hooks import GradientScores
from pruning.looks import Examples
from pruning.methods import METHODS, Method
from pruning.notation import lenet
from pruning.schedules import GeometricSchedule, LinearThreshold, PolynomialSchedule
from pruning.strategies import Ramp, Rounds
from pruning.study import datasets
from pruning.study.config import Recipe
from pruning.study.training import accuracy, batches

pytestmark = pytest.mark.arithmetic

ITERATIVE, UNPRUNED = METHODS["iterative"], METHODS["unpruned"]
LADDER = Method(criteria.magnitude, allocation.global_threshold, Rounds(GeometricSchedule(0.5)))
REWIND = Method(criteria.magnitude, allocation.global_threshold, Rounds(GeometricSchedule(0.5), from_dense=True))
GRADUAL = Method(criteria.magnitude, allocation.global_threshold, Ramp(PolynomialSchedule(0.1)))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(seed=0):
    """Synapses: conv 3 x 2 x 3 x 3 = 54, fc 5 x 12 = 60; images [N, 2, 4, 4]."""
    torch.manual_seed(seed)
    return masked(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5)))


def step(model, optimizer, seed):
    source = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    x, y = torch.randn(8, 2, 4, 4, generator=source), torch.randint(5, (8,), generator=source)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def drive(control, accuracies, interval=10, first=1):
    return [control.update(number * interval, found) for number, found in enumerate(accuracies, start=first)]


def actions(events):
    return [event.action for event in events]


def linear(*weights):
    layer = masked(nn.Linear(len(weights), 1, bias=False))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
    return layer


# Criteria


def test_magnitude():
    assert criteria.magnitude(linear(-3.0, 0.5, 2.0), torch.Generator()).tolist() == [[3.0, 0.5, 2.0]]


def test_random_scores_follow_from_the_generator_alone():
    first, again, other = (criteria.random(linear(*range(50)), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.shape == (1, 50) and first.min() >= 0 and first.max() < 1
    assert torch.equal(first, again) and not torch.equal(first, other)


# Schedules


def test_schedules_are_pure_functions():
    assert [LinearThreshold(0.1).amount(n) for n in (0, 1, 2.5)] == pytest.approx([0, 0.1, 0.25])
    assert [GeometricSchedule(0.7).amount(n) for n in (0, 1, 2, 0.5)] == pytest.approx([1, 0.7, 0.49, math.sqrt(0.7)])
    for schedule in (LinearThreshold(), GeometricSchedule(), PolynomialSchedule()):
        assert schedule.amount(0) == (0 if isinstance(schedule, LinearThreshold) else 1)
        assert schedule.amount(0.3) == schedule.amount(0.3)
        with pytest.raises(AttributeError):
            schedule.rate = 1


def test_cubic_against_zhu_and_gupta():
    # s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 with sparsity s from 0 to 0.8 over 100 steps
    for t in (0, 25, 50, 100):
        sparsity = 0.8 + (0 - 0.8) * (1 - t / 100) ** 3
        assert PolynomialSchedule(0.2).amount(t / 100) == pytest.approx(1 - sparsity)
    assert PolynomialSchedule(0.2).amount(0.25) == pytest.approx(0.5375)  # 0.2 + 0.8 x 27/64
    assert PolynomialSchedule(0.2).amount(1.5) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearThreshold(0),
        lambda: LinearThreshold(-0.1),
        lambda: LinearThreshold(math.nan),
        lambda: GeometricSchedule(0),
        lambda: GeometricSchedule(1),
        lambda: GeometricSchedule(math.nan),
        lambda: PolynomialSchedule(0),
        lambda: PolynomialSchedule(1),
        lambda: PolynomialSchedule(-0.1),
    ],
)
def test_bad_schedules(make):
    with pytest.raises(ValueError, match=r"must (be positive|lie between 0 and 1), got"):
        make()


# Prune control


def test_pruning_starts_when_the_requirement_is_met_and_a_round_needs_it_again():
    control = PruneControl(tiny(), 0.8)
    events = drive(control, [0.5, 0.79, 0.8, 0.79, 0.5, 0.9])
    assert actions(events) == ["wait", "wait", "prune", "wait", "wait", "prune"]
    assert [event.phase for event in events] == ["train", "train", "train", "recover", "recover", "recover"]
    assert [event.thresholds is not None for event in events] == [False, False, True, False, False, True]
    assert (control.start, control.pruner.round, control.missed) == (30, 2, 0)
    assert [event.iteration for event in events] == [10, 20, 30, 40, 50, 60]
    densities = [event.density for event in events]
    assert densities[:3] == [1, 1, 1]  # what was evaluated, before it was pruned
    assert 1 > densities[3] == densities[4] == densities[5] > control.pruner.density
    assert events[-1].densities == control.pruner.densities()
    assert not control.finished and not events[-1].finished


def test_thresholds_rise_layer_by_layer_at_their_own_rate():
    model = tiny()
    layers = masked_layers(model)
    control = PruneControl(model, 0.5)
    assert control.strategy.rates(control.pruner) == pytest.approx(
        {"0": 0.05, "2": 0.1}
    )  # convolutions at half the pace
    for number in range(1, 6):
        deviations = {name: layer.weight.detach()[layer.mask].std(correction=0) for name, layer in layers.items()}
        thresholds = control.update(number, 0.9).thresholds
        assert control.pruner.round >= number
        assert thresholds["0"] == pytest.approx(0.05 * control.pruner.round * float(deviations["0"]))
        assert thresholds["2"] == pytest.approx(0.1 * control.pruner.round * float(deviations["2"]))
        for name, layer in layers.items():
            left = layer.weight.detach()[layer.mask].abs()
            assert left.min() > thresholds[name]
            assert layer.significant == left.numel()


def test_a_round_cuts_something():
    model = tiny()
    control = PruneControl(
        model, 0.5, Method(criteria.magnitude, allocation.std_threshold, Rounds(LinearThreshold(1e-4)))
    )
    before = control.pruner.density
    control.update(1, 0.9)
    assert control.pruner.density < before and control.pruner.round > 1


def test_paces_by_name():
    control = PruneControl(tiny(), 0.5, paces={"0": 2.0})
    assert control.strategy.rates(control.pruner) == pytest.approx({"0": 0.2, "2": 0.1})
    control = PruneControl(tiny(), 0.5, paces={"0": 0})
    drive(control, [0.9] * 5)
    assert control.pruner.densities()["0"] == 1 > control.pruner.densities()["2"]
    with pytest.raises(ValueError, match=r"no masked layer \['fc9'\]; the layers are \['0', '2'\]"):
        PruneControl(tiny(), 0.5, paces={"fc9": 1})
    for pace in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="pace of '0' must be 0 or more"):
            PruneControl(tiny(), 0.5, paces={"0": pace})


@pytest.mark.parametrize("name", METHODS)
def test_paces_have_an_effect_or_are_refused(name):
    fitting = ["iterative", "random", "movement", "surgery", "biased"]
    if name not in fitting:
        with pytest.raises(ValueError, match=f"paces has no effect on '{name}': .* so in {', '.join(fitting)}"):
            PruneControl(tiny(), 0.5, METHODS[name], paces={"0": 1})
        return
    found = []
    for paces in ({"0": 1, "2": 1}, {"0": 0, "2": 1}):
        control = PruneControl(tiny(), 0.5, METHODS[name], paces=paces)
        step(control.pruner.model, torch.optim.SGD(control.pruner.model.parameters(), lr=0.1), 0)
        for iteration in (1, 2):
            if control.watching:
                control.observe(iteration)
            control.update(iteration, 0.9)
        found.append(control.densities())
    assert found[0]["0"] < found[1]["0"] == 1


def test_a_slow_recovery_halves_the_rates():
    control = PruneControl(tiny(), 0.8, patience=4)
    rates = control.strategy.rates(control.pruner)
    drive(control, [0.9, 0.1, 0.1, 0.9])
    assert control.strategy.rates(control.pruner) == pytest.approx(rates)  # two missed of four: not slower than half
    drive(control, [0.1, 0.1, 0.1, 0.9], first=5)
    assert control.strategy.rates(control.pruner) == pytest.approx({name: rate / 2 for name, rate in rates.items()})


def test_stop_by_patience():
    control = PruneControl(tiny(), 0.8, patience=3)
    events = drive(control, [0.1] * 5 + [0.8, 0.1, 0.1, 0.1])  # patience does not run before the start
    assert actions(events) == ["wait"] * 5 + ["prune", "wait", "wait", "regrow"]
    assert control.density == 1 and not control.finished, "nothing was pruned yet: the beginning is taken back"
    events = drive(control, [0.1, 0.8, 0.8, 0.1, 0.1, 0.1], first=10)
    assert actions(events) == ["wait", "prune", "prune", "wait", "wait", "not recovered"]
    assert events[-1].finished and control.finished and control.reached and control.best["density"] < 1
    assert control.start == 60, "effort counts from where the requirement was met first"
    with pytest.raises(RuntimeError, match=r"delivered\(\)"):
        control.update(100, 0.9)


@pytest.mark.parametrize("method", [UNPRUNED, ITERATIVE, GRADUAL])
def test_stop_by_budget_without_the_requirement_met(method):
    control = PruneControl(tiny(), 0.99, method, budget=35)
    events = drive(control, [0.5, 0.6, 0.7, 0.8])
    assert actions(events) == ["wait", "wait", "wait", "budget spent"]
    assert not control.reached and control.start is None and control.pruner.density == 1
    assert density(control.delivered()) == 1


def test_stop_by_budget_keeps_what_met_the_requirement_at_the_end():
    control = PruneControl(tiny(), 0.8, LADDER, budget=30)
    events = drive(control, [0.9, 0.9, 0.9])
    assert actions(events) == ["prune", "prune", "budget spent"]
    assert control.best["iteration"] == 30 and density(control.delivered()) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("name", ["iterative", "oneshot", "random"])
def test_stop_when_nothing_is_left(name):
    control = PruneControl(tiny(), 0.5, METHODS[name])
    for iteration in itertools.count(1):
        if control.update(iteration, 0.9).finished:
            break
        assert iteration < 500
    assert control.events[-1].action == "nothing left to prune"
    assert control.pruner.density * 114 <= 2
    assert density(control.delivered()) == control.pruner.density


def test_a_layer_that_cannot_be_pruned_does_not_keep_it_from_ending():
    model = tiny()
    with torch.no_grad():
        model[0].weight.fill_(0.5)  # no deviation, so that its threshold does not rise
    control = PruneControl(model, 0.5, paces={"2": 0})
    assert control.update(1, 0.9).action == "nothing left to prune" and control.pruner.density == 1


def test_stop_when_the_ramp_is_completed():
    control = PruneControl(tiny(), 0.8, GRADUAL, ramp=40)
    events = drive(control, [0.1, 0.9, 0.1, 0.9, 0.9, 0.1, 0.1, 0.9])
    assert actions(events) == ["wait", "wait", "prune", "prune", "prune", "prune", "wait", "ramp completed"]
    expected = [1.0] * 3 + [round(114 * PolynomialSchedule(0.1).amount(part)) / 114 for part in (0.25, 0.5, 0.75, 1, 1)]
    assert [event.density for event in events] == pytest.approx(expected)
    assert control.best["iteration"] == 80


def test_gradual_gives_up_as_well():
    control = PruneControl(tiny(), 0.8, GRADUAL, ramp=1000, patience=2)
    given_up = actions(drive(control, [0.9, 0.85, 0.81, 0.1, 0.1]))
    assert given_up == ["wait", "prune", "prune", "prune", "not recovered"]


@pytest.mark.parametrize("method", [ITERATIVE, GRADUAL, METHODS["lottery"], METHODS["snip"], METHODS["rigl"]])
def test_a_requirement_that_was_met_by_luck_does_not_end_the_control(method):
    control = PruneControl(tiny(), 0.8, method, ramp=100, patience=2, optimizer=None)
    recorded = []
    for iteration, found in enumerate([0.9, *[0.1] * 40, *[0.9] * 4], start=1):
        if control.watching:
            loss = sum(layer.weight.sum() for layer in control.pruner.layers.values())
            loss.backward()
            control.observe(iteration)
        recorded.append(control.update(iteration, found))
        if control.finished:
            break
    assert actions(recorded).count("regrow") == control.false_starts == 1
    assert control.start == 1 and control.began == 42, "pruning begins anew where the requirement is met again"
    assert not control.finished and control.density < 1


def test_unpruned_stops_at_the_requirement():
    control = PruneControl(tiny(), 0.8, UNPRUNED)
    events = drive(control, [0.7, 0.8])
    assert actions(events) == ["wait", "requirement met"]
    assert control.start == control.best["iteration"] == 20 and density(control.delivered()) == 1


def test_delivered_is_the_sparsest_that_met_the_requirement():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    control = PruneControl(model, 0.8, LADDER, optimizer=optimizer, patience=4)
    states, found = [], [0.9, 0.85, 0.1, 0.82, 0.3, 0.2, 0.1, 0.0]
    for number, value in enumerate(found):
        step(model, optimizer, number)
        states.append((control.pruner.density, copy.deepcopy(model.state_dict())))
        control.update(number, value)
    assert control.finished and control.events[-1].action == "not recovered"
    assert control.pruner.density < control.best["density"] == states[3][0] < states[1][0]
    assert (control.best["iteration"], control.best["accuracy"]) == (3, 0.82)
    delivered = control.delivered()
    assert delivered is not model and density(delivered) == states[3][0]
    assert all(torch.equal(value, states[3][1][name]) for name, value in delivered.state_dict().items())
    step(model, optimizer, 99)  # a copy: training on does not touch it
    assert torch.equal(delivered.state_dict()["2.weight"], states[3][1]["2.weight"])


def test_of_equal_densities_the_earlier_is_kept():
    control = PruneControl(tiny(), 0.8, GRADUAL)
    events = drive(control, [0.9, 0.95, 0.95])  # the ramp cuts nothing at its start
    assert [event.density == 1 for event in events] == [True, True, False]
    assert control.best["iteration"] == 30
    control = PruneControl(tiny(), 0.8, GRADUAL)
    drive(control, [0.9, 0.95])
    assert (control.best["iteration"], control.best["accuracy"]) == (10, 0.9)


def test_oneshot_rewinds_to_the_dense_weights_in_each_round():
    model = tiny()
    average = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    control = PruneControl(model, 0.8, REWIND, optimizer=optimizer, average=average)
    step(model, optimizer, 0)
    origin = copy.deepcopy([model.state_dict(), average.state_dict(), optimizer.state_dict()])
    for number in range(1, 4):
        control.update(number, 0.9)
        assert control.pruner.density == pytest.approx(0.5**number, abs=0.01)
        for net, dense in ((model, origin[0]), (average, origin[1])):
            for name, layer in masked_layers(net).items():
                assert torch.equal(layer.weight, torch.where(layer.mask, dense[f"{name}.weight"], 0))
                assert torch.equal(layer.bias, dense[f"{name}.bias"])
                assert layer.significant < layer.synapses
        for index, name in ((0, "0"), (2, "2")):
            momentum = optimizer.state_dict()["state"][index]["momentum_buffer"]
            mask = model.get_submodule(name).mask
            assert torch.equal(momentum, torch.where(mask, origin[2]["state"][index]["momentum_buffer"], 0))
        if number < 3:
            for seed in range(2):
                step(model, optimizer, seed)


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda parameters: torch.optim.SGD(
            parameters, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True, fused=True
        ),
        lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.01, amsgrad=True),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    ],
    ids=["sgd", "nesterov", "adam", "adamw"],
)
@pytest.mark.parametrize("method", [ITERATIVE, LADDER, REWIND])
def test_stored_weights_stay_zero_as_the_momentum_is_cleared(make, method):
    model = tiny()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = make(model.parameters())
    control = PruneControl(model, 0.5, method, optimizer=optimizer, average=average)
    for number in range(1, 13):
        step(model, optimizer, number)
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 0.1)
        for net in (model, average):
            for name, layer in masked_layers(net).items():
                assert not layer.weight[~layer.mask].any()
                assert torch.equal(layer.mask, model.get_submodule(name).mask)
        if number % 3 == 0:
            control.update(number, 0.9)
    assert 0 < control.pruner.density < 1
    assert density(control.delivered()) == control.events[-1].density
    assert torch.equal(control.delivered().state_dict()["2.weight"], control.best["model"]["2.weight"])


def test_the_average_is_what_is_delivered_and_must_fit():
    model = tiny()
    control = PruneControl(model, 0.8, UNPRUNED, average=tiny(seed=1))
    control.update(1, 0.9)
    assert torch.equal(control.delivered()[2].weight, tiny(seed=1)[2].weight)
    with pytest.raises(ValueError, match="average must be a masked copy"):
        PruneControl(model, 0.8, average=nn.Linear(2, 2))


@pytest.mark.parametrize("method", [ITERATIVE, LADDER, REWIND, GRADUAL, METHODS["random"], UNPRUNED])
def test_a_state_saved_midway_leads_to_the_same_decisions(method):
    def started():
        model = tiny()
        average = copy.deepcopy(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        limits = {"patience": 4, "ramp": 90, "budget": 140, "seed": 3}
        return PruneControl(model, 0.8, method, optimizer=optimizer, average=average, **limits)

    def go_on(control, found, first):
        for number, value in enumerate(found, start=first):
            step(control.pruner.model, control.pruner.optimizer, number)
            control.update(10 * number, value)
            if control.finished:
                break

    found = [0.1, 0.9, 0.1, 0.1, 0.1, 0.9, 0.9, 0.1, 0.9, 0.9, 0.85, 0.9, 0.1, 0.1, 0.1]
    if method is UNPRUNED:
        found[1:6] = [0.1] * 5
    whole = started()
    go_on(whole, found, 1)
    assert whole.finished

    first = started()
    go_on(first, found[:4], 1)  # in the middle of a recovery
    buffer = io.BytesIO()
    parts = ("model", "average", "optimizer")
    torch.save(
        {"control": first.state_dict()} | {name: getattr(first.pruner, name).state_dict() for name in parts}, buffer
    )
    go_on(first, found[4:8], 5)  # the state is of its moment, not a view of what goes on
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    second = started()
    for name in parts:
        getattr(second.pruner, name).load_state_dict(state[name])
    second.load_state_dict(state["control"])
    assert [event.iteration for event in second.events] == [10, 20, 30, 40]
    go_on(second, found[4:], 5)
    assert second.events == whole.events
    assert second.strategy == whole.strategy and second.pruner.round == whole.pruner.round
    ours, theirs = second.delivered().state_dict(), whole.delivered().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_state_of_something_else_is_an_error():
    state = PruneControl(tiny(), 0.8).state_dict()
    other = masked(nn.Sequential(nn.Linear(2, 2)))
    for control in (PruneControl(tiny(), 0.9), PruneControl(other, 0.8)):
        with pytest.raises(ValueError, match="another (requirement|layers)"):
            control.load_state_dict(state)


@pytest.mark.parametrize("state", [{}, None, tiny().state_dict()], ids=["empty", "None", "a model's"])
def test_what_is_no_state_of_a_control_is_an_error(state):
    control = PruneControl(tiny(), 0.8)
    with pytest.raises(ValueError, match="no state of a control, .* it lacks requirement"):
        control.load_state_dict(state)


def test_a_state_of_another_set_up_is_an_error_and_changes_nothing():
    def made(average=False, optimizers=0):
        model = tiny()
        each = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (model[0], model[2])]
        given = {0: None, 1: torch.optim.SGD(model.parameters(), lr=0.1), 2: each}[optimizers]
        return PruneControl(model, 0.5, REWIND, optimizer=given, average=copy.deepcopy(model) if average else None)

    set_ups = [(average, optimizers) for average in (False, True) for optimizers in (0, 1, 2)]
    for here, there in itertools.permutations(set_ups, 2):
        control, other = made(*here), made(*there)
        drive(other, [0.9, 0.9])
        with pytest.raises(ValueError, match=f"another {'average' if here[0] != there[0] else 'optimizer'}: "):
            control.load_state_dict(other.state_dict())
        assert not control.events and not control.pruner.checkpoints and control.pruner.round == 0
    while not other.finished:
        other.update(100, 0.9)
    control = made(*here)
    control.load_state_dict(other.state_dict())  # it has ended: what it delivers needs neither
    assert control.finished and density(control.delivered()) == density(other.delivered())
    control = made(*here)
    older = {name: value for name, value in control.state_dict().items() if name not in ("average", "optimizer")}
    control.load_state_dict(older)


def test_the_random_criterion_draws_anew_in_each_round():
    model = masked(nn.Linear(20, 5))
    control = PruneControl(model, 0.5, METHODS["random"])
    control.update(1, 0.9)
    scores = criteria.random(model, torch.Generator().manual_seed(1))  # those of the first round
    best = scores.flatten().argsort(descending=True)
    assert set(best[:80].tolist()) == set(model.mask.flatten().nonzero().flatten().tolist())
    control.update(2, 0.9)
    assert model.significant == 64
    assert set(best[:64].tolist()) != set(model.mask.flatten().nonzero().flatten().tolist())


def test_the_random_criterion_follows_from_the_seed():
    masks = []
    for seed in (0, 0, 1):
        control = PruneControl(tiny(), 0.5, METHODS["random"], seed=seed)
        drive(control, [0.9, 0.9])
        masks.append(torch.cat([layer.mask.flatten() for layer in control.pruner.layers.values()]))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert control.pruner.densities() == pytest.approx({"0": 35 / 54, "2": 38 / 60})  # 0.64 of each


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"requirement": 0}, "requirement must be an accuracy between 0 and 1, got 0"),
        ({"requirement": 1}, "got 1"),
        ({"requirement": 1.5}, "got 1.5"),
        ({"requirement": math.nan}, "got nan"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"budget": 0}, "budget must be at least 1, got 0"),
        ({"ramp": -1}, "ramp must be at least 1, got -1"),
    ],
)
def test_bad_parameters(given, said):
    with pytest.raises(ValueError, match=said):
        PruneControl(tiny(), **{"requirement": 0.5} | given)


OF_ANOTHER = torch.optim.SGD(tiny().parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"model": [tiny()]}, TypeError, r"model must be a module, got \["),
        ({"average": {"0.weight": 1}}, TypeError, "average must be a module, got {'0.weight': 1}"),
        ({"requirement": "0.9"}, TypeError, "requirement must be a number, got '0.9'"),
        ({"requirement": None}, TypeError, "requirement must be a number, got None"),
        ({"requirement": torch.ones(2)}, TypeError, r"requirement must be a number, got tensor\(\[1., 1.\]\)"),
        (
            {"method": "gradul"},
            ValueError,
            "no method is called 'gradul'; the known ones are unpruned, iterative, gradual",
        ),
        ({"method": Ramp}, TypeError, "method must be a Method or the name of a known one"),
        ({"optimizer": "sgd"}, TypeError, "optimizer must be a torch.optim.Optimizer or a list of some, got 'sgd'"),
        (
            {"optimizer": torch.optim.lr_scheduler.StepLR(OF_ANOTHER, 1)},
            TypeError,
            "got <torch.optim.lr_scheduler.StepLR",
        ),
        ({"optimizer": [OF_ANOTHER, None]}, TypeError, "a list of some, got None"),
        ({"patience": math.nan}, ValueError, "patience must be at least 1, got nan"),
        ({"budget": math.nan}, ValueError, "budget must be at least 1, got nan"),
        ({"budget": "100"}, TypeError, "budget must be a number, got '100'"),
        ({"seed": 1.5}, ValueError, "seed must be a whole number, got 1.5"),
        ({"paces": {"0": "1"}}, TypeError, "the pace of '0' must be a number, got '1'"),
    ],
)
def test_what_is_given_by_mistake(given, error, said):
    given = {"model": tiny(), "requirement": 0.5} | given
    with pytest.raises(error, match=said):
        PruneControl(**given)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ((20, None), TypeError, "accuracy must be a number, got None"),
        ((20, torch.ones(2)), TypeError, "accuracy must be a number, got tensor"),
        ((20, "0.9"), TypeError, "accuracy must be a number, got '0.9'"),
        ((None, 0.9), TypeError, "iteration must be a number, got None"),
        ((20.5, 0.9), ValueError, "iteration must be a whole number, got 20.5"),
        ((math.nan, 0.9), ValueError, "iteration must be a whole number, got nan"),
        ((9, 0.9), ValueError, "iteration must not go back: got 9 after 10"),
        ((20, 0.9, 0.9), TypeError, "evaluate must be a function that the control calls, got 0.9"),
        ((20, 0.9, None, torch.ones(1)), TypeError, "next_images must be a function that the control calls"),
    ],
)
def test_an_update_by_mistake_changes_nothing(given, error, said):
    control = PruneControl(tiny(), 0.5)
    control.update(10, 0.4)
    with pytest.raises(error, match=said):
        control.update(*given)
    assert len(control.events) == 1 and control.density == 1
    control.update(10, 0.9)  # the same iteration once more


def test_a_score_is_a_number_which_may_be_infinite():
    control = PruneControl(tiny(), -0.3, score="any")
    with pytest.raises(ValueError, match="the score must be a number, got nan"):
        control.update(1, math.nan)
    assert control.update(1, -math.inf).accuracy == -math.inf and control.best is None
    assert control.update(2, math.inf).accuracy == math.inf and control.best


def test_an_optimizer_of_another_model_is_told():
    with pytest.warns(UserWarning, match="the optimizer has none of the model's parameters"):
        PruneControl(tiny(), 0.5, optimizer=OF_ANOTHER)


def test_a_strategy_of_ones_own_may_go_by_paces_and_limits_are_rounded_up():
    class Mine(Rounds):
        pass

    method = replace(METHODS["oneshot"], strategy=Mine(METHODS["oneshot"].strategy.schedule))
    control = PruneControl(tiny(), 0.5, method, paces={"0": 0.5}, ramp=2.5, budget=1e3)
    assert control.ramp == 3 and control.budget == 1000


def test_a_masked_layer_added_later_is_named():
    model = tiny()
    control = PruneControl(model, 0.5)
    model.append(masked(nn.Linear(2, 2)))
    name = str(len(model) - 1)
    with pytest.raises(RuntimeError, match=f"the masked layer '{name}' is new in the model: make the control after it"):
        control.update(1, 0.9)


def test_a_method_by_its_name():
    control = PruneControl(tiny(), 0.5, "gradual")
    assert control.method is METHODS["gradual"] and control.strategy == METHODS["gradual"].strategy


@pytest.mark.parametrize("value", [97.5, -0.1, math.nan])
def test_an_accuracy_is_a_fraction(value):
    control = PruneControl(tiny(), 0.5)
    with pytest.raises(ValueError, match="fraction between 0 and 1"):
        control.update(1, value)
    assert not control.events


def test_a_model_without_masked_layers():
    with pytest.raises(ValueError, match=r"call masked\(model\) first"):
        PruneControl(nn.Linear(2, 2), 0.5)


@pytest.mark.slow
def test_five_lines_in_ones_own_loop():
    data = datasets.load("digits")
    torch.manual_seed(0)
    model = lenet("28x28-6c5-16c5-120-84-10")
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def validation_accuracy(model):
        return accuracy(model, data.validation)

    model = masked(model)
    control = PruneControl(model, requirement=0.9, optimizer=optimizer)
    stream = batches(data, Recipe(batch=64), seed=0)
    for iteration, (images, labels) in enumerate(itertools.islice(stream, 400), start=1):
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if iteration % 20 == 0 and control.update(iteration, validation_accuracy(model)).finished:
            break
    model = control.delivered()

    assert control.reached and control.pruner.round >= 3
    assert density(model) == control.best["density"] < 0.7
    assert validation_accuracy(model) == control.best["accuracy"] >= 0.9
    for layer in masked_layers(control.pruner.model).values():
        assert not layer.weight[~layer.mask].any()


def training_step(model, optimizer, batch):
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def test_the_loop_of_the_docs_goes_on_beyond_an_epoch():
    pages = [
        (Path(__file__).parents[2] / page).read_text(encoding="utf-8") for page in ("README.md", "docs/package.md")
    ]
    blocks = [re.findall(r"```python\n(.*?)```", page, re.DOTALL) for page in pages]
    loop, again = (next(block for block in several if "PruneControl(" in block) for several in blocks)
    assert loop == again
    torch.manual_seed(0)
    images = torch.randn(96, 20)
    labels = (images[:, 0] > 0).long()
    network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2))

    given = {
        "model": network,
        "optimizer": torch.optim.Adam(network.parameters(), 0.01),
        "loader": DataLoader(TensorDataset(images, labels), 32, shuffle=True),  # an epoch of 3 iterations
        "training_step": training_step,
        "validation_accuracy": lambda model: (model(images).argmax(1) == labels).float().mean().item(),
    }
    exec(loop.replace("% 100", "% 20"), given)
    assert given["control"].reached and given["iteration"] > 100
    assert given["model"][0].weight.count_nonzero() < 0.5 * 600


def test_the_loop_of_the_docs_certifies_what_it_delivers():
    page = (Path(__file__).parents[2] / "docs/package.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "certifying=" in block)
    torch.manual_seed(0)
    images, trained = torch.randn(1200, 20), torch.randn(2000, 20)
    labels, answers = (images[:, 0] > 0).long(), (trained[:, 0] > 0).long()
    network = masked(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2)))

    given = {
        "torch": torch,
        "PruneControl": PruneControl,
        "METHODS": METHODS,
        "model": network,
        "optimizer": torch.optim.Adam(network.parameters(), 0.01),
        "images": images,
        "labels": labels,
        "stream": itertools.repeat((trained, answers)),
        "next_images": lambda: images[:64],
        "training_step": training_step,
    }
    given |= {"iterations": iter(range(1, 4000))}  # far more than it takes
    exec(block.replace("0.97", "0.9").replace("% 100", "% 20"), given)
    certificate = given["control"].delivery.certificate
    assert certificate.chosen is not None and density(given["network"]) == certificate.tested[certificate.chosen][0] < 1


@pytest.mark.parametrize("method", ["adaptive", "oneshot"])
def test_within_autocast_what_is_reported_is_what_the_delivered_network_evaluates_to(method):
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    labels = (x[:, 0] > 0).long()
    model = masked(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    control = PruneControl(model, 0.9, METHODS[method], optimizer=optimizer, budget=200)

    def right(network=model):
        return (network(x).argmax(1) == labels).float().mean().item()

    for iteration in range(1, 201):
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if iteration % 20 == 0 and not control.finished:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                control.update(iteration, right(), right, lambda: x)
                seen = right()
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                assert seen == right(), "what is seen after a cut is the model that was cut"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert control.best["density"] < 0.5 and right(control.delivered()) == control.best["accuracy"]


@pytest.mark.parametrize("method", ["surgery", "rigl"])
def test_a_delivered_layer_is_an_ordinary_masked_layer(method):
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    control = PruneControl(model, 0.5, METHODS[method], optimizer=optimizer)
    for iteration in range(1, 4):
        step(model, optimizer, iteration)
        if control.watching:
            control.observe(iteration)
        control.update(iteration, 0.9)
    assert all(layer.dense_gradient for layer in control.pruner.layers.values()), "the control goes on"
    delivered = control.delivered()
    assert density(delivered) < 1
    for layer in masked_layers(delivered).values():
        assert not layer.learns_masked and not layer.dense_gradient
    step(delivered, torch.optim.SGD(delivered.parameters(), lr=0.1), 9)
    for layer in masked_layers(delivered).values():
        assert layer.dense_grad is None and not layer.weight.grad[~layer.mask].any() and layer.weight is layer.parameter


@pytest.mark.parametrize("names", [("surgery", "iterative"), ("iterative", "surgery")])
def test_a_control_whose_model_another_took_over_says_so(names):
    model = tiny()
    first, second = (PruneControl(model, 0.5, METHODS[name], budget=20) for name in names)
    with pytest.raises(RuntimeError, match="another control was made of this model since, .* (stay zero|go on lear)"):
        first.update(10, 0.9)
    assert first.density == 1 and not first.events
    second.observe(10)
    assert second.update(10, 0.9).action == "prune" and second.update(20, 0.9).finished
    before = second.density
    third = PruneControl(model, 0.5, METHODS[names[0]])  # after the second has ended
    assert third.update(10, 0.9).action == "prune" and third.density < before < 1


def test_an_average_with_other_masks_than_the_model_is_an_error():
    model = tiny()
    average = copy.deepcopy(model)
    model[2].prune(torch.eye(5, 12) > 0)
    control = PruneControl(model, 0.5, UNPRUNED, average=average)
    for deliver in (lambda: control.update(1, 0.9), control.delivered):
        with pytest.raises(RuntimeError, match="the average has another mask than the model in layer '2'"):
            deliver()
    assert not control.events
    average.load_state_dict(model.state_dict())
    control.update(1, 0.9)
    assert density(control.delivered()) == control.density == control.best["density"] < 1


def test_numbers_of_numpy_and_tensors_become_plain_ones():
    settings = {"requirement": numpy.float64(0.5), "ramp": numpy.int64(100), "seed": numpy.int64(1)}
    settings |= {"patience": torch.tensor(4), "budget": numpy.float32(500), "paces": {"0": numpy.float32(0.5)}}
    control = PruneControl(tiny(), **settings)
    plain = PruneControl(tiny(), 0.5, ramp=100, seed=1, patience=4, budget=500, paces={"0": 0.5})
    counter = torch.tensor(0)
    for number in (1, 2, 3):
        counter += 10  # in place, as a training step's counter may be
        control.update(counter if number < 3 else numpy.int64(30), torch.tensor(0.75))
        plain.update(10 * number, 0.75)
    assert control.events == plain.events and control.start == 10
    buffer = io.BytesIO()
    torch.save(control.state_dict(), buffer)
    buffer.seek(0)
    plain.load_state_dict(torch.load(buffer, weights_only=True))
    assert repr(plain.events) == repr(control.events) and plain.requirement == 0.5
    assert (PruneControl(tiny(), 0.5, budget=1e5).budget, PruneControl(tiny(), 0.5, budget=10**17).budget) == (
        10**5,
        10**17,
    )


def test_a_state_that_is_no_tensor_is_kept_as_well():
    class Versioned(nn.Linear):
        version = 1

        def get_extra_state(self):
            return {"version": [self.version]}

        def set_extra_state(self, state):
            self.version = state["version"][0]

    model = masked(nn.Sequential(Versioned(8, 8), nn.ReLU(), nn.Linear(8, 4)))
    control = PruneControl(model, 0.5, LADDER)
    control.update(1, 0.6)
    control.update(2, 0.6)
    model[0].version = 2
    assert control.delivered()[0].version == 1 and density(control.delivered()) == control.best["density"] == 0.5


def test_models_that_a_look_found_good_enough_are_confirmed_whatever_their_masks_are_called():
    model = masked(nn.LSTM(3, 5))
    known = torch.arange(1000) % 20 > 0  # an accuracy of 0.95, whatever is pruned
    steering = Examples(known.__getitem__, 1000)
    control = PruneControl(model, 0.9, METHODS["adaptive-uncompensated"])
    control.update(10, steering(), steering)
    confirmed = [event for event in control.events if event.phase == "confirm"]
    assert control.finished and [event.accuracy for event in confirmed] == [0.95]
    assert confirmed[0].densities == {
        name: layer.significant / layer.synapses for name, layer in masked_layers(control.delivered()).items()
    }


def method_of(criterion=criteria.magnitude, allocation_=allocation.uniform, strategy=LADDER.strategy, **given):
    return Method(criterion, allocation_, strategy, **given)


@pytest.mark.parametrize(
    ("method", "error", "said"),
    [
        (
            method_of(strategy=Rounds(LinearThreshold())),
            ValueError,
            "LinearThreshold gives a quality factor, but uniform",
        ),
        (
            method_of(allocation_=allocation.std_threshold),
            ValueError,
            "GeometricSchedule gives a density, but std_thresh",
        ),
        (method_of(criteria.ema_snip), ValueError, "the criterion ema_snip goes with the hook GradientScores"),
        (
            method_of(hook=GradientScores()),
            ValueError,
            "the criterion magnitude does not go with the hook GradientScores",
        ),
        (
            method_of(criteria.movement, allocation.lamp, hook=GradientScores()),
            ValueError,
            "lamp takes scores of 0 or more",
        ),
        (method_of(strategy=Ramp), TypeError, "strategy must be made with its settings, got the class Ramp"),
        (
            method_of(hook=GradientScores),
            TypeError,
            "hook must be made with its settings, got the class GradientScores",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(method, error, said):
    with pytest.raises(error, match=said):
        PruneControl(tiny(), 0.5, method)


def test_a_schedule_of_a_ramp_is_none_of_rounds():
    with pytest.raises(ValueError, match="use it in Ramp"):
        Rounds(PolynomialSchedule())


@pytest.mark.parametrize("allocation_", [allocation.uniform, allocation.global_threshold, allocation.lamp])
def test_scores_that_are_none_prune_nothing(allocation_):
    def partly(layer, generator):
        scores = criteria.magnitude(layer)
        scores[0, 0] = math.nan if scores.dim() == 2 else scores[0, 0]
        return scores

    def of_neurons(layer, generator):
        return criteria.magnitude(layer).flatten(1).sum(1)

    for criterion, said in ((partly, "'2' hold NaN"), (of_neurons, r"'0' have the shape \[3\], .* \[3, 2, 3, 3\]")):
        control = PruneControl(tiny(), 0.5, method_of(criterion, allocation_))
        with pytest.raises(ValueError, match=f"the scores of layer {said}"):
            control.update(1, 0.9)
        assert control.density == 1
