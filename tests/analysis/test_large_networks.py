import pytest

from pruning.analysis.large_networks import what_if
from pruning.deploy.energy import classify


@pytest.mark.parametrize(
    ("network", "parameters", "macs"), [("alexnet", 61_100_840, 714_188_480), ("vgg16", 138_357_544, 15_470_264_320)]
)
def test_the_large_networks_have_their_published_size(network, parameters, macs):
    loads = what_if(network, 1.0)
    assert sum(load.synapses + load.biases for load in loads) == parameters
    dense = classify(loads, "dense")
    assert dense.macs == macs
    assert dense.weight_bytes == 4 * parameters
    # all parameters once, and every layer's activations
    assert dense.dram_words == parameters + sum(load.inputs + load.outputs for load in loads)


def test_alexnet_layers_by_hand():
    loads = {load.name: load for load in what_if("alexnet", {"conv": 0.5, "fc": 0.1, "classifier.6": 0.25})}
    first, large, last = loads["features.0"], loads["classifier.1"], loads["classifier.6"]
    assert (first.synapses, first.output_positions, first.inputs) == (64 * 3 * 11 * 11, 55 * 55, 3 * 224 * 224)
    assert large.synapses == 256 * 6 * 6 * 4096
    assert (first.density, large.density, last.density) == pytest.approx((0.5, 0.1, 0.25))
    assert first.macs("pruned") == pytest.approx(64 * 3 * 121 * 55 * 55 / 2)


def test_wrong_requests_say_what_is_wrong():
    with pytest.raises(ValueError, match="'resnet'"):
        what_if("resnet", 0.1)
    with pytest.raises(ValueError, match="fc9"):
        what_if("alexnet", {"fc9": 0.1})
