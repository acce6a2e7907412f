import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning import MaskedConv2d, MaskedLinear, density, masked, masked_layers, unmasked

pytestmark = pytest.mark.arithmetic

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}
CONVOLUTIONS = {
    "plain": {},
    "stride": {"stride": (2, 1)},
    "padding": {"padding": 2},
    "same": {"padding": "same"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": (1, 2), "padding_mode": "circular"},
    "groups": {"groups": 2},
    "dilation": {"dilation": 2, "bias": False},
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Net(nn.Module):
    """Nested: images [N, 4, 8, 8] to logits [N, 5]."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.head = nn.ModuleDict({"hidden": nn.Linear(24, 7), "out": nn.Linear(7, 5)})

    def forward(self, x):
        return self.head["out"](F.relu(self.head["hidden"](self.body(x).flatten(1))))


def images(count=3):
    return torch.randn(count, 4, 8, 8)


def cut(model, share=0.5):
    """Prune a random ``share`` of each layer; returns the masks."""
    for layer in masked_layers(model).values():
        layer.prune(torch.rand(layer.weight.shape) >= share)
    return {name: layer.mask.clone() for name, layer in masked_layers(model).items()}


def by_hand(model, masks):
    """A plain copy of a masked model whose pruned weights were set to zero by hand."""
    plain = Net()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if not name.endswith("mask")})
    with torch.no_grad():
        for name, mask in masks.items():
            plain.get_submodule(name).weight[~mask] = 0
    return plain


def train(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images(8)), torch.randint(5, (8,))).backward()
        optimizer.step()


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_synapses_are_zero_whatever_the_optimizer_does(name):
    model = masked(Net())
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    masks = cut(model)
    train(model, optimizer)  # with momentum of the weights that are gone: nobody cleared it
    stored = dict(model.named_parameters())
    moved = [stored[f"{key}.weight"].detach()[~mask] for key, mask in masks.items()]
    assert any(weights.any() for weights in moved), "the optimizer should have moved a stored weight"
    for layer in masked_layers(model).values():
        assert not layer.effective_weight()[~layer.mask].any()
        assert not layer.weight.grad[~layer.mask].any()
        assert layer.weight.grad[layer.mask].any()
    assert all(torch.equal(layer.mask, masks[key]) for key, layer in masked_layers(model).items())
    plain, x = by_hand(model, masks).eval(), images()
    assert torch.equal(model.eval()(x), plain(x))
    assert torch.equal(unmasked(model)(x), plain(x))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_stale_momentum_stored_weights_stay_zero_and_the_rest_trains_as_a_plain_layer(name):
    model = masked(Net())
    masks = cut(model)
    plain = by_hand(model, masks)
    optimizers = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](plain.parameters())
    for _ in range(4):
        x, labels = images(8), torch.randint(5, (8,))
        for net, optimizer in zip((model, plain), optimizers):
            optimizer.zero_grad()
            F.cross_entropy(net(x), labels).backward()
            for key, mask in masks.items():
                if net is plain:
                    plain.get_submodule(key).weight.grad[~mask] = 0
            optimizer.step()
    for key, layer in masked_layers(model).items():
        assert not layer.weight[~layer.mask].any()
        assert torch.equal(layer.weight, plain.get_submodule(key).weight)
        assert torch.equal(layer.bias, plain.get_submodule(key).bias)


@pytest.mark.parametrize("poison", [1e30, -3e38])
def test_nothing_stored_at_a_pruned_synapse_comes_through(poison):
    layer = masked(nn.Linear(4, 3))
    keep = torch.ones(3, 4, dtype=torch.bool)
    keep[1, 2] = False
    layer.prune(keep)
    with torch.no_grad():
        layer.weight[1, 2] = poison
    output = layer(torch.ones(2, 4))
    output.sum().backward()
    assert output.isfinite().all() and output.abs().max() < 10
    assert layer.weight.grad[1, 2] == 0 and torch.equal(layer.weight.grad[0], torch.full((4,), 2.0))


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 3), lambda: nn.Conv2d(1, 3, 2)])
def test_a_mask_changed_by_hand_counts_at_once(make):
    layer = masked(make())
    assert layer.effective_weight().all()
    layer.mask.flatten()[1] = False
    assert layer.effective_weight().flatten().nonzero().flatten().tolist() == [i for i in range(12) if i != 1]
    layer.mask = torch.zeros_like(layer.mask)
    assert not layer.effective_weight().any()
    layer.mask.data.fill_(True)  # what comes back starts at zero
    with torch.no_grad():
        layer.weight.fill_(2.0)
    assert layer.double().weight.dtype == torch.float64 and layer.weight.all()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_every_setting(name):
    plain = nn.Conv2d(4, 6, 3, **CONVOLUTIONS[name])
    before = copy.deepcopy(plain)
    layer = masked(before)
    assert layer is before, "who holds the layer elsewhere holds the masked one"
    assert type(layer) is MaskedConv2d and layer.mask.shape == plain.weight.shape
    keep = torch.rand(plain.weight.shape) > 0.5
    layer.prune(keep)
    with torch.no_grad():
        plain.weight[~keep] = 0
        layer.weight[~keep] = 3.0
    x = torch.randn(2, 4, 9, 9)
    ours, theirs = layer(x), plain(x)
    assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    assert torch.equal(layer.weight.grad[keep], plain.weight.grad[keep]) and not layer.weight.grad[~keep].any()
    again = unmasked(layer)
    assert type(again) is nn.Conv2d and torch.equal(again(x), theirs)
    assert "mask" not in again.state_dict()


def test_made_directly():
    layer = MaskedLinear(5, 2, bias=False, dtype=torch.float64)
    assert layer(torch.ones(3, 5, dtype=torch.float64)).shape == (3, 2)
    assert layer.mask.all() and layer.mask.dtype == torch.bool
    assert (layer.synapses, layer.significant) == (10, 10)
    assert "synapses=10" in repr(layer)


def test_counts():
    model = masked(Net())
    assert list(masked_layers(model)) == ["body.0", "head.hidden", "head.out"]
    assert density(model) == 1
    layer = model.head["out"]
    keep = torch.zeros(5, 7, dtype=torch.bool)
    keep[0] = True
    layer.prune(keep)
    assert (layer.synapses, layer.significant) == (35, 7)
    layer.prune(~keep)  # what was cut stays cut
    assert layer.significant == 0
    assert density(model) == (216 + 168) / (216 + 168 + 35)
    layer.set_mask(keep)
    assert layer.significant == 7 and not layer.weight.any()  # what comes back starts at zero
    with pytest.raises(ValueError, match=r"masked\(model\) first"):
        density(Net())


def test_a_wrong_mask_is_an_error_that_changes_nothing():
    layer = masked(nn.Linear(4, 3))
    for keep, said in ((torch.ones(4, 3, dtype=torch.bool), r"\(4, 3\)"), (torch.ones(3, 4), "float32")):
        with pytest.raises(ValueError, match=r"bool of shape \(3, 4\).*" + said):
            layer.set_mask(keep)
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        layer.set_mask(torch.ones(1, dtype=torch.bool))
    assert layer.mask.all() and layer.weight.all()


def same(model, other):
    x = images()
    for key, layer in masked_layers(model).items():
        assert torch.equal(layer.mask, masked_layers(other)[key].mask) and not layer.mask.all()
    return torch.equal(model.eval()(x), other.eval()(x))


def test_copies_and_files():
    model = masked(Net())
    masks = cut(model)
    twin = copy.deepcopy(model)
    assert same(model, twin)
    cut(twin)
    assert all(torch.equal(layer.mask, masks[key]) for key, layer in masked_layers(model).items()), "masks are shared"

    other = masked(Net())
    assert str(other.load_state_dict(model.state_dict(), strict=True)) == "<All keys matched successfully>"
    assert same(model, other)
    other = masked(Net())
    other.load_state_dict(saved(model.state_dict()), strict=True)
    assert same(model, other)
    assert same(model, pickle.loads(pickle.dumps(model)))


def test_a_plain_state_enters_a_masked_model_with_nothing_pruned():
    plain, model = Net(), masked(Net())
    cut(model)
    before = set(plain.state_dict())
    state = plain.state_dict()
    model.load_state_dict(state, strict=True)
    assert density(model) == 1 and set(state) == before
    x = images()
    assert torch.equal(model.eval()(x), plain.eval()(x))
    with pytest.raises(RuntimeError, match=r"head\.out\.weight"):
        model.load_state_dict({name: value for name, value in state.items() if name != "head.out.weight"})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*mask"):
        plain.load_state_dict(model.state_dict())


def test_a_state_enters_a_model_without_storage():
    full = masked(Net())
    cut(full)
    for state in (Net().state_dict(), full.state_dict()):
        with torch.device("meta"):
            model = masked(Net())
        assert model.head["out"].mask.device.type == "meta"
        model.load_state_dict(state, assign=True)
        assert {layer.mask.device.type for layer in masked_layers(model).values()} == {"cpu"}
        assert model.eval()(images()).isfinite().all()
    assert density(model) == density(full)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    model = masked(Net())
    masks = cut(model)
    model.to(dtype)
    for key, layer in masked_layers(model).items():
        assert layer.mask.dtype == torch.bool and torch.equal(layer.mask, masks[key])
        assert layer.weight.dtype == layer.effective_weight().dtype == dtype
    x = images().to(dtype)
    model(x).sum().backward()
    assert all(not layer.weight.grad[~layer.mask].any() for layer in masked_layers(model).values())
    assert torch.equal(unmasked(copy.deepcopy(model)).eval()(x), model.eval()(x))
    model.float()
    assert all(not layer.weight[~layer.mask].any() for layer in masked_layers(model).values())


def test_autocast():
    model = masked(Net())
    masks = cut(model)
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.eval()(x), by_hand(model, masks).eval()(x))


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_devices(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = masked(Net())
    masks = cut(model)
    model.to(device)
    assert {value.device.type for value in model.state_dict().values()} == {device}
    assert model(images().to(device)).shape == (3, 5)
    if device == "cuda":
        assert all(torch.equal(layer.mask.cpu(), masks[key]) for key, layer in masked_layers(model).items())
        model.head["out"].set_mask(torch.zeros(5, 7, dtype=torch.bool))  # a mask made on the CPU
        assert same(model.cpu(), copy.deepcopy(model))


def test_channels_last():
    model = masked(Net()).to(memory_format=torch.channels_last)
    masks = cut(model)
    layer = model.body[0]
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert layer.effective_weight().is_contiguous(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    assert torch.allclose(model.eval()(x), by_hand(model, masks).eval()(x), atol=1e-6)
    other = masked(Net())
    other.load_state_dict(saved(model.state_dict()))
    assert same(model, other.to(memory_format=torch.channels_last))


def test_pruning_goes_on_from_a_sparse_model_that_was_saved_without_masks():
    model = masked(Net())
    masks = cut(model)
    state = saved(unmasked(model).state_dict())
    plain = Net()
    plain.load_state_dict(state)
    loaded = masked(Net())
    loaded.load_state_dict(state)
    for other in (masked(plain, zeros_pruned=True), masked(loaded, zeros_pruned=True)):
        assert all(torch.equal(layer.mask, masks[key]) for key, layer in masked_layers(other).items())
        optimizer = OPTIMIZERS["sgd"](other.parameters())
        train(other, optimizer)
        before = density(other)
        cut(other)
        train(other, optimizer)
        assert density(other) < before
        assert all(not layer.effective_weight()[~masks[key]].any() for key, layer in masked_layers(other).items())
    assert density(masked(Net())) == 1


def test_unmasked_gives_plain_layers_with_zeros_in_place():
    model = masked(Net())
    masks = cut(model)
    with torch.no_grad():
        for layer in masked_layers(model).values():
            layer.weight[~layer.mask] = 1.0  # as stale momentum leaves it
    x = images()
    expected = model.eval()(x)
    parameters = list(model.parameters())
    plain = unmasked(model)
    assert plain is model and not masked_layers(plain)
    assert {type(module) for module in plain.modules()} == {type(module) for module in Net().modules()}
    assert set(plain.state_dict()) == set(Net().state_dict())
    for key, mask in masks.items():
        assert not plain.get_submodule(key).weight[~mask].any()
    assert torch.equal(plain(x), expected)
    assert all(ours is theirs for ours, theirs in zip(plain.parameters(), parameters, strict=True))


def test_an_optimizer_made_before_goes_on_working():
    model = Net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    train(model, optimizer)
    names = [name for name, _ in model.named_parameters()]
    assert masked(model) is model
    assert [name for name, _ in model.named_parameters()] == names
    cut(model)
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer)
    for key, layer in masked_layers(model).items():
        assert not torch.equal(layer.weight[layer.mask], before[f"{key}.weight"][layer.mask])
    unmasked(model)
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer)
    assert not torch.equal(model.head["out"].weight, before["head.out.weight"])


def test_masked_twice_keeps_the_masks():
    model = masked(Net())
    masks = cut(model)
    assert all(torch.equal(layer.mask, masks[key]) for key, layer in masked_layers(masked(model)).items())


def test_a_shared_module_has_one_mask_and_counts_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.again = nn.ModuleList([self.first, nn.ReLU(), self.first])

        def forward(self, x):
            return self.again[2](self.again[1](self.first(x)))

    model = masked(Shared())
    assert model.first is model.again[0] is model.again[2] and isinstance(model.first, MaskedLinear)
    assert list(masked_layers(model)) == ["first"]
    assert density(model) == 1
    model.first.prune(torch.eye(4, dtype=torch.bool))
    assert density(model) == 0.25
    x = torch.randn(2, 4)
    expected = model(x)
    plain = unmasked(copy.deepcopy(model))
    assert plain.first is plain.again[2] and torch.equal(plain(x), expected)
    other = masked(Shared())
    other.load_state_dict(saved(model.state_dict()))
    assert torch.equal(other(x), expected) and density(other) == 0.25


@pytest.mark.parametrize("late", [False, True])
def test_tied_weights_share_one_mask(late):
    words = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    model = masked(words, include=[nn.Embedding, nn.Linear]) if late else words
    model[1].weight = model[0].weight
    model = masked(model)
    assert len(masked_layers(model)) == 1 and density(model) == 1
    next(iter(masked_layers(model).values())).prune(torch.arange(36).view(9, 4) % 3 == 0)
    x = torch.tensor([[1, 5], [2, 7]])
    for net in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            assert torch.equal(net[0].weight.grad == 0, ~net[0].mask) or not net[0].weight.grad[~net[0].mask].any()
            optimizer.step()
        assert net[0].weight is net[1].weight and net[0].mask is net[1].mask
        assert density(net) == int(net[1].weight.count_nonzero()) / 36 == 12 / 36
        expected = net(x)
        assert torch.equal(unmasked(net)(x), expected) and type(net[1]) is nn.Linear


def test_hooks_settings_and_subclasses_are_kept():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model = nn.Sequential(nn.Linear(4, 4), Own(4, 4))
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(type(module)))
    handle = model[0].register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    model[0].weight.requires_grad_(False)
    model.eval()
    x = torch.randn(2, 4)
    expected = model(x)
    masked(model)
    assert torch.equal(model(x), expected) and seen == [nn.Linear, MaskedLinear]
    assert isinstance(model[1], Own) and list(masked_layers(model)) == ["0", "1"]
    assert not model[0].training and not model[0].weight.requires_grad
    handle.remove()
    assert not torch.equal(model(x), expected)


def test_no_gradient_mode_and_a_frozen_copy():
    model = masked(Net())
    cut(model)
    frozen = copy.deepcopy(model).requires_grad_(False)
    cut(frozen)
    with torch.inference_mode():
        assert frozen.eval()(images()).shape == (3, 5)


class Reads(nn.Module):
    """A model that reads weights in every way but a layer's own forward pass; vectors [N, 8] to logits [N, 3]."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.kept = [self.second]

    def forward(self, x):
        x = F.relu(F.linear(x, self.first.weight, self.first.bias))
        x = F.linear(torch.tanh(self.kept[0](x)), self.first.weight.t())
        return self.third(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(8, 6, num_layers=2, bidirectional=True, proj_size=4), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.lstm(x.unsqueeze(0).expand(3, -1, -1))[0].mean(0))


def attention():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (1, 8)), layer, nn.Flatten(), nn.Linear(8, 3))


