"""Which rows are moved, on features that are their own logits: two old classes, one new, the background last."""

import copy
import pickle

import pytest
import torch

from incdet.align.baselines import MeanShift
from incdet.align.energy import EnergyAligner
from incdet.align.gates import GATES, GatedAligner, Oracle, find_gate, predicted_old
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


def moved(gated: GatedAligner) -> list[bool]:
    result = gated(FEATURES, predictor)
    rows = (result != FEATURES).any(dim=1)
    assert torch.equal(result[~rows], FEATURES[~rows])
    assert torch.equal(result[rows], gated.aligner(FEATURES)[rows])
    return rows.tolist()


def test_the_default_moves_rows_classified_as_old_and_leaves_the_background():
    assert moved(GatedAligner(shifting(), num_old=2)) == [True, False, False, True]


def test_the_default_asks_about_unaligned_features():
    aligner = shifting()
    aligner.shift.copy_(torch.tensor([0.0, 0.0, 100.0, 0.0]))  # aligned, every row would be classified as new
    assert moved(GatedAligner(aligner, num_old=2)) == [True, False, False, True]


def test_without_old_classes_nothing_is_classified_as_old():
    assert moved(GatedAligner(shifting(), num_old=0)) == [False] * 4


def test_all_moves_every_row():
    assert moved(GatedAligner(shifting(), 2, find_gate("all"))) == [True] * 4


def test_energy_moves_familiar_rows():
    assert moved(GatedAligner(climbing(), 2, find_gate("energy"))) == [True, False, False, True]


def test_the_oracle_moves_by_the_labels_it_was_given_and_says_so():
    gated = GatedAligner(shifting(), 2, Oracle(LABELS))
    assert moved(gated) == [True, False, True, False]
    assert moved(GatedAligner(shifting(), 2, Oracle(torch.tensor([-1, 0, 1, 2])))) == [False, True, True, False]
    assert gated.stamps == ("oracle",)
    assert [GatedAligner(shifting(), 2, gate).stamps for gate in GATES.values()] == [()] * 3


@pytest.mark.parametrize("gate", [*GATES.values(), Oracle(LABELS)])
def test_gated_aligners_are_copied_and_work_without_autograd(gate):
    gated = GatedAligner(climbing(), 2, gate)
    expected = gated(FEATURES, predictor)
    for twin in (copy.deepcopy(gated), pickle.loads(pickle.dumps(gated))):
        with torch.inference_mode():
            assert torch.equal(twin(FEATURES, predictor), expected)


def test_a_row_does_not_depend_on_the_other_rows():
    gated = GatedAligner(climbing(), 2, predicted_old)
    alone = torch.cat([gated(row[None], predictor) for row in FEATURES])
    assert torch.equal(alone, gated(FEATURES, predictor))
    assert gated(FEATURES[:0], predictor).shape == (0, 4)


def test_labels_for_other_rows_are_refused():
    with pytest.raises(MethodError, match="3 labels for 4 rows"):
        GatedAligner(shifting(), 2, Oracle(LABELS[:3]))(FEATURES, predictor)


def test_the_energy_gate_needs_an_energy():
    with pytest.raises(MethodError, match="mean_shift"):
        GatedAligner(shifting(), 2, find_gate("energy"))(FEATURES, predictor)


@pytest.mark.parametrize("name", ["oracle", "predicted"])
def test_unknown_names_are_refused_and_the_oracle_has_none(name):
    with pytest.raises(ConfigError, match=f"{name}.*Oracle"):
        find_gate(name)
