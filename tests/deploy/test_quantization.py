import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import default_dynamic_qconfig, default_qconfig, prepare, quantize_dynamic

from pruning.deploy.quantization import fine_tune, share_weights
from pruning.deploy.storage import decode_state, encode
from pruning.masks import masked, masked_layers, unmasked
from pruning.notation import lenet
from pruning.study.datasets import load

pytestmark = pytest.mark.arithmetic

LENET = "28x28-6c5-16c5-120-84-10"


def test_shared_weights_are_the_means_of_their_clusters():
    model = masked(nn.Sequential(nn.Linear(6, 1)))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 1.0, 2.0, 8.0, 10.0, 5.0]]))
    model[0].prune(model[0].weight != 5)
    small = share_weights(model, 2)
    assert small[0].weight.tolist() == [[1, 1, 1, 9, 9, 0]]
    assert model[0].weight[0, 4] == 10
    # of three that begin at 0, 5 and 10, none comes nearest to the middle one: it stays unused
    assert share_weights(model, 3)[0].weight.tolist() == [[1, 1, 1, 9, 9, 0]]
    with torch.no_grad():
        model[0].weight[0, 5] = 6
    model[0].set_mask(torch.ones(1, 6, dtype=torch.bool))
    assert share_weights(model, 3)[0].weight.tolist() == [[1, 1, 1, 9, 9, 6]]


def test_sharing_again_changes_nothing():
    torch.manual_seed(0)
    model = masked(lenet(LENET))
    for layer in masked_layers(model).values():
        layer.prune(torch.rand_like(layer.weight) < 0.2)
    small = share_weights(model, 16)
    again = share_weights(small, 16).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in small.state_dict().items())
    assert all(len(layer.weight[layer.mask].unique()) <= 16 for layer in masked_layers(small).values())


@pytest.mark.slow
def test_tuning_repairs_what_sharing_broke_and_keeps_the_sharing(digits):
    train = load("digits").train

    def loss(model, batch):
        return F.cross_entropy(model(train.images[batch]), train.labels[batch])

    small = share_weights(digits, 3)
    everything = torch.arange(len(train.images))
    before, masks = (
        loss(small, everything).item(),
        {name: layer.mask.clone() for name, layer in masked_layers(small).items()},
    )
    tuned = fine_tune(small, loss, [everything[part::8] for part in range(8)] * 2)
    assert tuned is small and loss(small, everything).item() < before
    again = decode_state(encode(small, "entropy", LENET))
    assert all(torch.equal(tensor, again[name]) for name, tensor in small.state_dict().items())
    for name, layer in masked_layers(small).items():
        assert torch.equal(layer.mask, masks[name]) and len(layer.weight[layer.mask].unique()) <= 3


def test_the_gradient_of_a_shared_weight_is_the_sum_over_its_synapses():
    model = masked(nn.Sequential(nn.Linear(3, 1, bias=False)))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0, 2.0]]))
    # the gradients +3 and -1 add up to +2: the shared weight falls, though Adam knows signs alone
    fine_tune(model, lambda model, x: model(x).sum(), [torch.tensor([[3.0, -1.0, -1.0]])], rate=0.25)
    assert model[0].weight.tolist() == [[0.75, 0.75, 2.25]]


def test_a_model_that_cannot_be_quantized_is_refused():
    plain = nn.Sequential(nn.Linear(300, 2))
    for quantize in (share_weights, lambda model: fine_tune(model, lambda model, batch: model(batch).sum(), [])):
        with pytest.raises(ValueError, match="no masked layer: call masked"):
            quantize(plain)
    with pytest.raises(ValueError, match="600 distinct weights: call share_weights"):
        fine_tune(masked(plain), lambda model, batch: model(batch).sum(), [])
    for clusters in (0, 257):
        with pytest.raises(ValueError, match="1 to 256"):
            share_weights(plain, clusters)