def transposed():
    return nn.Sequential(
        nn.Unflatten(1, (2, 4)),
        nn.Conv1d(2, 4, 3),
        nn.ReLU(),
        nn.ConvTranspose1d(4, 2, 3),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


MODELS = {"read": Reads, "recurrent": Recurrent, "attention": attention, "transposed": transposed}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_pruned_is_zero_wherever_it_is_read(name, optimizer):
    model = masked(MODELS[name]())
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    x, labels = torch.randn(16, 8), torch.randint(3, (16,))

    def steps():
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()

    steps()
    cut(model, 0.7)
    steps()
    parameters = dict(model.named_parameters())
    assert sum(layer.synapses for layer in masked_layers(model).values()) == sum(
        weight.numel() for weight in parameters.values() if weight.dim() > 1
    ), "every weight has a mask"
    expected = model.eval()(x)
    for layer in masked_layers(model).values():
        assert not layer.gradient[~layer.mask].any() and layer.gradient.any()
        assert not layer.effective_weight()[~layer.mask].any()
    with torch.no_grad():
        assert torch.allclose(model(x), expected, atol=1e-6), "the fast path of attention too"
    again = MODELS[name]()
    masked(again).load_state_dict(saved(model.state_dict()))
    for net in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again.eval()):
        assert torch.equal(net(x), expected) and density(net) == density(model)
    counted = sum(int(weight.count_nonzero()) for weight in unmasked(model).parameters() if weight.dim() > 1)
    assert torch.equal(model(x), expected) and {type(module) for module in model.modules()} == {
        type(module) for module in MODELS[name]().modules()
    }
    assert counted == sum(layer.significant for layer in masked_layers(net).values())


