"""Dead neurons of networks with branches: what is left computes the same, and what cannot be told apart is named."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruning.deploy.dead_neurons import remove_dead_neurons
from pruning.masks import masked, masked_layers, unmasked
from pruning.study.vision import models

SHAPE = (3, 32, 32)


def pruned(model: nn.Module, density: float, dead: float, last: str) -> nn.Module:
    """A masked copy with weights cut at random, dead filters in all layers but the last and trained-like BatchNorm."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 2, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.uniform_(-1, 1, generator=generator)
    model = masked(copy.deepcopy(model)).eval()
    for name, layer in masked_layers(model).items():
        filters = torch.rand(len(layer.mask), generator=generator) >= (0 if name == last else dead)
        kept = torch.rand(layer.mask.shape, generator=generator) < max(density, 2 / layer.mask[0].numel())
        layer.prune(kept & filters.view(-1, *[1] * (kept.dim() - 1)))
    return model


@torch.no_grad()
def check(model: nn.Module, shape: tuple = SHAPE) -> nn.Module:
    before = copy.deepcopy(model.state_dict())
    small = remove_dead_neurons(model, shape)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = copy.deepcopy(model).double().eval()(x)
    found = copy.deepcopy(small).double().eval()(x)
    scale = (expected - expected.mean(0)).abs().max()  # what the images make of the outputs, constants apart
    assert scale > 0 and (found - expected).abs().max() < 1e-5 * max(scale, expected.abs().max())
    for name, layer in masked_layers(small).items():
        assert torch.equal(layer.mask, layer.weight != 0), name
    return small


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "last", "most"), [("resnet18", "fc", 0.9), ("mobilenet_v2", "classifier.1", 0.9)])
def test_torchvisions_networks_get_narrower_and_compute_the_same(name, last, most):
    torch.manual_seed(0)
    model = pruned(getattr(models, name)(num_classes=10), density=0.04, dead=0.4, last=last)
    small = check(model)
    assert type(small) is type(model) and small.training == model.training
    assert parameters(small) < most * parameters(model)


class Block(nn.Module):
    """A residual block with an expansion, a depthwise convolution and squeeze and excitation."""

    def __init__(self, channels: int, wide: int):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish())
        self.depth = nn.Sequential(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide))
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 4, 1), nn.ReLU(), nn.Conv2d(4, wide, 1))
        self.project = nn.Conv2d(wide, channels, 1)

    def forward(self, x):
        inner = F.relu6(self.depth(self.expand(x)))
        return x + self.project(inner * torch.sigmoid(self.squeeze(inner)))


class Branching(nn.Module):
    """Residual blocks, then branches of its own that are joined, as in a U-Net or DenseNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect")
        self.blocks = nn.Sequential(Block(8, 12), Block(8, 16))
        self.down = nn.Conv2d(8, 10, 3, stride=2, padding="valid", groups=2)
        self.up = nn.ConvTranspose2d(10, 6, 4, stride=2)
        self.joined = nn.Conv2d(14, 9, 3, padding="same")
        self.head = nn.Linear(9, 5)

    def forward(self, x):
        first = self.blocks(F.relu(self.stem(x)))
        second = F.relu(self.up(F.relu(self.down(first))))
        joined = F.relu(self.joined(torch.cat([first, F.interpolate(second, size=first.shape[2:])], 1)))
        return self.head(F.dropout(joined, training=self.training).mean((2, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_branches_of_many_kinds(seed):
    torch.manual_seed(seed)
    model = pruned(Branching(), density=0.35, dead=0.3, last="head")
    small = check(model)
    assert parameters(check(small)) == parameters(small) < parameters(model)
    assert check(unmasked(copy.deepcopy(model))).stem.weight.shape == small.stem.weight.shape


def test_a_constant_passes_batchnorm_and_is_folded_where_padding_does_not_spoil_it():
    def network(padding: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(),
            nn.Conv2d(3, 2, 3, padding=padding, bias=False), nn.Flatten(), nn.Linear(2 * (4 + 2 * padding) ** 2, 2),
        )  # fmt: skip

    for padding, shift, left in ((0, 3.0, 2), (1, 3.0, 3), (1, -3.0, 2)):
        torch.manual_seed(0)
        model = masked(network(padding))
        with torch.no_grad():
            model[0].prune(torch.arange(3).ne(1).view(3, 1, 1, 1).expand(3, 1, 3, 3))
            model[1].running_mean[1], model[1].running_var[1], model[1].weight[1], model[1].bias[1] = 0.5, 4, 2, shift
        small = check(model.eval(), (1, 8, 8))
        assert small[0].out_channels == small[1].num_features == small[3].in_channels == left
        if (padding, shift) == (0, 3.0):  # beta - mean * gamma / sqrt(var + eps), through each weight of the kernel
            constant = 3.0 - 0.5 * 2 / (4 + model[1].eps) ** 0.5
            assert torch.allclose(small[3].bias, constant * model[3].weight[:, 1].sum((1, 2)), atol=1e-6)
        else:
            assert small[3].bias is None


def test_a_channel_of_a_residual_sum_goes_only_where_nothing_reads_it():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(a, 4, 1) for a in (1, 4, 4))

        def forward(self, x):
            x = self.first(x)
            return self.third((x + self.second(x)).relu()).mean((2, 3))

    torch.manual_seed(0)
    model = masked(Residual())
    keep = torch.ones(4, 4, 1, 1, dtype=torch.bool)
    keep[:, 2] = False
    model.third.prune(keep)  # second reads channel 2 still
    assert check(model, (1, 5, 5)).first.out_channels == 4
    model.second.prune(keep)
    small = check(model, (1, 5, 5))
    assert (small.first.out_channels, small.second.out_channels, small.third.in_channels) == (3, 3, 3)
    model = masked(Residual())
    model.first.prune(~keep[0].view(4, 1, 1, 1) | (torch.arange(4) < 3).view(4, 1, 1, 1))
    assert check(model, (1, 5, 5)).first.out_channels == 4  # the other summand is alive


def test_a_size_written_in_the_code_keeps_its_channels():
    class Tutorial(nn.Module):
        def __init__(self, *sizes):
            super().__init__()
            self.sizes, self.conv, self.fc = sizes, nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)

        def forward(self, x):
            x = torch.relu(self.conv(x))
            return self.fc(x.view(*(self.sizes or (x.size(0), -1))))

    for sizes, left in (((-1, 144), 4), ((), 3)):
        torch.manual_seed(0)
        model = masked(Tutorial(*sizes))
        model.conv.prune(torch.arange(4).ne(1).view(4, 1, 1, 1).expand(4, 1, 3, 3))
        assert check(model, (1, 8, 8)).conv.out_channels == left


class Calls(nn.Module):
    """Calls a function on its layers' outputs, in a module of that name."""

    def __init__(self, function, *layers):
        super().__init__()
        self.inner, self.function = nn.Sequential(*layers), function

    def forward(self, x):
        return self.function(self.inner(x))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Linear(36, 36))
    model[2].weight = model[1].weight
    return model


