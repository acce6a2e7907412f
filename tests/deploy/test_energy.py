import numpy as np
import pytest
import torch
from torch import nn

from pruning.deploy.encodings import relative_codes
from pruning.deploy.energy import (
    ARITHMETIC_PJ,
    DRAM_PJ,
    FORMS,
    Load,
    at_density,
    classify,
    layer_energies,
    loads_of,
    sram_pj,
)
from pruning.masks import masked
from pruning.notation import input_shape, lenet

LENET = "28x28-6c5-16c5-120-84-10"


def linear() -> list[Load]:
    model = masked(nn.Sequential(nn.Linear(4, 2)))
    # gaps 0 and 4: with 2 bits the codes 0, filler (3 places), 1
    model[0].set_mask(torch.tensor([[True, False, False, False], [False, True, False, False]]))
    return loads_of(model, (4,))


def test_han_2015_a_billion_connections_at_twenty_hertz_take_12_8_watts_of_dram():
    watts = 20 * 1e9 * DRAM_PJ * 1e-12
    assert watts == pytest.approx(12.8)


def test_constants_are_those_of_the_sources():
    assert ARITHMETIC_PJ == {"float32": (3.7, 0.9), "int32": (3.1, 0.1), "int8": (0.2, 0.03)}
    assert [sram_pj(size) for size in (1, 8192, 32768, 1 << 20, 1 << 30)] == pytest.approx([5, 5, 10, 50, 50])
    assert sram_pj(16384) == pytest.approx((10 * 20) ** 0.5 / 2)


def test_a_dense_linear_layer_by_hand():
    energy = classify(linear(), "dense")
    assert energy.macs == 8
    assert energy.weight_bytes == 4 * (8 + 2)
    # 8 weights, 2 biases, 4 inputs, 2 outputs: with no memory on chip all of it
    assert (energy.dram_words, energy.dram_pj) == (16, 16 * 640)
    # a weight and an input for each product, 2 biases, 2 outputs
    assert (energy.sram_words, energy.sram_pj) == (8 + 8 + 2 + 2, 100)
    # product, sum and the accumulator's register
    assert energy.arithmetic_pj == pytest.approx(8 * (3.7 + 0.9 + 1))
    assert energy.pj == pytest.approx(16 * 640 + 100 + 44.8)


def test_a_pruned_and_a_compressed_linear_layer_by_hand():
    (load,) = linear()
    # 1 bit: 1 + 5 codes are 6 bits; 2 bits: 1 + 2 codes are 6 bits too; the narrower one is taken
    assert (load.significant, load.index_bits, load.codes) == (2, 1, 6)
    pruned = classify([load], "pruned")
    assert pruned.weight_bytes == (2 * 32 + 6) / 8 + 8
    assert pruned.dram_words == pytest.approx((2 * 32 + 6) / 32 + 2 + 6)
    assert pruned.sram_words == pytest.approx((2 * 32 + 6) / 32 + 2 + 2 + 2)
    assert pruned.arithmetic_pj == pytest.approx(2 * (3.7 + 0.9 + 1) + 6 * 0.1)
    compressed = classify([load], "compressed", weight_bits=4)
    # 16 shared weights of 16 bits
    assert compressed.weight_bytes == (2 * 4 + 6) / 8 + 8 + 32
    assert compressed.sram_words == pytest.approx((2 * 4 + 6) / 32 + 8 + 2 + 2 + 2)
    assert compressed.arithmetic_pj == pytest.approx(pruned.arithmetic_pj + 2 * 1)


def test_a_convolution_by_hand():
    (load,) = loads_of(nn.Sequential(nn.Conv2d(1, 3, 2)), (1, 3, 4))
    assert load == Load("0", 12, 12, 3, 6, 12, 18, 12, 1)
    energy = classify([load], "dense", on_chip=4 * (12 + 18), sram=2, arithmetic="int8")
    assert energy.macs == 12 * 6
    assert energy.dram_words == 12 + 3  # once, however many positions
    assert energy.sram_pj == 2 * (72 + 72 + 3 + 18)
    assert energy.arithmetic_pj == pytest.approx(72 * (0.2 + 0.03 + 1))