def test_what_has_no_mask_is_said():
    words = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match=r"without a mask: 0.weight; together 60.0% of the model's weights"):
        model = masked(words)
    next(iter(masked_layers(model).values())).prune(torch.zeros(3, 8, dtype=torch.bool))
    assert density(model) == 0 and density(model, of="all") == 0.6
    with pytest.raises(ValueError, match="of must be 'prunable' or 'all', got 'some'"):
        density(model, of="some")
    assert list(masked_layers(masked(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), exclude=["1"]))) == ["0"]
    assert list(masked_layers(masked(Net(), include=["head.*"], exclude=["*.out", "body*"]))) == ["head.hidden"]
    assert list(masked_layers(masked(Net(), include=[nn.Conv2d], exclude=["head*"]))) == ["body.0"]


def test_a_parameter_of_ones_own_is_masked_by_its_name():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel, self.weight = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3, 3))
            self.list = nn.ParameterList([torch.randn(3, 3)])

        def forward(self, x):
            return x @ self.kernel @ self.weight @ self.list[0]

    assert list(masked_layers(masked(Own(), include=[Own], exclude=["kernel", "list.0"]))) == [""]
    model = masked(nn.Sequential(Own(), nn.Linear(3, 2)), include=[nn.Linear, "*.kernel", "*.list.0"], exclude=[Own])
    assert list(masked_layers(model)) == ["0.list.0", "1"]
    model = masked(nn.Sequential(Own(), nn.Linear(3, 2)), include=[nn.Linear, Own, "*.kernel", "*.list.0"])
    assert list(masked_layers(model)) == ["0.kernel", "0.weight", "0.list.0", "1"]
    cut(model, 0.7)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    x = torch.randn(5, 4)
    expected = model(x)
    for layer in masked_layers(model).values():
        assert not layer.gradient[~layer.mask].any() and not layer.weight[~layer.mask].any()
    assert torch.equal(copy.deepcopy(model)(x), expected) and torch.equal(unmasked(model)(x), expected)
    assert type(model[0]) is Own and type(model[0].list) is nn.ParameterList


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.nn.utils.weight_norm(nn.Linear(4, 4)), "the weight of '0' is computed by WeightNorm"),
        (lambda: torch.nn.utils.spectral_norm(nn.Linear(4, 4)), "the weight of '0' is computed by SpectralNorm"),
        (lambda: torch.nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), "'0' has parametrized weights"),
        (lambda: nn.LazyLinear(4), "'0' is lazy and has no shape yet"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_that_something_else_makes_are_refused_by_name(make, said):
    model = nn.Sequential(make(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=said):
        masked(model)
    assert not masked_layers(model), "nothing was changed"
    model(torch.ones(1, 4))
    assert list(masked_layers(masked(model, exclude=["0"]))) == ["1"]


def test_masks_of_pytorchs_pruning_are_taken_over():
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 2))
    torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(2, 4)
    expected = model[0](x)
    masked(model)
    assert torch.equal(model[0](x), expected) and model[0].significant == 8
    assert any(weight is model[0].weight for weight in optimizer.param_groups[0]["params"])


