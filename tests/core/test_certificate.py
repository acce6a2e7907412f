"""A requirement with confidence: exact bounds, and a procedure that holds although many networks are tried."""

import copy
import io
import math

import pytest
import torch
from scipy.stats import binom, binomtest
from small import tiny
from torch import nn

from pruning import density, masked
from pruning.certificate import aim, allowed, certify, lower_bound, needed, passing, sequence, tail
from pruning.control import PruneControl
from pruning.looks import Examples
from pruning.methods import METHODS


@pytest.mark.parametrize("count", [1, 37, 2500, 100_000])
def test_tails_and_bounds_are_those_of_scipy(count):
    for part in (0.0, 0.003, 0.1, 0.5, 1.0):
        wrong = int(part * count)
        for rate in (0.0, 1e-4, 0.01, 0.3, 1.0):
            assert tail(wrong, count, rate) == pytest.approx(binom.cdf(wrong, count, rate), abs=1e-9)
        exact = binomtest(count - wrong, count, alternative="greater").proportion_ci(0.95, method="exact").low
        assert lower_bound(count - wrong, count, 0.95) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(("requirement", "count"), [(0.97, 2500), (0.99, 2500), (0.55, 800), (0.99, 299)])
def test_what_is_allowed_is_just_what_shows_the_requirement(requirement, count):
    most = allowed(requirement, 0.95, count)
    assert (
        lower_bound(count - most, count, 0.95) >= requirement - 1e-9 > lower_bound(count - most - 1, count, 0.95) - 1e-9
    )
    aimed = aim(requirement, 0.95, count)
    assert tail(most, count, 1 - aimed) == pytest.approx(0.8, abs=1e-6)
    assert passing(requirement, 0.95, count) == (count - most) / count > requirement


def test_too_few_examples_say_how_many_would_do():
    assert needed(0.99, 0.95) == 299 == math.ceil(math.log(0.05) / math.log(0.99))
    with pytest.raises(ValueError, match=r"298 examples cannot show an accuracy of 0.99 .* at least 299 are needed"):
        PruneControl(tiny(), 0.99, confidence=0.95, certifying=298)
    # All of 299 have to be right, which does not ask for all that steer.
    few = PruneControl(masked(tiny()), 0.99, confidence=0.95, certifying=299)
    few.update(1, 0.9995)
    assert few.aim < passing(0.99, 0.95, 299) == 1 and few.reached and len(few.delivery.path) == 1
    count = needed(0.97, 0.95, 0.98)
    assert tail(allowed(0.97, 0.95, count), count, 0.02) >= 0.8
    assert needed(0.97, 0.95, 0.97) is None and needed(0.97, 0.95, 0.5) is None


def test_networks_are_tested_from_the_most_accurate_to_the_sparsest():
    path = [(1.0, 0.98), (0.5, 0.99), (0.4, 0.985), (0.45, 0.97), (0.1, 0.975), (0.2, 0.975)]
    assert sequence(path) == [1, 2, 4]
    asked = []
    right = {1: 990, 2: 985, 4: 960}
    certificate, place = certify(path, lambda number: (asked.append(number), right[number])[1], 0.97, 0.95, 1000)
    assert place == 2 and asked == [1, 2, 4] and [passed for *_, passed in certificate.tested] == [True, True, False]
    assert certificate.bound == pytest.approx(lower_bound(985, 1000, 0.95)) and "0.4000" in str(certificate)
    certificate, place = certify(path, lambda number: 972, 0.97, 0.95, 1000)
    assert place is None and len(certificate.tested) == 1, "the first that fails ends it"
    assert certificate.needed == needed(0.97, 0.95, 0.972) and f"{certificate.needed:,} examples" in str(certificate)
    assert "no network" in str(certify([], len, 0.97, 0.95, 1000)[0])


