"""Which rows are moved, on features that are their own logits: two old classes, one new, the background last."""

import copy
import pickle

import pytest
import torch

from incdet.align.baselines import MeanShift, Ridge
from incdet.align.energy import EnergyAligner
from incdet.align.gates import GATES, AlignerChain, HeadwiseChain, Link, Oracle, find_gate, predicted_old
from incdet.errors import ConfigError, MethodError

FEATURES = torch.tensor(
    [
        [0.1, 5.0, 0.2, 0.3],  # old
        [0.0, 1.0, 2.0, 0.0],  # new
        [0.0, 3.0, 0.0, 4.0],  # background, an old class second
        [9.0, 0.0, 8.0, 0.0],  # old
    ]
)
LABELS = torch.tensor([1, 2, 0, 3])


def predictor(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return features, torch.zeros(len(features), 3, 4)


def shifting() -> MeanShift:
    aligner = MeanShift(4)
    aligner.shift.fill_(7.0)
    return aligner


def climbing() -> EnergyAligner:
    """score = first feature, and a row is familiar from 0.05 on."""
    aligner = EnergyAligner(4, (), 1, 1.0)
    aligner.network.layers[0].weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    aligner.network.layers[0].bias.zero_()
    aligner.threshold.fill_(0.05)
    return aligner


def moved(gated: AlignerChain) -> list[bool]:
    result = gated(FEATURES, predictor)
    rows = (result != FEATURES).any(dim=1)
    assert torch.equal(result[~rows], FEATURES[~rows])
    assert torch.equal(result[rows], gated.aligners[0](FEATURES)[rows])
    return rows.tolist()


def test_the_default_moves_rows_classified_as_old_and_leaves_the_background():
    assert moved(AlignerChain([Link(shifting(), 2)])) == [True, False, False, True]


def test_the_default_asks_about_unaligned_features():
    aligner = shifting()
    aligner.shift.copy_(torch.tensor([0.0, 0.0, 100.0, 0.0]))  # aligned, every row would be classified as new
    assert moved(AlignerChain([Link(aligner, 2)])) == [True, False, False, True]


def test_without_old_classes_nothing_is_classified_as_old():
    assert moved(AlignerChain([Link(shifting(), 0)])) == [False] * 4


def test_all_moves_every_row():
    assert moved(AlignerChain([Link(shifting(), 2)], find_gate("all"))) == [True] * 4


def test_energy_moves_familiar_rows():
    assert moved(AlignerChain([Link(climbing(), 2)], find_gate("energy"))) == [True, False, False, True]


def test_the_oracle_moves_by_the_labels_it_was_given_and_says_so():
    gated = AlignerChain([Link(shifting(), 2)], Oracle(LABELS))
    assert moved(gated) == [True, False, True, False]
    assert moved(AlignerChain([Link(shifting(), 2)], Oracle(torch.tensor([-1, 0, 1, 2])))) == [False, True, True, False]
    assert gated.stamps == ("oracle",)
    assert [AlignerChain([Link(shifting(), 2)], gate).stamps for gate in GATES.values()] == [()] * 4


@pytest.mark.parametrize("gate", [*GATES.values(), Oracle(LABELS)])
def test_gated_aligners_are_copied_and_work_without_autograd(gate):
    gated = AlignerChain([Link(climbing(), 2)], gate)
    expected = gated(FEATURES, predictor)
    for twin in (copy.deepcopy(gated), pickle.loads(pickle.dumps(gated))):
        with torch.inference_mode():
            assert torch.equal(twin(FEATURES, predictor), expected)


def test_a_row_does_not_depend_on_the_other_rows():
    gated = AlignerChain([Link(climbing(), 2)], predicted_old)
    alone = torch.cat([gated(row[None], predictor) for row in FEATURES])
    assert torch.equal(alone, gated(FEATURES, predictor))
    assert gated(FEATURES[:0], predictor).shape == (0, 4)


def test_labels_for_other_rows_are_refused():
    with pytest.raises(MethodError, match="3 labels for 4 rows"):
        AlignerChain([Link(shifting(), 2)], Oracle(LABELS[:3]))(FEATURES, predictor)


def test_the_energy_gate_needs_an_energy():
    with pytest.raises(MethodError, match="mean_shift"):
        AlignerChain([Link(shifting(), 2)], find_gate("energy"))(FEATURES, predictor)


@pytest.mark.parametrize("name", ["oracle", "predicted"])
def test_unknown_names_are_refused_and_the_oracle_has_none(name):
    with pytest.raises(ConfigError, match=f"{name}.*Oracle"):
        find_gate(name)


# ---------------------------------------------------------------------- several tasks


def test_a_class_goes_back_as_far_as_the_task_that_taught_it():
    """Three tasks of one class each: rows of class 0 pass both links, of class 1 the last, of class 2 none."""
    first, last = shifting(), shifting()
    first.shift.fill_(1.0)
    last.shift.fill_(10.0)
    features = torch.eye(4) * 5
    chain = AlignerChain([Link(first, 1), Link(last, 2)])
    assert (chain(features, predictor) - features)[:, 3].tolist() == [11.0, 10.0, 0.0, 0.0]


def test_links_are_passed_from_the_newest_to_the_oldest():
    doubling, shift = Ridge(4), shifting()
    doubling.weight.copy_(torch.eye(4))
    features = torch.ones(1, 4)
    assert AlignerChain([Link(doubling, 2), Link(shift, 2)], find_gate("all"))(features, predictor).tolist() == [
        [16.0] * 4
    ]
    assert AlignerChain([Link(shift, 2), Link(doubling, 2)], find_gate("all"))(features, predictor).tolist() == [
        [9.0] * 4
    ]


def test_what_is_not_taken_for_a_new_class_may_be_an_old_one_missed():
    assert moved(AlignerChain([Link(shifting(), 2)], find_gate("not_new"))) == [True, False, True, True]


def test_without_a_link_nothing_moves():
    assert torch.equal(AlignerChain([])(FEATURES, predictor), FEATURES)


def of_images(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A classifier's predictor: no boxes, so its last class is no background."""
    return features, torch.zeros(len(features), 0, 4)


def test_where_there_is_no_background_the_last_class_is_a_class():
    """Rows 1 and 2 are of the third and of the fourth class, both new; with a background the fourth would be it."""
    assert GATES["not_new"](FEATURES, of_images, shifting(), 2).tolist() == [True, False, False, True]
    assert GATES["not_new"](FEATURES, predictor, shifting(), 2).tolist() == [True, False, True, True]


def test_each_head_reads_the_features_as_its_own_task_left_them():
    """Three tasks of 1, 2 and 1 classes: the second link adds 10 to all features, the first one 1."""
    first, second = MeanShift(4), MeanShift(4)
    first.shift.fill_(1.0)
    second.shift.fill_(10.0)
    chain = HeadwiseChain([Link(first, 1), Link(second, 3)])
    expected = FEATURES + torch.tensor([11.0, 10.0, 10.0, 0.0])
    assert torch.allclose(chain(FEATURES, of_images), expected)
    assert torch.equal(HeadwiseChain([])(FEATURES, of_images), FEATURES)
