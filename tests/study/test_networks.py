"""Networks of one's own: found beside a study file, counted by running them, trained through the same loop."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Stop, numbers
from torch import nn

from pruning.masks import masked, masked_layers
from pruning.notation import layers, lenet
from pruning.study import runner
from pruning.study.benchmarks import Benchmark
from pruning.study.config import StudyError
from pruning.study.datasets import load as load_data
from pruning.study.networks import OwnNetwork, counted, fitting
from pruning.study.studies import load

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
title: A network of one's own
benchmarks:
  small:
    dataset: {npz: digits.npz}
    network: own_networks:small
    requirements: [0.5]
methods: [iterative, adaptive]
seeds: [0]
settings: {batch: 32, warmup: 20, averaging: 0.9, interval: 10, patience: 4, budget: 80, ramp: 40}
"""
MODULE = """
from torch import nn
from own_parts import Residual

def small(shape, classes):
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), Residual(4),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * shape[1] * shape[2], classes),
    )

def other(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(shape[1] * shape[2], classes + 1))
def broken(shape, classes): return nn.Linear(3, classes)
def text(shape, classes): return "a network"
number = 3
"""
UP = """
def up(shape, classes):
    return nn.Sequential(nn.ConvTranspose2d(1, 1, 2), nn.Flatten(), nn.Linear(81, classes))
"""
PARTS = """
from torch import nn

class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, images):
        return (images + self.norm(self.conv(images))).relu()
"""


@pytest.fixture
def place(tmp_path, results, monkeypatch):
    """A folder with a study file, its network's modules, and its data: scikit-learn's digits as they are, 8 x 8."""
    from sklearn.datasets import load_digits

    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "prepared"))
    found = load_digits()
    images, labels = (found.images * 15).astype(np.uint8), found.target
    names = ("train_images", "train_labels", "test_images", "test_labels")
    np.savez(
        tmp_path / "digits.npz", **dict(zip(names, (images[:600], labels[:600], images[600:800], labels[600:800])))
    )
    for name, text in (("own.yaml", STUDY), ("own_networks.py", MODULE), ("own_parts.py", PARTS)):
        (tmp_path / name).write_text(text)
    forget()
    yield tmp_path
    forget()


def forget():
    for name in ("own_networks", "own_parts"):
        sys.modules.pop(name, None)


def study_of(place, old="", new=""):
    assert old in STUDY
    (place / "own.yaml").write_text(STUDY.replace(old, new))
    return load(place / "own.yaml")


@pytest.mark.parametrize("notation", ["28x28-6c5-16c5-120-84-10", "3x32x32-6c3-16c3-36c4-240-120-84-10", "28x28-30-10"])
def test_running_a_network_once_counts_what_its_notation_says(notation):
    expected = layers(notation)
    model = masked(lenet(notation)).train()
    shape = (3, 32, 32) if notation.startswith("3x") else (1, 28, 28)
    assert counted(model, shape) == expected and model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("name", "count"), [("resnet18", 21), ("resnet50", 54)])
def test_torchvisions_networks_have_the_operations_that_torchvision_tells(name, count):
    from pruning.study.vision import models

    with torch.device("meta"):  # shapes are enough
        found = counted(masked(getattr(models, name)()), (3, 224, 224))
    published = models.get_model_weights(name).DEFAULT.meta["_ops"]  # in thousands of millions
    assert len(found) == count and round(sum(layer.macs for layer in found) / 1e9, 3) == published