def test_of_an_lstm_both_weights_keep_their_masks_of_pytorchs_pruning():
    model = nn.LSTM(4, 4)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        torch.nn.utils.prune.random_unstructured(model, name, 0.5)
    assert [layer.significant for layer in masked_layers(masked(model)).values()] == [32, 32]


def pruned_bias():
    torch.nn.utils.prune.l1_unstructured(layer := nn.Linear(4, 4), "bias", 2)
    return [layer]


def tied_and_pruned(*which):
    layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
    layers[1].weight = layers[0].weight
    for place in which:
        torch.nn.utils.prune.random_unstructured(layers[place], "weight", 0.5)
    return layers


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (pruned_bias, "'bias' of '0' is pruned by torch.nn.utils.prune and gets no mask here"),
        (lambda: tied_and_pruned(0, 1), "'weight' of '1' is tied to another layer's, and pruned otherwise"),
        (lambda: tied_and_pruned(1), "'weight' of '1' is tied to another layer's, and pruned otherwise"),
    ],
)
def test_what_masks_cannot_take_over_from_pytorchs_pruning_is_refused(make, said):
    model = nn.Sequential(*make())
    with pytest.raises(ValueError, match=said):
        masked(model)
    assert not masked_layers(model) and any(name.endswith("_mask") for name, _ in model.named_buffers())