CONV = nn.Conv2d(1, 4, 3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(CONV, nn.GroupNorm(2, 4)), r"layer '1' \(GroupNorm\) is not known"),
        (nn.Sequential(nn.Linear(6, 3)), r"layer '0' \(Linear\) has an input of 4 dimensions"),
        (nn.Sequential(CONV, nn.Flatten(2)), r"layer '1' \(Flatten\) must flatten all but the batch"),
        (nn.Sequential(CONV, nn.Conv2d(3, 4, 3)), r"layer '1' \(Conv2d\) does not fit what arrives, 4x4x4"),
        (nn.Sequential(CONV, nn.Conv2d(4, 4, 5)), r"layer '1' \(Conv2d\) cannot be run for an image of this shape"),
        (nn.Sequential(CONV, nn.BatchNorm2d(4, track_running_stats=False)), r"layer '1' .* no running statistics"),
        (nn.Sequential(nn.Conv2d(1, 1, 1), *2 * [nn.Conv2d(1, 1, 3)]), "layer '1' .* is used at two places"),
        (nn.Sequential(CONV, nn.ConvTranspose2d(4, 4, 2, groups=2)), r"layer '1' .* must not have groups"),
        (nn.Sequential(Calls(lambda x: x.transpose(1, 2), CONV)), r"'transpose' in layer '0' \(Calls\) is not known"),
        (Calls(lambda x: x.mean(1), CONV), r"'mean' in the model mixes channels"),
        (Calls(lambda x: torch.cat([x, x]), CONV), r"'cat' in the model is not known"),
        (Calls(lambda x: x if x.sum() > 0 else -x, CONV), "cannot be traced by torch.fx"),
        (tied(), r"layer '2' \(Linear\) has the weight of another layer"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 3))),
            r"layer '0' .* has a weight that something else computes",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_narrowed_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        remove_dead_neurons(model, (1, 6, 6))


class Helped(nn.Module):
    """Has a second head in training, which reads what ``first`` or what the image gives, and maybe a target."""

    def __init__(self, reads: str, needs_target: bool = False):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 3)
        self.helper = nn.Sequential(nn.Dropout(), nn.Conv2d(4 if reads == "first" else 1, 2, 1))
        self.reads, self.needs_target = reads, needs_target

    def forward(self, x, target=None):
        first = self.first(x)
        out = self.second(first).mean((2, 3))
        if self.training:
            help = self.helper(first if self.reads == "first" else x).mean()
            return out, help + (target.sum() if self.needs_target else 0)
        return out


def test_a_branch_used_in_training_only_is_named_where_it_no_longer_fits():
    keep = torch.arange(4).ne(1).view(4, 1, 1, 1).expand(4, 1, 3, 3)

    def network(*settings) -> nn.Module:
        torch.manual_seed(0)
        model = masked(Helped(*settings))
        model.first.prune(keep)
        return model

    with pytest.raises(ValueError, match=r"used in training only, among 'helper\.1', no longer fits"):
        remove_dead_neurons(network("first"), (1, 6, 6))
    state = torch.get_rng_state()
    network("first")
    assert torch.equal(torch.get_rng_state(), state)  # dropout in the check leaves no trace
    small = check(network("image"), (1, 6, 6))
    assert small.first.out_channels == 3 and len(small.train()(torch.ones(2, 1, 6, 6))) == 2
    unpruned = masked(Helped("first"))
    assert check(unpruned, (1, 6, 6)).first.out_channels == 4  # nothing got narrower
    check(network("first", True), (1, 6, 6))  # cannot be tried without a target


def test_what_tracing_cannot_see_is_noticed():
    model = masked(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2)))
    model[0].register_forward_hook(lambda layer, inputs, output: output + 1)
    model[0].prune(torch.arange(2).ne(1).view(2, 1, 1, 1).expand(2, 1, 3, 3))
    with pytest.raises(RuntimeError, match="the outputs would change by"):
        remove_dead_neurons(model, (1, 6, 6))