class Several(nn.Module):
    """Layers of other kinds, one of them used twice, one grouped."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Conv2d(2, 2, 3, padding=1)
        self.grouped = nn.Conv2d(2, 6, 3, stride=2, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.tokens = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.GRU(8, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, images):
        found = self.up(self.grouped(self.twice(self.twice(images))))
        tokens = self.tokens(found.flatten(2).transpose(1, 2))
        tokens, _ = self.attention(query=tokens, key=tokens, value=tokens)
        return self.head(self.recurrent(tokens)[0][:, -1])


def test_layers_of_other_kinds_are_counted_by_how_often_they_are_used():
    # 10 x 8 images: 4 x 3 positions behind the grouped convolution, 8 x 6 = 48 tokens behind the transposed one.
    found = {layer.name: layer for layer in counted(masked(Several()), (2, 10, 8))}
    positions = {name: layer.output_positions for name, layer in found.items()}
    assert positions == {
        "twice": 2 * 80, "grouped": 12, "up": 12, "tokens": 48, "attention.in_proj_weight": 48,
        "attention.out_proj": 48, "recurrent.weight_ih_l0": 48, "recurrent.weight_hh_l0": 48, "head": 1,
    }  # fmt: skip
    assert found["grouped"].macs == 6 * 9 * 12 and found["up"].macs == 6 * 4 * 4 * 12
    assert [layer.kind for layer in found.values()] == ["conv"] * 3 + ["linear"] * 6
    assert found["grouped"].biases == 0 and found["head"].biases == 3


def test_a_layer_that_takes_no_part_or_cannot_be_counted_is_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, images):
            return self.used(images.flatten(1))

    with pytest.raises(StudyError, match="layer 'idle' takes no part in classifying an image"):
        counted(masked(Idle()), (1, 2, 2))


def test_the_own_network_of_the_examples_has_shortcuts_and_statistics():
    made_of = Benchmark(dataset="digits", network="networks:small_resnet", place=str(ROOT / "examples"))
    names = [layer.name for layer in OwnNetwork(made_of, (1, 28, 28), 10).layers()]
    assert names == ["0", "3.body.0", "3.body.3", "5", "8.body.0", "8.body.3", "12"]


@pytest.mark.usefixtures("one_thread")
def test_a_network_with_normalisation_dropout_and_shortcut_resumes_bit_for_bit(place, monkeypatch):
    study = study_of(place)
    whole = [runner.run(run) for run in study.runs]
    assert all(record["result"]["reached"] and record["result"]["density"] < 0.9 for record in whole)
    parts = whole[0]["layers"]
    assert [(part["name"], part["positions"]) for part in parts] == [("0", 64), ("3.conv", 64), ("6", 1)]
    assert whole[0]["input"] == [1, 8, 8]
    monkeypatch.setenv("PRUNING_RESULTS", str(place / "again"))

    def stop(event, training):
        if event.iteration >= 40:
            raise Stop

    for run, first in zip(study.runs, whole):
        with pytest.raises(Stop):
            runner.run(run, progress=stop, every=0)
        assert numbers(runner.run(run)) == numbers(first)


@pytest.mark.usefixtures("one_thread")
def test_the_average_has_the_statistics_of_what_it_saw(place):
    run = study_of(place).runs[0]
    data = load_data(run.dataset)
    network = fitting("small", run.made_of, data.shape, len(data.classes))
    seen = []
    runner.run(run, progress=lambda event, training: seen.append(training))
    averaged, live = (model.state_dict() for model in (seen[-1].average, seen[-1].model))
    assert averaged["1.num_batches_tracked"] == live["1.num_batches_tracked"] > 0
    first = network.build().state_dict()["1.running_mean"]
    assert not torch.equal(averaged["1.running_mean"], first)
    torch.testing.assert_close(averaged["1.running_mean"], live["1.running_mean"], rtol=0.5, atol=0.2)


def test_a_key_follows_from_the_source_of_the_networks_module(place):
    run = study_of(place).runs[0]
    key, dense = run.key, run.dense_key
    assert "source" in run.parameters and run.parameters["dataset"] == "digits"
    (place / "own_networks.py").write_text(MODULE.replace("Dropout(0.2)", "Dropout(0.3)"))
    assert run.key != key and run.dense_key != dense
    model = fitting("small", run.made_of, (1, 8, 8), 10).build()
    assert model[5].p == 0.3, "a module that has changed is read again"
    elsewhere = place / "moved"
    elsewhere.mkdir()
    for name in ("own.yaml", "own_networks.py"):
        (elsewhere / name).write_text((place / name).read_text())
    assert load(elsewhere / "own.yaml").runs[0].key == run.key, "where the files lie changes no number"
    with pytest.raises(StudyError, match="another module is called 'own_networks' here"):
        fitting("small", load(elsewhere / "own.yaml").runs[0].made_of, (1, 8, 8), 10)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("nowhere:small", "network nowhere:small: there is no module 'nowhere' beside the study file .*nowhere.py"),
        ("own_networks:large", "network own_networks:large: .*own_networks.py has no function 'large'"),
        ("own_networks:number", "own_networks.py has no function 'number'"),
        ("own_networks:text", "network own_networks:text returned str, not a torch module"),
        ("own_networks:other", r"makes of two images a tensor of shape \(2, 11\), but digits has .*\(2, 10\)"),
        (
            "own_networks:broken",
            "own_networks:broken fails on two images, where .* 10 classes: RuntimeError: mat1",
        ),
        ("28x28-6c5-10", "takes images of 1x28x28 and has 10 outputs, but digits has .* 10 classes: write 8x8-6c5-10"),
        ("8x8-20-7", "has 7 outputs, but digits has images of 1x8x8 and 10 classes: write 8x8-20-10"),
    ],
)
def test_a_network_that_does_not_fit_is_one_error_before_any_training(place, results, network, said):
    study = study_of(place, "own_networks:small", network)
    with pytest.raises(StudyError, match=f"(?s){said}"):
        runner.run_all(study.runs)
    assert not list(results.glob("**/*.checkpoint")) and not list(results.glob("**/*.json"))


def test_a_module_that_fails_is_named(place):
    (place / "own_networks.py").write_text("import nothing_of_this_name")
    run = study_of(place).runs[0]
    with pytest.raises(StudyError, match="own_networks.py cannot be imported: ModuleNotFoundError: No module"):
        fitting("small", run.made_of, (1, 8, 8), 10)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    network: own_networks:small\n", "", "benchmarks.small.network: the key is missing"),
        ("    dataset: {npz: digits.npz}\n", "", "benchmarks.small.dataset: the key is missing"),
        ("{npz: digits.npz}", "{npy: digits.npz}", "npy"),
        ("{npz: digits.npz}", "3", "benchmarks.small.dataset"),
        ("own_networks:small", "own networks:small", "package.module:function"),
        ("own_networks:small", "8x8-6c9-10", "expected a kernel that fits"),
        (
            "  small:",
            "  mnist-2c:",
            "'mnist-2c' is a known benchmark: one with a dataset",
        ),
        ("  small:", "  small one:", "letters, digits"),
    ],
)
def test_a_benchmark_of_ones_own_is_checked_strictly(place, old, new, said):
    with pytest.raises(StudyError, match=r"own\.yaml: benchmarks") as caught:
        study_of(place, old, new)
    assert said in str(caught.value)


def test_a_study_file_of_a_name_that_the_project_has_is_refused(place):
    (place / "digits.yaml").write_text(STUDY)
    with pytest.raises(StudyError, match="the project has a study 'digits' in studies/: give the file another name"):
        load(place / "digits.yaml")


def test_a_study_is_found_from_the_current_folder_and_from_the_projects(place, monkeypatch):
    monkeypatch.chdir(place)
    assert load("own.yaml").file == place / "own.yaml"
    monkeypatch.setenv("PRUNING_ROOT", str(ROOT))  # as notebooks, which run in a folder of the project
    assert load("examples/own-network.yaml").file == ROOT / "examples" / "own-network.yaml"


def test_a_run_finds_its_network_in_another_process_too(place):
    run = study_of(place).runs[0]
    again = pickle.loads(pickle.dumps(run))  # as a worker gets it
    assert again == run and again.key == run.key and again.made_of.place == str(place)


@pytest.mark.usefixtures("one_thread")
def test_a_tradeoff_study_takes_a_network_of_ones_own(place):
    plan = "plan: {ratios: [2], dense: 30, stage: 10, rounds: 2, densities: [0.5]}"
    text = STUDY.replace("    requirements: [0.5]\n", "").replace(
        "methods: [iterative, adaptive]", f"methods: [oneshot]\n{plan}"
    )
    (place / "own.yaml").write_text(text.replace(", patience: 4, budget: 80, ramp: 40", ""))
    curve, scan = (runner.run(run) for run in load(place / "own.yaml").runs)
    assert [point["ratio"] for point in curve["points"]] == [2] and curve["points"][0]["compression"] >= 1.99
    assert list(dict.fromkeys(point["layer"] for point in scan["points"])) == ["0", "3.conv", "6"]
    (place / "own.yaml").write_text((place / "own.yaml").read_text().replace("[oneshot]", "[small]"))
    with pytest.raises(StudyError, match="network: 'small' scales a network in the report's notation"):
        load(place / "own.yaml")


@pytest.mark.usefixtures("one_thread")
def test_hashed_nets_name_a_layer_that_they_do_not_have(place):
    with (place / "own_networks.py").open("a") as module:
        module.write(UP)
    (run,) = study_of(place, "own_networks:small", "own_networks:up").select(methods=["hashed"])
    with pytest.raises(StudyError, match="HashedNets have linear and 2-d convolutional layers alone: '0' is another"):
        runner.run(run)


def test_the_size_of_images_may_be_a_list(place):
    study = study_of(place, "{npz: digits.npz}", "{folder: ~/flowers, size: [16, 12]}")
    data = study.runs[0].dataset
    assert data.height_width == (16, 12) and data.label == "flowers at 16x12"
    assert data.folder == str(Path("~/flowers").expanduser())


def test_masks_of_a_network_of_ones_own_belong_to_its_layers(place):
    network = fitting("small", study_of(place).runs[0].made_of, (1, 8, 8), 10)
    assert list(masked_layers(masked(network.build()))) == [layer.name for layer in network.layers()]
