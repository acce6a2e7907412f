"""The adaptive method: its steps, its dry run, scores of any range, and models of all kinds."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small import examples, tiny
from torch import nn

from pruning import density, masked, masked_layers
from pruning.adaptive import AccuracyDriven, take_step
from pruning.allocation import global_threshold, std_threshold, uniform
from pruning.compensation import Jacobian, score_factors
from pruning.control import PruneControl
from pruning.criteria import magnitude
from pruning.methods import METHODS
from pruning.notation import lenet
from pruning.pruner import Pruner
from pruning.schedules import AccuracyTolerance
from pruning.study import datasets
from pruning.study.config import Recipe, Settings
from pruning.study.training import accuracy, batches, prepare, train

NETWORK = "28x28-6c5-16c5-120-84-10"
SETTINGS = Settings(batch=32, warmup=20, averaging=0.9, interval=20, patience=4, budget=240, ramp=80)
pytestmark = [pytest.mark.arithmetic, pytest.mark.usefixtures("as_in_a_run")]


def prepared(method=METHODS["unpruned"], requirement=0.4, recipe=SETTINGS, **given):
    # At iteration 20 the average classifies about 0.22 of the validation images rightly, at 40 about 0.68.
    return prepare(NETWORK, recipe, requirement, method, 0, **SETTINGS.limits | given)


def seeking(accuracies, requirement=0.9, error=0.1, **changes):
    """The adaptive method on a tiny model, its looks answered from a list, and what it measured."""
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = replace(
        METHODS["adaptive"], strategy=AccuracyDriven(AccuracyTolerance(**{"decay": math.inf} | changes), 2, error)
    )
    control = PruneControl(model, requirement, method, optimizer=optimizer)
    control.check(examples(0)[0])
    answers, measured = iter(accuracies), []

    def measure():
        measured.append(1)
        return examples(len(measured))[0]

    return control, lambda iteration, found: control.update(iteration, found, lambda: next(answers), measure), measured


@pytest.mark.parametrize(("looks", "batches"), [(1, 9), (2, 2)], ids=["a look", "a measurement"])
def test_a_descent_that_fails_midway_has_not_been(looks, batches):
    def given(values, count):
        yield from values[:count]
        raise MemoryError

    def update(control, looks, batches):
        found, images = given([0.95, 0.887, 0.887], looks), given([examples(seed)[0] for seed in range(9)], batches)
        return control.update(20, 0.9, lambda: next(found), lambda: next(images))

    control, other = (seeking([], error=0.0, keep=0.5, depth=0.04)[0] for _ in range(2))
    before = control.pruner.snapshot()
    with pytest.raises(MemoryError):
        update(control, looks, batches)
    assert same(control.pruner.snapshot()["model"], before["model"]) and control.pruner.round == 0
    assert not control.events and control.best is None and control.start is None
    assert update(control, 3, 9) == update(other, 3, 9) and control.events == other.events, "it can be tried again"
    assert same(control.pruner.model.state_dict(), other.pruner.model.state_dict()) and control.density < 1


def same(state, other):
    return all(torch.equal(value, other[name]) for name, value in state.items())


def test_without_error_every_step_is_looked_at_and_undone_where_it_costs_too_much():
    control, update, measured = seeking([0.95, 0.895, 0.889] + [0.889] * 9, error=0.0, keep=0.5, depth=0.04)
    assert update(10, 0.5).action == "wait" and not measured
    assert update(20, 0.9).action == "nothing left to prune"  # every answer lay above 0.9 - 0.04 * 0.3 = 0.888
    assert len(measured) == 2, "steps that succeed are compensated by one measurement"
    looks = [event.density for event in control.events if event.phase == "look"]
    assert looks[:5] == pytest.approx([0.5, 0.25, 0.125, 0.0625, 0.03125], abs=0.01)
    control, update, measured = seeking([0.95, 0.891, 0.887, 0.8], error=0.0, keep=0.5, depth=0.04)
    assert update(20, 0.9).action == "prune" and control.density == pytest.approx(0.25, abs=0.01)
    told = [(e.iteration, e.phase, e.accuracy, e.action) for e in control.events if e.phase == "look"]
    assert told == [
        (22, "look", 0.95, "prune"),
        (22, "look", 0.891, "prune"),
        (22, "look", 0.887, "undo"),
        (24, "look", 0.8, "undo"),
    ]


def test_adaptive_goes_down_in_strides_and_undoes_what_costs_too_much():
    control, update, measured = seeking([0.95, 0.895, 0.889], keep=0.5, depth=0.04)  # 0.9 - 0.04 * 0.3 = 0.888
    assert update(10, 0.5).action == "wait" and not measured
    assert update(20, 0.9).action == "nothing left to prune"  # every answer lay above 0.888
    assert len(measured) == 2, "steps that succeed are compensated by one measurement"
    control, update, measured = seeking([0.95, 0.891, 0.887, 0.8], keep=0.5, depth=0.04)
    tried = []
    restore = control.pruner.restore
    control.pruner.restore = lambda snapshot: (tried.append((control.pruner.density, len(measured))), restore(snapshot))
    event = update(20, 0.9)
    assert (event.action, event.density) == ("prune", 1)
    # One step, then four that leave it high enough, then one that does not, and the same measured anew.
    assert control.pruner.density == pytest.approx(0.5**5, abs=0.01)
    assert control.best["density"] == pytest.approx(0.5, abs=0.01), "of those that met the requirement"
    assert tried == [(pytest.approx(0.5**6, abs=0.01), 2), (pytest.approx(0.5**6, abs=0.01), 4)]
    # Two mini-batches a measurement; what was undone is told as well.
    looks = [(e.iteration, e.phase, e.accuracy, e.action) for e in control.events]
    assert looks == [
        (20, "train", 0.9, "prune"),
        (22, "look", 0.95, "prune"),
        (22, "look", 0.891, "prune"),
        (22, "look", 0.887, "undo"),
        (24, "look", 0.8, "undo"),
    ]
    weights = {name: layer.weight.detach().clone() for name, layer in control.pruner.layers.items()}
    assert update(30, 0.86).action == "wait" and control.pruner.density == pytest.approx(0.5**5, abs=0.01)
    assert all(torch.equal(layer.weight, weights[name]) for name, layer in control.pruner.layers.items())


def test_strides_that_are_too_long_are_halved_by_what_they_lost():
    # Eight steps lose 0.08 where 0.02 are allowed: a quarter of the loss at half of the way, if it grows quadratically.
    answers = {0.5**8: 0.82, 0.5**4: 0.89, 0.5**5: 0.86}
    method = replace(METHODS["adaptive"], strategy=AccuracyDriven(AccuracyTolerance(keep=0.5, decay=math.inf)))
    model = masked(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)))
    control = PruneControl(model, 0.9, method)
    control.strategy.stride = 8
    looked = []

    def evaluate():
        looked.append(control.density)
        return next(found for density, found in answers.items() if control.density == pytest.approx(density, abs=2e-3))

    control.strategy.tolerance = replace(control.strategy.tolerance, depth=0.02 / 0.3)
    control.update(20, 0.9, evaluate)
    assert looked == pytest.approx([0.5**8, 0.5**4, 0.5**5], abs=2e-3)
    assert control.density == pytest.approx(0.5**4, abs=2e-3)


def test_the_last_descent_tries_half_a_step_where_a_whole_one_fails():
    control, update, measured = seeking([0.8, 0.8, 0.8, 0.95], keep=0.5, depth=0.01)
    assert [update(iteration, 0.9).action for iteration in (50, 70)] == ["wait", "wait"]
    last = update(100, 0.91)
    assert control.events[-1].phase == "look" and control.best["density"] == pytest.approx(0.5**0.5, abs=0.01)
    assert last.action == "effort spent" == control.events[-1].action and last.finished and control.finished
    assert len(measured) == 6, "two mini-batches a descent"


@pytest.mark.parametrize("allocation", [uniform, std_threshold])
def test_a_descent_ends_where_steps_come_to_remove_nothing(allocation):
    method = replace(METHODS["adaptive"], allocation=allocation)
    method = replace(method, strategy=AccuracyDriven(AccuracyTolerance(keep=0.5, decay=math.inf)))
    model = masked(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 2)))
    control = PruneControl(model, 0.9, method)
    assert control.update(20, 0.95, lambda: 0.95).iteration == 20 and control.density < 1


def test_layers_without_scores_count_as_they_are():
    """Where some layers are not scored, the others give what is asked for all."""
    model = masked(nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10)))
    pruner = Pruner(model, magnitude, global_threshold)
    pruner.hook.scores = lambda asked: {"0": model[0].weight.abs()}
    take_step(pruner, 120, None, False)
    assert [layer.significant for layer in pruner.layers.values()] == [20, 100]
    take_step(pruner, 50, None, False)  # the other layer alone has more
    assert [layer.significant for layer in pruner.layers.values()] == [1, 100]


def test_scores_are_weighed_by_what_the_outputs_depend_on():
    torch.manual_seed(0)
    model = masked(nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].weight.fill_(1.0)
        model[1].weight[:, 4:] = 0.01  # half of the hidden neurons hardly reach an output
    inputs = torch.randn(64, 8)
    factors = score_factors(Jacobian(model, [inputs], torch.Generator().manual_seed(0)))
    assert (factors["0"][:4] > 1.4 * factors["0"][4:].max()).all()
    pruner = Pruner(model, magnitude, global_threshold)
    take_step(pruner, 64, Jacobian(model, [inputs], torch.Generator().manual_seed(0)), True)
    assert model[0].mask[:4].all() and model[0].mask[4:].sum() < 24
    # Where the outputs depend on nothing, magnitudes decide; scores with a sign are refused.
    dead = masked(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    with torch.no_grad():
        dead[0].bias.fill_(-100)
    jacobian = Jacobian(dead, [inputs[:, :4]], torch.Generator().manual_seed(0))
    assert score_factors(jacobian)["0"].unique().numel() == 1
    signed = Pruner(model, lambda layer, generator: layer.weight - 1, global_threshold)
    with pytest.raises(ValueError, match="layer '0' has negative scores.*sensitive=False"):
        take_step(signed, 32, Jacobian(model, [inputs], torch.Generator().manual_seed(0)), True)


def test_a_hook_that_learns_under_the_mask_is_not_compensated():
    method = replace(METHODS["surgery"], strategy=METHODS["adaptive"].strategy)
    with pytest.raises(ValueError, match="keeps training them: use AccuracyDriven.*measured=0"):
        PruneControl(tiny(), 0.9, method)


def test_adaptives_density_falls_no_faster_than_its_decay():
    slack = AccuracyTolerance(effort=3.0, decay=4.0)
    assert (
        slack.lowest_density(100, 150, None) == pytest.approx(math.exp(-1))
        and slack.lowest_density(100, 100, None) == 1
    )
    assert slack.lowest_density(100, 300, None) == slack.lowest_density(100, 900, None) == pytest.approx(math.exp(-4))
    assert slack.lowest_density(100, 150, 200) == pytest.approx(math.exp(-2))  # a smaller budget shortens the way
    assert AccuracyTolerance(decay=math.inf).lowest_density(100, 101, None) == 0
    control, update, _ = seeking([0.99] * 99, effort=5.0, decay=4.0)
    update(20, 0.5)
    for iteration in (40, 60, 80, 100):  # the way ends at 200
        update(iteration, 0.95)
        bound = control.strategy.tolerance.lowest_density(40, iteration + 20, None)
        assert bound - 1 / control.pruner.synapses < control.pruner.density < bound / 0.9**0.5


def test_adaptives_slack_shrinks_to_nothing():
    slack = AccuracyTolerance(effort=3.0, depth=0.1, power=1.0)
    assert slack.lowest_accuracy(0.9, 100, 100, None) == pytest.approx(0.87)
    assert slack.lowest_accuracy(0.9, 100, 200, None) == pytest.approx(0.885)
    assert (
        slack.lowest_accuracy(0.9, 100, 300, None) == slack.lowest_accuracy(0.9, 100, 340, None) == pytest.approx(0.9)
    )
    assert slack.lowest_accuracy(0.9, 100, 200, 200) == pytest.approx(0.9)  # a smaller budget ends it before
    assert slack.lowest_accuracy(0.5, 100, 100, None) == pytest.approx(0.45)


def test_adaptive_waits_as_long_as_its_effort_lasts():
    control, update, _ = seeking([0.1, 0.1], effort=5.0)
    actions = [update(10 * number, 0.9 if number == 1 else 0.1).action for number in range(1, 6)]
    assert actions == ["wait"] * 4 + ["effort spent"]
    assert control.best["density"] == 1


def test_adaptive_needs_to_be_told_how_to_look():
    control = PruneControl(tiny(), 0.9, METHODS["adaptive"])
    with pytest.raises(ValueError, match="update.iteration, accuracy, evaluate, next_images"):
        control.update(1, 0.95)
    assert not control.events


def test_adaptive_stops_where_nothing_is_left():
    control, update, _ = seeking([0.99] * 40, keep=0.3)
    assert update(10, 0.95).action == "nothing left to prune"
    assert sum(layer.significant for layer in control.pruner.layers.values()) == 2


def test_what_adaptive_measures_counts_as_iterations(digits):
    training = prepared(METHODS["adaptive"])
    steps, measured = [], []
    optimizer_step, update = training.optimizer.step, training.control.update
    training.optimizer.step = lambda: (steps.append(1), optimizer_step())[1]
    training.control.update = lambda iteration, found, evaluate, measure: update(
        iteration, found, evaluate, lambda: (measured.append(1), measure())[1]
    )
    train(training, digits, SETTINGS, 0)
    assert 2 <= len(measured) <= 2 * training.control.pruner.round and training.iteration == len(steps) + len(measured)
    assert training.control.best["iteration"] <= training.iteration
    order = [event.iteration for event in training.control.events]
    assert order == sorted(order)


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep": 0.0},
        {"keep": 1.0},
        {"effort": 1.0},
        {"effort": math.inf},
        {"depth": -0.1},
        {"power": math.nan},
        {"decay": 0.0},
    ],
)
def test_a_slack_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AccuracyTolerance(**wrong)


@pytest.mark.slow
@pytest.mark.parametrize("trained", [0, 100])
def test_adaptive_in_ones_own_loop(trained):
    data = datasets.load("digits")
    torch.manual_seed(0)
    model = masked(lenet("28x28-6c5-16c5-120-84-10"))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    batches_ = batches(data, Recipe(batch=64), seed=0)
    count, stream = itertools.count(1), itertools.islice(batches_, 2000)

    def training_step():
        images, labels = next(stream)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    def next_images():
        next(count)
        return next(stream)[0]

    def validation_accuracy():
        return accuracy(model, data.validation)

    for _ in range(trained):  # a model that comes trained goes on counting
        next(count), training_step()
    control = PruneControl(model, 0.9, METHODS["adaptive"], optimizer=optimizer)
    for iteration in count:
        training_step()
        if (
            iteration % 20 == 0
            and control.update(iteration, validation_accuracy(), validation_accuracy, next_images).finished
        ):
            break
    assert control.reached and control.start > trained and density(control.delivered()) < 0.2
    assert control.events[-1].action == "effort spent" and iteration >= 2 * control.start
    assert accuracy(control.delivered(), data.validation) == control.best["accuracy"] >= 0.9


def test_adaptive_needs_the_iterations_of_the_training():
    control = PruneControl(masked(nn.Sequential(nn.Linear(4, 2))), 0.5, METHODS["adaptive"])
    with pytest.raises(ValueError, match="at least 1, got 0: .* count those of the training"):
        control.update(0, 0.9, lambda: 0.9, lambda: torch.zeros(2, 4))
    assert not control.events and control.start is None and control.best is None


# The dry run


def test_what_cannot_be_measured_fails_before_the_dense_training():
    model = masked(nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Flatten(0)), nn.Linear(8, 3)))
    control = PruneControl(model, 0.9, METHODS["adaptive"])
    before = [value.clone() for value in model.parameters()]
    with pytest.raises(ValueError, match=r"module '2' \(Linear\) fails in the forward pass: mat1 and mat2 shapes"):
        control.check(torch.randn(8, 4))
    with pytest.raises(ValueError, match=r"module '2' \(Linear\) fails in the forward pass: mat1 and mat2 shapes"):
        control.update(1, 0.1, lambda: 0.1, lambda: torch.randn(8, 4))
    assert not control.events and all(torch.equal(value, kept) for value, kept in zip(model.parameters(), before))
    for name in ("adaptive-uncompensated", "gradual"):  # which measure no gradients
        assert PruneControl(model, 0.9, METHODS[name]).check(torch.randn(8, 4)) == 0


def test_the_first_evaluation_tries_a_batch_where_none_was_tried_before():
    measured = []

    def measure():
        measured.append(1)
        return examples(0)[0]

    for checked in (True, False):
        control = PruneControl(tiny(), 0.9, METHODS["adaptive"])
        if checked:
            control.check(examples(0)[0])
        for iteration in (10, 20):
            control.update(iteration, 0.1, lambda: 0.1, measure)
        assert len(measured) == (0 if checked else 1)
        resumed = PruneControl(tiny(), 0.9, METHODS["adaptive"])
        resumed.load_state_dict(control.state_dict())
        resumed.update(30, 0.1, lambda: 0.1, measure)
        assert len(measured) == (0 if checked else 1)


def test_the_dry_run_changes_nothing_and_tells_the_memory():
    model = tiny()
    control, state = PruneControl(model, 0.9, METHODS["adaptive"]), torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = control.check(examples(0)[0])
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    rows = 2 * 8 * 4 * sum(value.numel() for value in model.parameters())  # two mini-batches of eight images
    assert rows < said < 100 * rows
    larger = control.check(torch.randn(800, 2, 4, 4))
    assert larger > 50 * rows


def test_a_study_tries_the_method_before_it_trains(digits, monkeypatch):
    training = prepared(METHODS["adaptive"])
    monkeypatch.setattr("pruning.study.training.step", lambda *given: pytest.fail("trained before the dry run"))
    training.average.relu1.forward = lambda inputs: inputs @ torch.ones(3, 3)
    with pytest.raises(ValueError, match="module 'relu1' .* fails in the forward pass"):
        train(training, digits, SETTINGS, 0)


# Scores of any range


def test_a_score_of_any_range_has_a_slack_in_its_own_units():
    tolerance = AccuracyTolerance(effort=3.0)
    assert tolerance.lowest_accuracy(-0.35, 100, 100, None, slack=0.1) == pytest.approx(-0.45)
    assert tolerance.lowest_accuracy(-0.35, 100, 200, None, slack=0.1) == pytest.approx(-0.40)
    method = replace(METHODS["adaptive"], strategy=AccuracyDriven(AccuracyTolerance(keep=0.5, decay=math.inf), 2, 0.0))
    control = PruneControl(tiny(), -0.35, method, score="any", slack=0.1)
    answers = iter([-0.30, -0.44, -0.46, -0.46])  # the last two below -0.45
    assert control.update(20, -0.34, lambda: next(answers), lambda: examples(0)[0]).action == "prune"
    assert control.density == pytest.approx(0.25, abs=0.01) and control.best["density"] == pytest.approx(0.5, abs=0.01)
    assert control.best["accuracy"] == -0.30 and next(answers, None) is None


@pytest.mark.parametrize(
    ("requirement", "given", "said"),
    [
        (-0.35, {}, "between 0 and 1, got -0.35; with score='any' it is any number"),
        (math.nan, {"score": "any"}, "must be a number, got nan"),
        (0.3, {"score": "bleu"}, "score must be 'accuracy' or 'any', got 'bleu'"),
        (20, {"score": "any"}, "say how far by slack=..."),
        (20, {"score": "any", "slack": -1.0}, "slack must be 0 or more, got -1.0"),
        (0.3, {"measuring": {"labels": 1}}, r"measuring takes output, logits and memory, got \['labels'\]"),
    ],
)
def test_a_goal_that_makes_no_sense_is_refused(requirement, given, said):
    with pytest.raises(ValueError, match=said):
        PruneControl(tiny(), requirement, METHODS["adaptive"], **given)


def test_what_is_no_score_is_refused():
    control = PruneControl(tiny(), 20, METHODS["adaptive"], score="any", slack=1.0)
    for given, answer in ((math.nan, 21), (21, math.nan)):
        with pytest.raises(ValueError, match="the score must be a number, got nan"):
            control.update(10, given, lambda answer=answer: answer, lambda: examples(0)[0])
    accurate = PruneControl(tiny(), 0.9, METHODS["adaptive"])
    for wrong in (1.5, math.nan):
        with pytest.raises(ValueError, match=f"fraction between 0 and 1, got {wrong}; .*score='any'"):
            accurate.update(10, 0.95, lambda wrong=wrong: wrong, lambda: examples(0)[0])
    with pytest.raises(ValueError, match="another score: any, where this control has accuracy"):
        PruneControl(tiny(), 0.9, METHODS["adaptive"]).load_state_dict(control.state_dict() | {"requirement": 0.9})
    PruneControl(tiny(), -0.35, METHODS["gradual"], score="any").update(10, -0.4)  # which tolerates nothing


# Real models


def trained_until_finished(model, requirement, loss, measure, stream, **given):
    """Train by a loop of one's own until ``adaptive`` is finished; ``stream`` gives inputs and targets."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    control = PruneControl(model, requirement, METHODS["adaptive"], optimizer=optimizer, **given)
    count = itertools.count(1)

    def next_inputs():
        next(count)
        return next(stream)[0]

    control.check(next(stream)[0])
    for iteration in count:
        inputs, targets = next(stream)
        loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        if iteration % 20 == 0:
            control.update(iteration, measure(model), lambda: measure(model), next_inputs)
        if control.finished:
            break
        assert iteration < 1500, "never finished"
    return control


