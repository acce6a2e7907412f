"""The training loop is the user's own: accumulation, scaling, several optimizers, schedulers, averages."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.optim import Lamb
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pruning import METHODS, PruneControl, density, masked, masked_layers

# At every iteration each of these acts on gradients.
ACTING = [name for name, method in METHODS.items() if method.hook.acts]


def small(seed=0):
    torch.manual_seed(seed)
    return masked(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3)))


def batch(seed, count=8):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, 8, generator=source), torch.randint(3, (count,), generator=source)


def loss(model, seed):
    x, labels = batch(seed)
    return F.cross_entropy(model(x), labels)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def update(control, iteration):
    if iteration % 3 == 0 and not control.finished:
        control.update(iteration, 0.9, lambda: 0.9, lambda: batch(iteration)[0])


def run(method, step, iterations=12, make=small, **settings):
    """Train and prune; ``step`` does a mini-batch and calls what it is given between backward pass and update."""
    model = make()
    optimizer = sgd(model.parameters())
    control = PruneControl(model, 0.5, METHODS[method], optimizer=optimizer, ramp=9, **settings)
    for iteration in range(1, iterations + 1):
        optimizer.zero_grad()
        step(model, optimizer, iteration, lambda now=iteration: control.watching and control.observe(now))
        update(control, iteration)
    return control


def plain(model, optimizer, iteration, observe):
    loss(model, iteration).backward()
    observe()
    optimizer.step()


def same(control, other):
    ours, theirs = control.pruner.model.state_dict(), other.pruner.model.state_dict()
    return control.events == other.events and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", ACTING)
def test_what_a_gradient_scaler_unscales_counts_and_what_it_skips_does_not(method):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000, backoff_factor=0.5)
    skipped = {5}

    def scaled(model, optimizer, iteration, observe):
        if iteration in skipped:  # an overflow, before the batch is tried again
            scaler.scale(loss(model, iteration) * torch.inf).backward()
            scaler.unscale_(optimizer)
            assert not model[0].parameter.grad.isfinite().all()
            observe()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        scaler.scale(loss(model, iteration)).backward()
        scaler.unscale_(optimizer)
        observe()
        scaler.step(optimizer)
        scaler.update()

    control = run(method, scaled)
    assert scaler.get_scale() == 2.0**9
    # Scales are powers of two, which round nothing; running statistics saw a batch twice.
    expected, found = run(method, plain), control.pruner.model.state_dict()
    assert control.density < 1 and control.events == expected.events
    for name, value in expected.pruner.model.state_dict().items():
        assert "running" in name or "tracked" in name or torch.equal(value, found[name])


@pytest.mark.parametrize("method", ["rigl", "surgery"])
def test_gradients_that_accumulate_count_together(method):
    control = run(method, plain, 4)
    model, seen = control.pruner.model.eval(), {}
    for layer in masked_layers(model).values():
        layer.dense_grad = layer.parameter.grad = None
    for seed in (1, 2, 3):  # three mini-batches to a step
        (loss(model, seed) / 3).backward()
    for name, layer in masked_layers(model).items():
        seen[name], layer.dense_grad = layer.dense_grad, None
    together = [torch.cat(parts) for parts in zip(*map(batch, (1, 2, 3)))]
    F.cross_entropy(model(together[0]), together[1]).backward()
    for name, layer in masked_layers(model).items():
        torch.testing.assert_close(seen[name], layer.dense_grad)
        assert layer.mask.all() or layer.dense_grad[~layer.mask].any()


@pytest.mark.parametrize("method", ["iterative", "lottery", "oneshot"])
def test_several_optimizers_are_cleared_and_rewound_together(method):
    model = small()
    optimizers = [sgd(model[0].parameters()), torch.optim.AdamW(model[3].parameters(), lr=0.01)]
    control = PruneControl(model, 0.5, METHODS[method], optimizer=optimizers)
    for iteration in range(1, 7):
        for optimizer in optimizers:
            optimizer.zero_grad()
        plain_step = loss(model, iteration)
        plain_step.backward()
        if control.watching:
            control.observe(iteration)
        for optimizer in optimizers:
            optimizer.step()
        if iteration == 3:
            early = copy.deepcopy([optimizer.state_dict()["state"] for optimizer in optimizers])
        update(control, iteration)
    assert control.density < 1
    for optimizer, layer, before in zip(optimizers, (model[0], model[3]), early):
        for name, value in optimizer.state[layer.weight].items():
            if value.dim():
                assert not value[~layer.mask].any() and value.any()
            if method != "iterative":  # back to what first met the requirement
                wanted = before[0][name]
                assert torch.equal(value, torch.where(layer.mask, wanted, 0) if value.dim() else wanted)


def rate(step):
    """Warm up over four iterations, then fall."""
    return min(step + 1, 4) / 4 / (1 + step / 8)


@pytest.mark.parametrize(("method", "back"), [("raterewind", 0), ("lottery", 3), ("iterative", None)])
def test_a_schedule_goes_back_by_what_restarted_says(method, back):
    model = small()
    optimizer = sgd(model.parameters())
    control = PruneControl(model, 0.5, METHODS[method], optimizer=optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step - control.restarted))
    rates = []
    for iteration in range(1, 10):
        rates.append(optimizer.param_groups[0]["lr"])
        loss(model, iteration).backward()
        if control.watching:
            control.observe(iteration)
        optimizer.step()
        optimizer.zero_grad()
        if iteration in (3, 7):  # the requirement is met for the first time after three iterations
            control.update(iteration, 0.9)
        schedule.step()
    starts = [0, 1, 2, 3, 4, 5, 6, 7, 8] if back is None else [0, 1, 2, *range(back, back + 4), back, back + 1]
    assert rates == pytest.approx([0.1 * rate(step) for step in starts])


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("method", ["oneshot", "lottery"])
@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24),
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 4),
    ],
    ids=["cosine", "step"],
)
def test_a_schedule_that_goes_on_from_the_last_rate_is_not_set_back(make, method, several):
    model = small()
    optimizer, alone = sgd(model.parameters()), sgd(small().parameters())
    schedule, undisturbed = make(optimizer), make(alone)
    control = PruneControl(model, 0.5, METHODS[method], optimizer=[optimizer] if several else optimizer)
    for iteration in range(1, 16):
        optimizer.zero_grad()
        plain(model, optimizer, iteration, lambda now=iteration: control.watching and control.observe(now))
        alone.step()
        schedule.step()
        undisturbed.step()
        if iteration % 3 == 0 and not control.finished:
            control.update(iteration, 0.9)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(alone.param_groups[0]["lr"])
    assert len(control.events) > 2


AVERAGES = {
    "AveragedModel": AveragedModel,
    "AveragedModel, exponential": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5)),
    "AveragedModel, with buffers": lambda model: AveragedModel(
        model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True
    ),
    "ModelEmaV3": lambda model: ModelEmaV3(model, decay=0.5),
}


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("method", ["iterative", "lottery", "rigl", "surgery", "dsd", "adaptive"])
def test_averages_of_others(name, method):
    model = small()
    average, optimizer = AVERAGES[name](model), sgd(model.parameters())
    control = PruneControl(model, 0.5, METHODS[method], optimizer=optimizer, average=average.module)
    for iteration in range(1, 16):
        optimizer.zero_grad()
        plain(model, optimizer, iteration, lambda now=iteration: control.watching and control.observe(now))
        (average.update_parameters if hasattr(average, "update_parameters") else average.update)(model)
        update(control, iteration)
        if control.finished:
            break
    delivered = control.delivered()
    assert density(delivered) < 1
    for key, layer in masked_layers(average.module).items():
        assert torch.equal(layer.mask, masked_layers(model)[key].mask)
        assert not layer.effective_weight()[~layer.mask].any()
    assert all(not layer.parameter[~layer.mask].any() for layer in masked_layers(delivered).values())


def test_an_average_that_wraps_the_copy_is_told_what_to_pass():
    model = small()
    with pytest.raises(
        ValueError, match=r"average must be a masked copy of the model; of what wraps one, pass \.module"
    ):
        PruneControl(model, 0.5, average=AveragedModel(model))


def test_going_back_takes_what_an_optimizer_counts_and_leaves_what_schedulers_set():
    model = masked(nn.Sequential(nn.Linear(4, 3)))
    optimizer = Lamb(model.parameters(), lr=0.1)
    control = PruneControl(model, 0.5, optimizer=optimizer)

    def step():
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()

    step()
    snapshot = control.pruner.snapshot()
    step()
    optimizer.param_groups[0]["lr"] = 0.01
    control.pruner.restore(snapshot)
    assert optimizer.param_groups[0]["step"] == 1 and optimizer.param_groups[0]["lr"] == 0.01
