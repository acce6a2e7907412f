"""Looks at some of the examples: what they decide, how often they err, what they take."""

import pytest
import torch

from pruning.looks import MOST, Examples

COUNT = 4000


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def changed(before, down, up, seed):
    """Answers after a part ``down`` of the right ones has become wrong, and ``up`` of the wrong ones right."""
    chance = torch.rand(len(before), generator=seeded(seed))
    return torch.where(before, chance >= down, chance < up)


def known(before, margins=None):
    """Examples whose last whole evaluation found ``before``."""
    examples = Examples(lambda places: before[places] if margins is None else margins[places], len(before))
    examples()
    return examples


def test_called_examples_give_the_accuracy_of_all():
    right = torch.rand(COUNT, generator=seeded(0)) < 0.9
    examples = Examples(lambda places: right[places], COUNT)
    assert examples() == int(right.sum()) / COUNT
    assert examples.knows(int(right.sum()) / COUNT) and not examples.knows(0.9001)
    examples.forget()
    assert not examples.knows(int(right.sum()) / COUNT)


@pytest.mark.parametrize("accuracy", [0.6, 0.97])
@pytest.mark.parametrize("reused", [True, False])
def test_a_look_that_settles_errs_as_seldom_as_it_says(accuracy, reused):
    settled = wrong = 0
    for seed in range(150):
        before = torch.rand(COUNT, generator=seeded(seed)) < accuracy
        now = changed(before, 0.03, 0.05, 1000 + seed)
        examples = known(before)
        if not reused:
            examples.forget()
        examples.right = lambda places, now=now: now[places]
        truth = int(now.sum()) / COUNT
        # What is asked is missed by a single example, or just reached: nowhere is an error more likely.
        for least in (truth, truth + 1 / COUNT):
            verdict = examples.look(least, seeded(2000 + seed), error=0.2)
            if verdict.examples < MOST * COUNT:
                settled += 1
                wrong += verdict.met != (truth >= least)
    assert wrong <= 0.2 * 300, f"{wrong} of {settled} settled looks were wrong"


def test_a_look_takes_few_examples_where_the_answer_is_far_away():
    before = torch.rand(COUNT, generator=seeded(1)) < 0.97
    examples = known(before)
    for least, met in ((0.93, True), (0.99, False)):
        verdict = examples.look(least, seeded(2), 0.1)
        assert (verdict.met, verdict.examples <= 1000) == (met, True)
    examples.forget()
    assert examples.look(0.5, seeded(2), 0.1).examples <= 500


def test_a_look_begins_with_what_was_nearest_to_being_otherwise():
    margins = torch.randn(COUNT, generator=seeded(3)) + 2
    asked = []
    examples = known(margins > 0, margins)
    now = margins - 0.1  # only what is near changes
    examples.right = lambda places: (asked.append(places), now[places])[1]
    truth = int((now > 0).sum()) / COUNT
    verdict = examples.look(truth - 0.004, seeded(4), 0.1)
    assert asked[0].tolist() == margins.abs().argsort()[: COUNT // 10].tolist()
    assert verdict.met and verdict.accuracy == pytest.approx(truth, abs=0.002)
    again = torch.cat(asked)
    assert len(again.unique()) == len(again) == verdict.examples, "no example twice"


def test_a_close_call_goes_by_its_estimate():
    before = torch.rand(COUNT, generator=seeded(5)) < 0.6
    now = changed(before, 0.2, 0.3, 6)
    examples = known(before)
    examples.right = lambda places: now[places]
    truth = int(now.sum()) / COUNT
    verdict = examples.look(truth, seeded(7), 0.1)
    assert MOST * COUNT <= verdict.examples <= MOST * COUNT + 100
    assert verdict.met == (verdict.accuracy >= truth) and verdict.accuracy == pytest.approx(truth, abs=0.05)


def test_few_examples_are_looked_at_all():
    right = torch.tensor([True] * 9 + [False])
    examples = Examples(lambda places: right[places], 10)
    assert examples() == 0.9
    assert examples.look(0.9, seeded(0), 0.1).met and not examples.look(0.91, seeded(0), 0.1).met


def test_wrong_answers_are_refused_by_name():
    for answer in (torch.ones(3, dtype=torch.bool), torch.ones(10, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"bool or float \[10\], got"):
            Examples(lambda places, answer=answer: answer, 10)()
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        Examples(lambda places: places > 0, 0)