class Causal(nn.Linear):
    def __init__(self, size):
        super().__init__(size, size)
        self.register_buffer("mask", torch.tril(torch.ones(size, size)))

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


class WithMethod(nn.Linear):
    def gradient(self):
        return self.weight.grad


@pytest.mark.parametrize(("layer", "name"), [(Causal(4), "mask"), (WithMethod(4, 4), "gradient")])
def test_a_layers_own_name_that_masked_layers_use_is_refused(layer, name):
    model = nn.Sequential(nn.Linear(4, 4), layer)
    with pytest.raises(ValueError, match=f"'1' has a '{name}' of its own, and masked layers use that name"):
        masked(model)
    assert [type(part) for part in model] == [nn.Linear, type(layer)]
    assert list(masked_layers(masked(model, exclude=["1"]))) == ["0"]


def test_a_container_stands_for_all_in_it_and_a_pattern_that_matches_nothing_is_named():
    assert list(masked_layers(masked(Net(), exclude=["head"]))) == ["body.0"]
    assert list(masked_layers(masked(Net(), exclude=[nn.ModuleDict]))) == ["body.0"]
    with pytest.warns(UserWarning, match="without a mask: body.0.weight"):
        assert list(masked_layers(masked(Net(), include=["head"]))) == ["head.hidden", "head.out"]
    for items in ("head*", nn.Linear):
        with pytest.raises(ValueError, match=r"exclude must be a list of types of layers and patterns of names"):
            masked(Net(), exclude=items)
    with pytest.raises(ValueError, match="'haed' matches no layer of the model: body, body.0, "):
        masked(Net(), exclude=["haed"])


