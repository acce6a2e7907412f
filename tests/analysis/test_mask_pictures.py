"""Masks over the rounds, the paths that they leave, and their pictures."""

import io
import json

import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest
import torch
from torch import nn

from pruning.analysis import figures, masks
from pruning.analysis.figures import masks as mask_figures
from pruning.masks import masked, masked_layers
from pruning.notation import lenet
from pruning.study import runner
from pruning.study.config import StudyError
from pruning.study.paths import root
from pruning.study.studies import load

STUDY = """
title: a few quick runs
benchmarks:
  digits-2c:
    requirements: [0.4]
methods: [iterative, dsd]
seeds: [0]
settings: {batch: 32, warmup: 20, averaging: 0.9, interval: 20, patience: 3, ramp: 60, budget: 160}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of results of a study with its records."""
    place = tmp_path_factory.mktemp("masks")
    (place / "quick.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNING_RESULTS", str(place))
        for each in load(place / "quick.yaml").runs:
            runner.run(each)
    return place


@pytest.fixture
def quick(trained, monkeypatch):
    monkeypatch.setenv("PRUNING_RESULTS", str(trained))
    return load(trained / "quick.yaml").runs


@pytest.fixture
def made_up():
    """Rounds of a small network, as no training made them."""
    dice = np.random.default_rng(0)
    shapes = {"conv1": (6, 1, 5, 5), "conv2": (16, 6, 5, 5), "fc1": (60, 256), "fc2": (10, 60)}
    return masks.Rounds({name: dice.integers(0, 4, shape) for name, shape in shapes.items()}, (0, 100, 200, 400))


@pytest.mark.slow
@pytest.mark.arithmetic
def test_a_run_trained_again_keeps_the_masks_of_every_round_up_to_the_delivered_network(quick, monkeypatch):
    run = quick[0]
    record, rounds = runner.run(run), masks.rounds_of(run)
    assert rounds.count >= 1 and rounds.iterations[0] == 0 and list(rounds.iterations) == sorted(rounds.iterations)
    assert rounds.iterations[1] == record["result"]["iterations_unpruned"]
    assert rounds.densities()[0] == 1 and rounds.densities()[-1] == record["result"]["density"]
    model = masks.delivered(rounds, run.network)
    for part in record["layers"]:
        assert masked_layers(model)[part["name"]].significant == part["significant"]
    monkeypatch.setattr(masks, "train_again", lambda run: pytest.fail("what is kept is not trained again"))
    kept = masks.rounds_of(run)
    assert kept.iterations == rounds.iterations
    assert all((kept.outlived[name] == layer).all() for name, layer in rounds.outlived.items())


@pytest.mark.slow
def test_only_current_rounds_are_read_and_only_short_runs_trained_again(quick, monkeypatch):
    run, asked = quick[0], []
    path = run.place("rounds", ".npz")
    monkeypatch.setattr(masks, "train_again", lambda run: asked.append(run) or masks.Rounds({"fc": np.zeros(3)}, (0,)))
    for content in (b"", b"PK"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        assert masks.rounds_of(run, most=0) is None
        monkeypatch.setenv("PRUNING_TRAIN", "no")
        assert masks.rounds_of(run) is None and not asked
        monkeypatch.delenv("PRUNING_TRAIN")
    assert masks.rounds_of(run).count == 0 and asked == [run]
    assert masks.rounds_of(run).count == 0 and len(asked) == 1
    other = run.model_copy(update={"requirement": 0.41})
    assert masks.rounds_of(other) is None, "no record"
    path.replace(other.place("rounds", ".npz"))
    assert masks.rounds_of(other) is None, "another run's"


@pytest.mark.slow
@pytest.mark.arithmetic
def test_a_method_that_brings_synapses_back_has_no_rounds(quick):
    with pytest.raises(StudyError, match="the method 'dsd' brings synapses back"):
        masks.train_again(quick[1])


@pytest.mark.parametrize(
    ("study", "name"), [("report", "mnist-2c-0.99-iterative-0"), ("lenet", "lenet-300-100-0.98-iterative-0")]
)
def test_the_committed_rounds_are_current(study, name, monkeypatch):
    monkeypatch.delenv("PRUNING_RESULTS", raising=False)
    run = next(run for run in load(study).runs if run.name == name)
    rounds = masks.rounds_of(run, most=0)
    assert rounds.count > 5 and rounds.densities()[-1] < 0.1


def small():
    model = masked(lenet("12x12-3c5-4c3-6-3"))
    dice = torch.Generator().manual_seed(0)
    for layer in masked_layers(model).values():
        layer.prune(torch.rand(layer.mask.shape, generator=dice) < 0.3)
    return model


def test_a_pixel_without_a_path_has_no_say_in_a_class():
    model, shape = small(), (1, 12, 12)
    counts = masks.paths(model, shape)
    assert counts.shape == (3, *shape) and (counts == 0).any() and (counts > 0).any()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1)  # all above zero, so that no path is cancelled by another one
    dice = torch.Generator().manual_seed(1)
    image = torch.rand(1, *shape, generator=dice) + 1
    for row, column in [(row, column) for row in range(12) for column in range(12)]:
        changed = image.clone()
        changed[0, 0, row, column] += 100  # the largest wherever it is pooled
        moved = (model(changed) != model(image))[0]
        assert moved.tolist() == (counts[:, 0, row, column] > 0).tolist(), (row, column)