def test_what_is_certified_holds_although_many_networks_are_tried():
    """Thirty networks whose accuracy falls from well above the requirement to well below; 500 repetitions."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.linspace(0.985, 0.955, 30, dtype=torch.float64)
    false = chosen = 0
    for _ in range(500):
        steering = torch.binomial(torch.full((30,), 2500.0).double(), truth, generator=generator) / 2500
        found = torch.binomial(torch.full((30,), 2500.0).double(), truth, generator=generator)
        path = [(0.9**number, float(accuracy)) for number, accuracy in enumerate(steering)]
        _, place = certify(path, lambda number, found=found: int(found[number]), 0.97, 0.95, 2500)
        chosen += place is not None
        false += place is not None and float(truth[place]) < 0.97
    assert chosen > 400, "most repetitions certify something"
    assert binom.sf(false - 1, 500, 0.05) > 1e-3, f"{false} of 500 fall short: more than 5 %"


def separable(count, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 20, generator=generator)
    flipped = torch.rand(count, generator=generator) < 0.02
    return inputs, ((inputs[:, :3].sum(1) > 0) ^ flipped).long()


def test_what_comes_so_far_that_it_would_pass_is_tested_too():
    control = PruneControl(masked(tiny()), 0.9, METHODS["iterative"], confidence=0.95, certifying=1000)
    least, between = passing(0.9, 0.95, 1000), (passing(0.9, 0.95, 1000) + control.aim) / 2
    assert 0.9 < least < between < control.aim
    densities = []
    for iteration, accuracy in enumerate([between, 0.99, between, between, least - 0.001], start=1):
        densities.append(control.density)
        control.update(iteration, accuracy)
    assert [one["accuracy"] for one in control.delivery.path] == [0.99, between], "the sparser of two alike, no other"
    assert control.best["density"] == 1 > densities[3]
    certificate = control.certify(lambda network: torch.ones(1000, dtype=torch.bool))
    assert certificate.chosen == 1 and density(control.delivered()) == densities[3] == certificate.tested[1][0]


@pytest.mark.parametrize("name", ["iterative", "gradual", "adaptive"])
def test_a_control_delivers_what_is_certified(name):
    torch.manual_seed(0)
    model = masked(nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    # The same examples steer and certify, so that what reaches the aim passes, whatever the luck; see above for others.
    train, steer = separable(2000, 1), separable(1000, 2)
    certify_on = steer
    control = PruneControl(
        model, 0.9, METHODS[name], optimizer=optimizer, budget=1500, ramp=400, confidence=0.95, certifying=1000
    )
    assert control.aim > 0.9

    def right(network, data):
        with torch.no_grad():
            return network(data[0]).argmax(1) == data[1]

    steering = Examples(lambda places: right(model, (steer[0][places], steer[1][places])), 1000)
    for iteration in range(1, 2000):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train[0]), train[1]).backward()
        optimizer.step()
        if iteration % 20 == 0 and control.update(iteration, steering(), steering, lambda: train[0][:64]).finished:
            break
    with pytest.raises(RuntimeError, match=r"call certify\(right\) first"):
        control.delivered()
    with pytest.raises(ValueError, match="each of the 1000 examples"):
        control.certify(lambda network: right(network, steer)[:10])
    certificate = control.certify(lambda network: right(network, certify_on))
    network = control.delivered()
    assert certificate.chosen is not None and density(network) == certificate.tested[certificate.chosen][0] < 1
    assert int(right(network, certify_on).sum()) == certificate.tested[certificate.chosen][2]
    assert certificate.bound >= 0.9
    # A control that goes on from its state has nothing to certify again.
    resumed = PruneControl(
        masked(copy.deepcopy(model)), 0.9, METHODS[name], budget=1500, ramp=400, confidence=0.95, certifying=1000
    )
    resumed.load_state_dict(saved(control.state_dict()))
    assert resumed.delivery.certificate == certificate and density(resumed.delivered()) == density(network)


def saved(state):
    """A state as it comes back from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def test_confidence_is_asked_for_as_a_whole():
    for given in ({"confidence": 0.95}, {"certifying": 1000}):
        with pytest.raises(ValueError, match="go together"):
            PruneControl(tiny(), 0.9, **given)
    with pytest.raises(ValueError, match=r"confidence must lie between 0 and 1, got 95"):
        PruneControl(tiny(), 0.9, confidence=95, certifying=1000)
    with pytest.raises(ValueError, match="confidence needs an accuracy"):
        PruneControl(tiny(), -0.3, score="any", confidence=0.95, certifying=1000)
    with pytest.raises(ValueError, match="certify needs a control made with"):
        PruneControl(tiny(), 0.9).certify(len)