def test_weights_tied_after_they_were_masked_are_not_counted_twice():
    model = masked(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)))
    cut(model)
    model[1].weight = model[0].weight
    with pytest.raises(RuntimeError, match="'0' and '1' share their weights and have a mask each"):
        density(model)
    masked(model)
    assert density(model) == model[0].weight.count_nonzero().add(model[2].weight.count_nonzero()) / 32
    model[2].weight = nn.Parameter(model[0].weight.detach().t())
    with pytest.raises(RuntimeError, match="'0' and '2' share their weights"):
        density(model)


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def test_a_part_of_a_model_with_tied_weights_has_its_mask():
    model = masked(tied())
    cut(model)
    part = masked(model[1])
    assert density(part) == density(copy.deepcopy(part)) == density(model) == model[1].weight.count_nonzero() / 16
    masked(nn.Sequential(model[1], model[0]))
    assert density(model) == model[0].weight.count_nonzero() / 16


def test_tied_weights_that_learn_later_and_are_read_elsewhere_have_no_gradient_where_pruned():
    model = tied()
    model[0].weight.requires_grad_(False)
    cut(masked(model))
    model[0].weight.requires_grad_(True)
    model[1](torch.randn(3, 4)).square().sum().backward()
    assert not model[0].gradient[~model[0].mask].any() and model[0].gradient.any()


