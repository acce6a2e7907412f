import copy
import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from pruning import masked_layers
from pruning.files import load_state
from pruning.methods import METHODS
from pruning.study import datasets
from pruning.study.config import Recipe, Run, Settings
from pruning.study.datasets import Split
from pruning.study.machine import kind
from pruning.study.records import read_record
from pruning.study.runner import run as carry_out
from pruning.study.states import StateFile
from pruning.study.training import accuracy, batches, prepare, train

pytestmark = [pytest.mark.arithmetic, pytest.mark.usefixtures("as_in_a_run")]

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(
    batch=32,
    warmup=20,
    averaging=0.9,
    interval=20,
    patience=4,
    budget=180,
    ramp=80,
)  # seed 0 on the validation images: an accuracy of about 0.22 at iteration 20, 0.68 at 40, 0.8 at 100
NETWORK = "28x28-6c5-16c5-120-84-10"
OWN = ("seconds", "environment")  # what a record says of its making, not of its numbers

# Imports once, then forks a process for each run that a line asks for, and tells its end. The process kills itself:
# in the middle of writing its checkpoint for the time ``number``, or ``later`` seconds after that.
NURSERY = """
import json, os, signal, sys, threading
from pruning.study import states
from pruning.study.config import Run, Settings
from pruning.study.runner import run

def end(*given):
    os.kill(os.getpid(), signal.SIGKILL)

def doomed(moment, number, later):
    save, count = states.save_state, 0
    def half(file):
        os.ftruncate(file, os.fstat(file).st_size // 2)
        end()
    def counted(path, state, owner):
        nonlocal count
        count += path.suffix == ".checkpoint"
        if count == number and moment == "writing":
            os.fsync = half
        save(path, state, owner)
        if count == number:
            threading.Timer(later, end).start()
    states.save_state = counted

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        given = json.loads(line)
        os.environ["PRUNING_RESULTS"] = given.pop("results")
        doomed(*given.pop("end"))
        run(Run(**given | {"settings": Settings(**given["settings"])}), every=0, warn=lambda text: os._exit(9))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


def run_of(method="iterative", requirement=0.4):
    return Run(study="s", benchmark="digits-2c", requirement=requirement, method=method, seed=0, settings=SETTINGS)


def numbers(record):
    return json.loads(json.dumps({name: value for name, value in record.items() if name not in OWN}))


# Batches


def test_batches_are_a_function_of_seed_and_iteration(digits):
    recipe = Recipe(batch=100, flip=True)
    stream = batches(digits, recipe, seed=3)
    first = [next(stream) for _ in range(25)]  # two and a half epochs
    for done in (0, 1, 9, 10, 13, 20):
        images, labels = next(batches(digits, recipe, 3, done))
        assert torch.equal(images, first[done][0]) and torch.equal(labels, first[done][1])
    other = next(batches(digits, recipe, seed=4))
    assert not torch.equal(other[1], first[0][1])
    assert first[0][0].shape == (100, 1, 28, 28) and first[0][0].is_contiguous(memory_format=torch.channels_last)


def numbered(digits, count=40):
    """Training images that are told apart by their label, 0 to ``count`` - 1, and by their pixels."""
    return replace(digits, train=Split(digits.train.images[:count], torch.arange(count)))


def test_every_image_once_an_epoch_in_a_new_order(digits):
    data = numbered(digits)
    stream = batches(data, Recipe(batch=10, shift=0), seed=0)
    epochs = []
    for _ in range(3):
        found = [next(stream) for _ in range(4)]
        labels = torch.cat([labels for _, labels in found])
        assert torch.equal(labels.sort().values, torch.arange(40))
        assert torch.equal(torch.cat([images for images, _ in found]), data.train.images[labels])
        epochs.append(labels.tolist())
    assert epochs[0] != epochs[1] != epochs[2] != list(range(40))


def test_the_last_incomplete_batch_is_left_out(digits):
    stream = batches(numbered(digits), Recipe(batch=15), seed=0)
    labels = [next(stream)[1] for _ in range(4)]
    assert all(len(found) == 15 for found in labels)
    for epoch in (labels[:2], labels[2:]):
        assert len(set(torch.cat(epoch).tolist())) == 30


def test_images_are_shifted_with_black_at_the_borders(digits):
    shift, count = 2, 30
    data = numbered(digits, count)
    # Bright up to the borders, so that what comes in there shows.
    data = replace(data, train=Split(data.train.images.clamp(min=0) + 5, data.train.labels))
    black = float(data.black)
    edged = torch.full((count, 1, 28 + 2 * shift, 28 + 2 * shift), black)
    edged[:, :, shift:-shift, shift:-shift] = data.train.images
    stream, seen = batches(data, Recipe(batch=count, shift=shift), seed=0), set()
    for _ in range(12):
        images, labels = next(stream)
        for image, label in zip(images, labels.tolist(), strict=True):
            places = [
                (y, x)
                for y in range(2 * shift + 1)
                for x in range(2 * shift + 1)
                if torch.equal(image, edged[label, :, y : y + 28, x : x + 28])
            ]
            assert len(places) == 1
            seen.update(places)
    assert len(seen) == 25
    assert black < data.train.images.min() and images.min() == pytest.approx(black)


def test_flip_mirrors_about_half_of_the_images(digits):
    data = numbered(digits)
    images, labels = next(batches(data, Recipe(batch=40, shift=0, flip=True), seed=0))
    plain = data.train.images[labels]
    mirrored = [torch.equal(image, original.flip(2)) for image, original in zip(images, plain, strict=True)]
    straight = [torch.equal(image, original) for image, original in zip(images, plain, strict=True)]
    assert all(a != b for a, b in zip(mirrored, straight, strict=True)) and 8 < sum(mirrored) < 32
    images, labels = next(batches(data, Recipe(batch=40, shift=0), seed=0))
    assert torch.equal(images, data.train.images[labels])


def test_a_batch_larger_than_the_training_set(digits):
    with pytest.raises(ValueError, match="a batch of 2000 is more than the 1077 training images of digits"):
        next(batches(digits, Recipe(batch=2000), seed=0))


# Accuracy


def test_accuracy_against_a_count_by_hand():
    class Table(nn.Module):
        def forward(self, images):
            assert not self.training
            return images.flatten(1)

    logits = torch.tensor([[1.0, 0], [0, 1], [3, 2], [0, 9], [5, 4], [1, 2], [7, 6]])
    split = Split(logits.view(7, 2, 1, 1), torch.tensor([0, 1, 1, 1, 0, 0, 1]))  # right: 1, 1, 0, 1, 1, 0, 0
    model = Table()
    for batch in (1, 3, 7, 500):
        assert accuracy(model, split, batch) == 4 / 7
    assert model.training
    assert accuracy(model.eval(), split) == 4 / 7 and not model.training


# The loop


def trained(digits, method="iterative", requirement=0.4, seed=0, **given):
    training = prepare(NETWORK, SETTINGS, requirement, METHODS[method], seed, **SETTINGS.limits)
    train(training, digits, SETTINGS, seed, **given)
    return training


def equal(first, second):
    pairs = [(getattr(first, name).state_dict(), getattr(second, name).state_dict()) for name in ("model", "average")]
    return all(torch.equal(a[name], b[name]) for a, b in pairs for name in a)


def test_the_same_training_gives_the_same_weights(digits):
    first, again = trained(digits), trained(digits)
    assert equal(first, again) and first.control.events == again.control.events
    other = trained(digits, seed=1)
    assert not equal(first, other)
    assert first.iteration <= SETTINGS.budget and first.control.reached
    for layer in masked_layers(first.model).values():
        assert not layer.weight[~layer.mask].any()
    for name, layer in masked_layers(first.average).items():
        assert torch.equal(layer.mask, masked_layers(first.model)[name].mask)


def test_the_rate_warms_up_and_the_average_follows_the_weights(digits):
    recipe = SETTINGS.model_copy(update={"warmup": 10, "averaging": 0.5, "interval": 1})
    training = prepare(NETWORK, recipe, 0.99, METHODS["unpruned"], 0, budget=12)
    expected = copy.deepcopy(training.average)
    rates = []

    def follow(event, training):
        rates.append(training.optimizer.param_groups[0]["lr"])
        decay = min(0.5, (1 + event.iteration) / (10 + event.iteration))
        with torch.no_grad():
            for mean, weight in zip(expected.parameters(), training.model.parameters(), strict=True):
                mean.copy_(decay * mean + (1 - decay) * weight)

    train(training, digits, recipe, 0, progress=follow)
    assert rates == pytest.approx([0.05 * n / 10 for n in range(1, 11)] + [0.05, 0.05])
    for mean, found in zip(expected.parameters(), training.average.parameters(), strict=True):
        assert torch.allclose(mean, found, atol=1e-6)


class Stop(Exception):
    pass


@pytest.mark.parametrize("method", ["iterative", "gradual", "oneshot", "random"])
def test_a_training_goes_on_from_its_checkpoint(digits, tmp_path, method):
    whole = trained(digits, method)
    end = whole.iteration
    assert end > whole.control.start + 40

    def stop(event, training):
        if event.iteration == end - 20:
            raise Stop

    checkpoint = StateFile(tmp_path / "work" / "a.checkpoint", "me")
    with pytest.raises(Stop):
        trained(digits, method, checkpoint=checkpoint, every=0, progress=stop)
    seen = []

    def note(event, training):
        seen.append(event.iteration)

    resumed = trained(digits, method, checkpoint=checkpoint, progress=note)
    assert seen == [end - 20, end], "the last checkpoint lies two evaluations before the end"
    assert equal(whole, resumed) and whole.control.events == resumed.control.events
    assert whole.control.best["iteration"] == resumed.control.best["iteration"]


# Killed and started again


@pytest.fixture(scope="module")
def nursery():
    command = [sys.executable, "-c", NURSERY]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_the_record_is_the_same(digits, results, nursery):
    whole = run_of().model_copy(update={"study": "whole"})
    expected = numbers(carry_out(whole))
    expected["run"]["study"] = "s"

    run = run_of()
    checkpoint = run.place("work", ".checkpoint")
    owner = f"{run.key} {digits.fingerprint} {kind(torch.device('cpu'))}"
    chance = random.Random(2015)

    def killed(moment, number):
        """Start the run, which is killed at this moment; how many half-written checkpoints lie there."""
        given = {"results": str(results), "end": (moment, number, chance.uniform(0, 0.05))}
        nursery.stdin.write(json.dumps(run.model_dump() | given) + "\n")
        nursery.stdin.flush()
        assert int(nursery.stdout.readline()) == -signal.SIGKILL
        return len(set(checkpoint.parent.glob(f".{checkpoint.name}.*.tmp")))

    assert killed("writing", 1) == 1 and not checkpoint.exists()
    killed("training", 1)
    assert checkpoint.exists() and killed("writing", 1) == 1  # the scrap before was cleared away
    killed("training", 2)
    assert load_state(checkpoint, owner)["control"]["pruner"]["round"] >= 1
    assert killed("writing", 1) == 1
    assert not run.record_path.exists()

    said = []
    assert numbers(carry_out(run, warn=said.append)) == expected
    assert said == [], "what a kill leaves behind is never damaged"
    assert numbers(read_record(run.record_path)) == expected
    assert not list(results.rglob("*.tmp")) and not checkpoint.exists()


# The dense phase is shared


@pytest.mark.slow
def test_records_are_the_same_with_and_without_a_shared_dense_phase(results, monkeypatch):
    runs = [run_of(method, requirement) for requirement in (0.4, 0.75) for method in ("unpruned", "random")]
    alone = {}
    for number, run in enumerate(runs):
        monkeypatch.setenv("PRUNING_RESULTS", str(results / f"alone{number}"))
        alone[run.name] = numbers(carry_out(run))
    result = {run.name: alone[run.name]["result"] for run in runs}
    met = {run.requirement: result[run.name]["iterations_unpruned"] for run in runs}
    assert 0 < met[0.4] < met[0.75]

    for name, order in (("up", runs), ("down", runs[::-1])):
        monkeypatch.setenv("PRUNING_RESULTS", str(results / name))
        there = []
        for run in order:
            seen = []
            record = carry_out(run, progress=lambda event, training, seen=seen: seen.append(event.iteration))
            assert numbers(record) == alone[run.name]
            below = [met[requirement] for requirement in there if requirement <= run.requirement]
            if run.method == "unpruned" and run.requirement in there:
                assert seen == []
            else:
                assert seen[0] == max(below, default=0) + SETTINGS.interval
            there.append(run.requirement)
        assert sorted(path.name for path in (results / name).rglob("*.dense")) == ["0.4.dense", "0.75.dense"]

    for run in runs:
        found = result[run.name]
        assert found["reached"] and found["iterations_unpruned"] == met[run.requirement]
        assert found["effort"] == found["iterations"] / met[run.requirement]
        if run.method == "unpruned":
            assert found["iterations"] == met[run.requirement] and found["density"] == 1
        else:
            assert found["density"] < 1 < found["effort"]