def test_on_chip_memory_holds_activations_first_and_then_what_it_can_of_the_weights():
    loads = linear()  # 24 bytes of activations, 40 of weights and biases
    words = {size: classify(loads, "dense", on_chip=size).dram_words for size in (0, 12, 24, 44, 64, 1000)}
    assert words == {0: 16, 12: 13, 24: 10, 44: 5, 64: 0, 1000: 0}


def test_the_shapes_and_masks_of_a_lenet():
    model = masked(lenet(LENET))
    model.fc1.prune(torch.zeros(120, 256, dtype=torch.bool))
    model.train()
    loads = {load.name: load for load in loads_of(model, input_shape(LENET))}
    assert model.training
    assert [(load.synapses, load.output_positions) for load in loads.values()] == [
        (150, 576),
        (2400, 64),
        (30720, 1),
        (10080, 1),
        (840, 1),
    ]
    # pooled in passing: 6 x 12 x 12, 16 x 4 x 4
    assert [(load.inputs, load.outputs) for load in loads.values()] == [
        (784, 864),
        (864, 256),
        (256, 120),
        (120, 84),
        (84, 10),
    ]
    assert loads["fc1"].significant == loads["fc1"].codes == 0 and loads["fc2"].density == 1
    dense = classify(list(loads.values()), "dense", on_chip=1 << 20)
    assert dense.macs == 150 * 576 + 2400 * 64 + 30720 + 10080 + 840
    assert dense.weight_bytes == 4 * (44190 + 236) and dense.dram_words == 0


def test_the_whole_is_the_sum_of_its_layers_and_pruning_saves():
    generator = torch.Generator().manual_seed(0)
    model = masked(lenet(LENET))
    for layer in (model.conv2, model.fc1, model.fc2, model.fc3):
        layer.prune(torch.rand(layer.weight.shape, generator=generator) < 0.05)
    loads = loads_of(model, input_shape(LENET))
    for size in (0, 4096, 16384, 1 << 20):
        totals = [classify(loads, form, on_chip=size) for form in FORMS]
        for form, total in zip(FORMS, totals):
            layers = layer_energies(loads, form, on_chip=size)
            assert [layer.name for layer in layers] == ["conv1", "conv2", "fc1", "fc2", "fc3"]
            assert total.pj == pytest.approx(sum(layer.pj for layer in layers))
            assert total.dram_pj == pytest.approx(640 * total.dram_words)
        assert totals[0].pj > totals[1].pj > totals[2].pj
    for form in FORMS:
        words = [classify(loads, form, on_chip=size).dram_words for size in range(0, 200_000, 5000)]
        assert words == sorted(words, reverse=True) and words[-1] == 0


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3, 0.9])
def test_indices_of_a_density_are_those_of_random_masks(density):
    keep = np.random.default_rng(0).random((500, 2000)) < density
    width, codes = relative_codes(keep)
    load = at_density(Load("fc", keep.size, keep.size, 0, 1, 1, 1, keep.size, 1), density)
    assert load.index_bits == width
    assert load.codes == pytest.approx(codes, rel=0.01)
    assert load.significant == pytest.approx(keep.sum(), rel=0.01)


def test_a_density_of_one_needs_no_fillers():
    load = at_density(Load("fc", 100, 100, 0, 1, 1, 1, 7, 3), 1.0)
    assert (load.significant, load.codes, load.index_bits) == (100, 100, 1)


def test_wrong_requests_say_what_is_wrong():
    loads = linear()
    with pytest.raises(ValueError, match="'packed'"):
        classify(loads, "packed")
    with pytest.raises(ValueError, match="'float8'"):
        classify(loads, "dense", arithmetic="float8")
    with pytest.raises(ValueError, match="on_chip"):
        classify(loads, "dense", on_chip=-1)
    with pytest.raises(ValueError, match="weight_bits 1 to 8"):
        classify(loads, "compressed", weight_bits=9)
    with pytest.raises(ValueError, match="density of 0"):
        at_density(loads[0], 0)
    with pytest.raises(ValueError, match="no Linear or Conv2d"):
        loads_of(nn.Sequential(nn.ReLU()), (4,))
