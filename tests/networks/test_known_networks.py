"""Networks that others wrote: masked, trained, pruned, kept and exported.

What is pruned is counted in the arguments of torch's functions in a forward pass, not in the parameters.
"""

import copy
import os

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from zoo import NETWORKS, logits

from pruning import METHODS, density, masked_layers, unmasked
from pruning.control import PruneControl

pytestmark = [
    pytest.mark.slow,
    *map(pytest.mark.filterwarnings, ("ignore::DeprecationWarning:torch", "ignore::torch.jit.TracerWarning")),
]

# `make test-networks` prunes each by every method. Else the smallest by every method, the others by some of each kind
# of allocation, strategy and hook.
EVERY = os.environ.get("PRUNING_TEST_NETWORKS") == "all"
KINDS = ["lamp", "lottery", "rigl", "surgery"]
SOME = {
    "ResNet-18": [],
    "LSTM": [*KINDS, "iterative", "sensitivity", "dsd", "adaptive"],
    "1-d convolutions": [*METHODS],
    **{name: [*KINDS, "adaptive"] for name in ("U-Net", "BERT", "GPT-2")},
}
METHODS_OF = {name: [*METHODS] if EVERY else SOME.get(name, KINDS) for name in NETWORKS}
OPTIMIZERS = (
    lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=0.01),
    lambda parameters: torch.optim.AdamW(parameters, lr=0.002, weight_decay=0.1),
)
WEIGHTS = {
    F.linear: lambda x, weight, bias=None: [weight],
    torch.addmm: lambda bias, x, weight: [weight],
    torch.lstm: lambda x, state, weights, *settings: weights,
    F.multi_head_attention_forward: lambda *args, **kwargs: [args[5], args[11]],
    **dict.fromkeys(
        (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        lambda x, weight, *settings, **more: [weight],
    ),
}


class Used(TorchFunctionMode):
    """Copy the weights of two or more dimensions that functions get, each once."""

    def __init__(self):
        super().__init__()
        self.weights = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in WEIGHTS:
            for weight in WEIGHTS[function](*args, **(kwargs or {})):
                if weight.dim() > 1:
                    self.weights[id(weight)] = weight, weight.detach().clone()
        return function(*args, **(kwargs or {}))


def used(model, x):
    with Used() as seen:
        model(x)
    return [values for _, values in seen.weights.values()]


def train(case, model, optimizer, iterations, control):
    """Train and prune at every other iteration, each mini-batch and its dropout by the iteration's own seed."""
    for iteration in iterations:
        torch.manual_seed(iteration)
        case.step(model, optimizer, lambda now=iteration: control.watching and control.observe(now))
        if not iteration % 2 and not control.finished:
            control.update(iteration, 0.9, lambda: 0.9, lambda: case.batch(4)[0])


def check(model, x):
    """Compare what a forward pass computes with and what the masks tell of it."""
    weights, layers = used(model, x), masked_layers(model).values()
    assert sum(weight.numel() for weight in weights) == sum(layer.synapses for layer in layers)
    # A synapse that came back, or a layer that starts at zero, is not pruned.
    waiting = sum(int((layer.mask & (layer.parameter == 0)).sum()) for layer in layers)
    assert sum(int(weight.count_nonzero()) for weight in weights) + waiting == sum(
        layer.significant for layer in layers
    )
    return waiting


@pytest.mark.parametrize(("name", "method"), [(name, method) for name in NETWORKS for method in METHODS_OF[name]])
def test_what_is_pruned_is_zero_in_the_forward_pass(name, method):
    case = NETWORKS[name]
    torch.manual_seed(0)
    model = case.masked()
    assert sum(layer.synapses for layer in masked_layers(model).values()) == pytest.approx(
        case.synapses * sum(weight.numel() for weight in model.parameters() if weight.dim() > 1), rel=1e-3
    )
    kind = len(method) % 2
    optimizer = OPTIMIZERS[kind](model.parameters())
    # Where the control does not know the optimizer, momentum moves stored weights: reading must mask them.
    control = PruneControl(model, 0.5, METHODS[method], optimizer=optimizer if kind else None, ramp=8)
    train(case, model, optimizer, range(1, 9), control)
    control.finished or train(case, model, optimizer, range(9, 11), control)
    x, _ = case.batch(2)
    check(model.eval(), x)
    delivered = control.delivered()
    assert density(delivered) < 1 or method == "unpruned"
    assert not check(delivered, x) or method in {"rigl", "dsd", "snip"}


@pytest.mark.parametrize("name", NETWORKS)
def test_kept_resumed_and_exported(name, tmp_path):
    case = NETWORKS[name]

    def started():
        torch.manual_seed(0)
        model = case.masked()
        optimizer = OPTIMIZERS[1](model.parameters())
        return (
            model,
            optimizer,
            PruneControl(model, 0.5, METHODS["iterative" if name == "ResNet-18" else "surgery"], optimizer=optimizer),
        )

    first = started()
    train(case, *first[:2], range(1, 3), first[2])
    torch.save([part.state_dict() for part in first], tmp_path / "state.pt")
    train(case, *first[:2], range(3, 5), first[2])
    second = started()
    for part, state in zip(second, torch.load(tmp_path / "state.pt", weights_only=True)):
        part.load_state_dict(state)
    train(case, *second[:2], range(3, 5), second[2])
    assert first[2].events == second[2].events
    model, (x, _) = first[0].eval(), case.batch(2)
    check(model, x)
    expected = logits(model(x))
    for other in (second[0].eval(), copy.deepcopy(model)):
        assert density(other) == density(model) < 1 and torch.equal(logits(other(x)), expected)

    plain = unmasked(first[2].delivered())
    assert {type(module) for module in plain.modules()} == {type(module) for module in case.make().modules()}
    expected = logits(plain(x))
    exported = torch.export.export(plain, (x,)).module()
    traced = torch.jit.trace(plain, x, strict=False, check_trace=False)
    answers = [exported(x), traced(x)]
    if case.onnx:
        torch.onnx.export(plain, (x,), tmp_path / "net.onnx", dynamo=False)
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
        answers += map(torch.from_numpy, session.run(None, {session.get_inputs()[0].name: x.numpy()}))
    for answer in answers:
        torch.testing.assert_close(logits(answer), expected, rtol=1e-3, atol=1e-4)