@pytest.mark.slow
def test_a_recurrent_network_is_pruned_to_its_requirement(digits):
    class Rows(nn.Module):
        """Reads every second row and column of an image [N, 1, 28, 28], row by row."""

        def __init__(self):
            super().__init__()
            self.gru, self.fc = nn.GRU(14, 16, batch_first=True), nn.Linear(16, 10)

        def forward(self, images):
            return self.fc(self.gru(images[:, 0, ::2, ::2])[0][:, -1])

    def measure(model):
        return accuracy(model, digits.validation)

    torch.manual_seed(0)
    stream = batches(digits, Recipe(batch=32), 0)
    control = trained_until_finished(masked(Rows()), 0.6, F.cross_entropy, measure, stream)
    assert control.reached and control.best["density"] < 0.5
    assert measure(control.delivered()) == control.best["accuracy"] >= 0.6


def centres(images):
    """Where the ink of images [N, 1, 28, 28] lies, in pixels from the middle [N, 2]."""
    ink = images[:, 0] - images.amin()
    at = torch.arange(28.0) - 13.5
    return torch.stack([(ink.sum(2) * at).sum(1), (ink.sum(1) * at).sum(1)], 1) / ink.sum((1, 2))[:, None]


@pytest.mark.slow
def test_a_regression_is_pruned_to_its_error(digits):
    torch.manual_seed(0)
    model = masked(nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 2)))
    images = digits.validation.images

    @torch.no_grad()
    def score(model):
        return -F.mse_loss(model(images), centres(images))

    spread = float(centres(images).var(0).mean())
    stream = ((batch, centres(batch)) for batch, _ in batches(digits, Recipe(batch=64, shift=2), 0))
    given = {"score": "any", "slack": 0.02 * spread}
    control = trained_until_finished(model, -0.1 * spread, F.mse_loss, score, stream, **given)
    assert control.measuring["logits"] is False and control.reached and control.best["density"] < 0.5
    found = float(score(control.delivered()))
    assert found == pytest.approx(control.best["accuracy"]) and found >= -0.1 * spread