def test_paths_are_counted_as_the_product_of_the_masks():
    model = masked(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)))
    layers = list(masked_layers(model).values())
    for number, layer in enumerate(layers):
        layer.prune(torch.rand(layer.mask.shape, generator=torch.Generator().manual_seed(number)) < 0.4)
    expected = layers[1].mask.double() @ layers[0].mask.double()
    assert (masks.paths(model, (1, 4, 4)).reshape(3, 16) == expected.numpy()).all()
    assert model[1].bias.any(), "the model itself is left as it was"


def test_paths_through_other_layers_are_not_guessed():
    model = masked(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh()))
    with pytest.raises(ValueError, match=r"paths through layer '2' \(Tanh\) are not known"):
        masks.paths(model, (1, 2, 2))


def test_pictures_show_every_layer_and_round(made_up):
    draws = {
        "filters": lambda: mask_figures.filters(made_up, "made up"),
        "outlived": lambda: mask_figures.outlived(made_up, "made up"),
        "reach": lambda: mask_figures.reach({"small": masks.paths(small(), (1, 12, 12))}, "abc"),
    }
    for name, draw in draws.items():
        figure = draw()
        assert figure.get_label(), f"{name} does not say what it shows"
        image = PIL.Image.open(io.BytesIO(figures.png(figure, dpi=60)))
        assert min(image.size) > 60 and len(np.unique(np.asarray(image.convert("L")))) > 20, f"{name} is empty"
        assert figures.png(figure, dpi=60) == figures.png(draw(), dpi=60)
    said = {
        name: " ".join(text.get_text() for text in draw().findobj(lambda part: hasattr(part, "get_text")))
        for name, draw in draws.items()
    }
    assert all(f"round {number}" in said["filters"] for number in (1, 2, 3)) and "(60 × 256)" in said["filters"]
    stays = (made_up.outlived["fc1"] == 3).sum()
    assert f"fc1: {stays:,} of 15,360 stay" in said["outlived"]


def test_the_animation_has_a_frame_a_round_in_which_synapses_get_fewer(made_up):
    gif = mask_figures.animation(made_up, "made up")
    assert gif == mask_figures.animation(made_up, "made up")
    image = PIL.Image.open(io.BytesIO(gif))
    assert image.n_frames == 4 and image.info["loop"] == 0
    blue = [int(c, 16) for c in (mask_figures.THERE[1:3], mask_figures.THERE[3:5], mask_figures.THERE[5:])]
    seen = [
        (abs(np.asarray(frame.convert("RGB"), int) - blue).sum(2) < 12).sum()
        for frame in PIL.ImageSequence.Iterator(image)
    ]
    cells = {"conv1": 8, "conv2": 4, "fc1": 2, "fc2": 4}  # pixels along a synapse's side
    for number, count in zip((3, 0, 1, 2), seen):  # it begins where it rests
        left = sum((made_up.outlived[name] >= number).sum() * side**2 for name, side in cells.items())
        assert abs(count - left) < 300, "the legend and rounding apart"


def test_who_wants_nothing_to_move_gets_the_still_picture(made_up):
    page = mask_figures.moving(b"GIF89a", mask_figures.outlived(made_up, "made up"), 'fewer & "fewer"')
    assert 'media="print, (prefers-reduced-motion: reduce)" srcset="data:image/png;base64,' in page
    assert 'src="data:image/gif;base64,R0lGODlh" alt="fewer &amp; &quot;fewer&quot;"' in page


def test_the_committed_animation_is_small_and_ends_as_its_rounds_do():
    path = root() / "figures/report/figure-13-rounds.gif"
    image = PIL.Image.open(path)
    kept = np.load(root() / "data/results/report/rounds/mnist-2c-0.99-iterative-0.npz")
    assert path.stat().st_size < 2**20
    assert image.n_frames == len(json.loads(kept["header"].tobytes())["iterations"])