@pytest.mark.parametrize(
    "change",
    [
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.spectral_norm,
        lambda layer: torch.nn.utils.prune.random_unstructured(layer, "weight", 0.5),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_would_make_a_masked_weight_anew_is_refused(change):
    model = masked(nn.Sequential(nn.Linear(4, 4)))
    cut(model)
    with pytest.raises(RuntimeError, match="the 'weight' of a MaskedLinear has a mask: parametrize it, or "):
        change(model[0])


def test_a_parameter_taken_away_is_named():
    model = masked(nn.Sequential(nn.Linear(4, 4)))
    del model[0]._parameters["weight"]
    with pytest.raises(RuntimeError, match="the mask of '0' no longer counts: its 'weight' was parametrized"):
        density(model)


def test_a_tensor_swapped_into_a_parameters_place_keeps_the_masks_gradient():
    model = masked(nn.Sequential(nn.Linear(8, 8)))
    cut(model)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
        for _ in range(2):
            model.zero_grad()
            model(torch.randn(3, 8).double()).square().sum().backward()
            assert not model[0].gradient[~model[0].mask].any() and model[0].gradient.any()
            model.load_state_dict(model.state_dict())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_parameters_lent_for_a_call_are_left_as_they_are():
    model, teacher = masked(nn.Sequential(nn.Linear(8, 8))), nn.Sequential(nn.Linear(8, 8))
    cut(model)
    x, before = torch.randn(3, 8), copy.deepcopy(teacher.state_dict())
    lent = torch.func.functional_call(model, dict(teacher.named_parameters()), (x,))
    assert torch.allclose(lent, F.linear(x, teacher[0].weight * model[0].mask, teacher[0].bias), atol=1e-6)
    (lent + model(x)).square().sum().backward()
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not model[0].gradient[~model[0].mask].any() and not teacher[0].weight.grad[~model[0].mask].any()


def test_a_parameter_put_in_a_layers_place_is_its_own():
    model = masked(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    cut(model)
    for layer in model:
        layer._parameters["weight"] = nn.Parameter(torch.randn(8, 8))  # as accelerate and others do
    assert not model[0].state_dict()["weight"][~model[0].mask].any()
    model(torch.randn(3, 8)).square().sum().backward()
    for layer in model:
        assert layer.weight is layer._parameters["weight"] and not layer.weight[~layer.mask].any()
        assert not layer.weight.grad[~layer.mask].any() and layer.weight.grad.any()


def test_a_weight_that_is_elsewhere_is_given_as_it_is():
    model = masked(nn.Sequential(nn.Linear(8, 8)))
    model[0]._parameters["weight"] = nn.Parameter(model[0].weight.to("meta"))
    assert model[0].weight.is_meta and not model[0].mask.is_meta


def test_weights_that_lie_in_between_each_other_are_apart():
    whole = torch.randn(8, 12)
    parts = nn.ModuleList([nn.Linear(8, 6, bias=False), nn.Linear(8, 6, bias=False)])
    for part, values in zip(parts, (whole[:, :6], whole[:, 6:]), strict=True):
        part.weight = nn.Parameter(values.t())
    cut(masked(parts))
    assert density(parts) == whole.count_nonzero() / 96


def test_a_layer_is_matched_by_each_of_its_names():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "c": nn.Linear(4, 4)})
    model["b"] = model["a"]
    assert list(masked_layers(masked(model, exclude=["b"]))) == ["c"]


def test_a_type_for_all_leaves_masks_bool():
    class Own(nn.Linear):
        def _apply(self, fn):  # as it was before PyTorch 2.1
            return super()._apply(fn)

    model = masked(nn.Sequential(nn.Linear(8, 8), Own(8, 8)))
    cut(model)
    before = density(model)
    model.type(torch.float64)
    assert model[0].mask.dtype == torch.bool and model[0].weight.dtype == torch.float64 and density(model) == before


def test_a_mask_is_bool_and_is_on_where_memory_is_given_to_weights():
    with torch.device("meta"):
        model = masked(nn.Sequential(nn.Linear(8, 8)))
    model.to_empty(device="cpu")
    assert density(model) == 1
    state = model.state_dict() | {"0.mask": torch.full((8, 8), 255, dtype=torch.uint8), "0.weight": torch.ones(8, 8)}
    model.load_state_dict(state, assign=True)
    assert model[0].weight.eq(1).all() and model[0].mask.dtype == torch.bool
    model[0].mask = torch.ones(8, 8)
    with pytest.raises(TypeError, match="the mask of a MaskedLinear must be bool, got torch.float32"):
        model(torch.ones(1, 8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Initializing zero-element")
def test_empty_weights_and_scripted_parts_are_left_alone():
    with pytest.warns(UserWarning, match="without a mask: 1.weight"):
        model = masked(nn.Sequential(nn.Linear(4, 3), torch.jit.script(nn.Linear(3, 2)), nn.Linear(0, 2)))
    assert list(masked_layers(model)) == ["0"]


def test_one_compiled_graph_sees_the_present_mask():
    model = masked(Net().eval())
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = images()
    for share in (0.0, 0.5, 0.5):
        cut(model, share)
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
    compiled(x).sum().backward()
    assert len(graphs) == 1
    for layer in masked_layers(model).values():
        assert not layer.gradient[~layer.mask].any() and layer.gradient[layer.mask].any()


def test_transforms_of_torch_func_pass_the_mask():
    model = masked(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    cut(model)
    values = {name: value.detach() for name, value in model.named_parameters()}
    x = torch.randn(5, 4)
    gradients = torch.func.grad(lambda values: torch.func.functional_call(model, values, (x,)).square().sum())(values)
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-6)