@pytest.mark.slow
def test_statistics_are_renewed_after_a_cut(digits):
    """A batch-normalized network, cut to a tenth: compensated with and without its statistics renewed."""
    kept, renewed = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        sizes = ((1, 8, 2), (8, 16, 2), (16, 32, 1))
        blocks = [(nn.Conv2d(i, o, 3, stride), nn.BatchNorm2d(o), nn.ReLU()) for i, o, stride in sizes]
        model = masked(nn.Sequential(*itertools.chain(*blocks), nn.Flatten(), nn.Linear(32 * 16, 10)))
        optimizer, stream = torch.optim.Adam(model.parameters(), lr=3e-3), batches(digits, Recipe(batch=64), seed)
        for _ in range(100):
            images, labels = next(stream)
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        layers = masked_layers(model)
        bound = torch.cat([layer.weight.detach().abs().flatten() for layer in layers.values()]).quantile(0.9)
        keep = {name: layer.weight.detach().abs() > bound for name, layer in layers.items()}
        jacobian = Jacobian(model, [next(stream)[0] for _ in range(4)], torch.Generator().manual_seed(0))
        old = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
        jacobian.compensate(keep, [model])
        renewed.append(accuracy(model, digits.validation))
        model.load_state_dict(old, strict=False)
        kept.append(accuracy(model, digits.validation))
    assert sum(renewed) > sum(kept) + 0.1, (kept, renewed)