class Kernel(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(12, 12))

    def forward(self, x):
        return x @ self.kernel


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("layer", "include", "names"),
    [
        (nn.LSTM(12, 5), [nn.LSTM], ["weight_ih_l0", "weight_hh_l0"]),
        (nn.MultiheadAttention(12, 2), [nn.MultiheadAttention, nn.Linear], ["in_proj_weight", "out_proj"]),
        (nn.Embedding(12, 12), [nn.Embedding], [""]),
        (Kernel(), ["kernel"], ["kernel"]),
        (tied(), [nn.Linear], ["0"]),
    ],
)
def test_whatever_has_a_mask_is_shared_and_tuned(layer, include, names):
    model = masked(layer, include=include)
    assert list(masked_layers(model)) == names
    for weight in masked_layers(model).values():
        weight.prune(torch.rand(weight.mask.shape) < 0.7)
    small = share_weights(model, 4)

    def loss(model, batch):
        inputs = {nn.Embedding: (torch.arange(12),), nn.MultiheadAttention: 3 * (batch,)}
        output = model(*next((given for kind, given in inputs.items() if isinstance(model, kind)), (batch,)))
        return (output[0] if isinstance(output, tuple) else output).square().sum()

    before = {name: weight.weight.detach().clone() for name, weight in masked_layers(small).items()}
    fine_tune(small, loss, [torch.randn(3, 12)] * 2)
    for name, weight in masked_layers(small).items():
        assert len(weight.weight[weight.mask].unique()) <= 4 < len(masked_layers(model)[name].weight.unique())
        assert torch.equal(weight.weight != 0, weight.mask) and not torch.equal(weight.weight, before[name])
    assert all(torch.equal(tensor, tensor.half().float()) for tensor in small.parameters())


def test_what_float16_cannot_hold_keeps_its_precision():
    torch.manual_seed(0)
    for scale in (1e6, 1e-6, 1e-9):
        model = masked(nn.Linear(8, 8))
        with torch.no_grad():
            model.weight.mul_(scale)
            model.bias.mul_(scale)
        small = share_weights(model, 4)
        assert small.weight.isfinite().all() and small.weight.all() and len(small.weight.unique()) == 4
        assert torch.allclose(small.weight, model.weight, rtol=0, atol=float(model.weight.detach().abs().max()) / 3)
        assert torch.equal(small.bias, model.bias)
        for encoding in ("codebook", "entropy"):
            assert torch.equal(decode_state(encode(small, encoding))["weight"], small.weight)
    model = masked(nn.Linear(2, 2))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e-9, 1 / 3], [0.5, 0.5]]))
        model.bias.copy_(torch.tensor([1e-9, 1 / 3]))
    small = share_weights(model, 4)
    assert torch.equal(small.weight, model.weight)  # a weight of zero would still count as significant
    assert torch.equal(small.bias, model.bias.half().float())


def test_weights_that_are_not_finite_are_named():
    for name in ("0.weight", "2.bias"):
        model = masked(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))
        for value in (float("nan"), float("-inf")):
            with torch.no_grad():
                model.get_parameter(name).view(-1)[3] = value
            for quantize in (share_weights, lambda model: fine_tune(model, lambda model, batch: 0, [])):
                with pytest.raises(ValueError, match=rf"{name}: 1 of (64|8) values are NaN or infinite"):
                    quantize(model)
    model = masked(nn.Sequential(nn.Linear(8, 8)))
    with torch.no_grad():
        model[0].parameter[0, 0] = float("nan")
    model[0].set_mask(~torch.eye(8, dtype=torch.bool))  # what is pruned does not matter
    small = share_weights(model, 4)
    with pytest.raises(ValueError, match=r"0.weight: 56 of 64 values are NaN or infinite"):
        fine_tune(small, lambda model, batch: model(batch).sum() * float("nan"), [torch.ones(1, 8)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_pytorchs_own_quantization_takes_an_unmasked_copy():
    torch.manual_seed(0)
    model = masked(nn.Sequential(nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 3)))
    for layer in masked_layers(model).values():
        layer.prune(torch.rand_like(layer.weight) < 0.4)
    small = torch.ao.quantization.quantize_dynamic(unmasked(copy.deepcopy(model)), {nn.Linear}, torch.qint8)
    images = torch.randn(50, 20)
    assert torch.allclose(small(images), model(images), atol=0.05)
    for name, layer in masked_layers(model).items():
        weight = small.get_submodule(name).weight().int_repr()
        assert weight.dtype == torch.int8 and not weight[~layer.mask].any()


def by_name(model):
    quantize_dynamic(model, {"3": default_dynamic_qconfig})


def static(model):
    model = nn.Sequential(model)
    model.qconfig = default_qconfig
    prepare(model.eval())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize", "ignore:Please use quant_min")
@pytest.mark.parametrize("quantize", [lambda model: quantize_dynamic(model, {nn.Linear}), by_name, static])
def test_pytorchs_quantization_of_a_masked_model_is_refused_by_name(quantize):
    model = masked(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)))
    model[1].prune(torch.eye(8, 16) == 0)
    with pytest.raises(RuntimeError, match=r"passes over masked layers: give it unmasked\(copy.deepcopy\(model\)\)"):
        quantize(model)
    quantize(unmasked(copy.deepcopy(model)))
