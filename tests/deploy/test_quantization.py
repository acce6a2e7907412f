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
