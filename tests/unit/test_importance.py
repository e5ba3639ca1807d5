"""Importances: derivatives of every image by itself, averaged, added up over tasks, kept in files."""

import pytest
import torch
from torch import nn

from incdet.errors import CheckpointError
from incdet.importance import (
    Anchors,
    add_importance,
    draw,
    load_importance,
    measure,
    own_logits,
    save_importance,
    shared_parameters,
)
from incdet.tensors import save_tensors


class Tiny(nn.Module):
    """A shared layer, one that nothing reads, a frozen one and a classifier."""

    def __init__(self):
        super().__init__()
        self.shared, self.unread, self.frozen = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 4)
        self.classifier = nn.Linear(4, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.classifier(self.frozen(self.shared(x).relu()))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tiny()


def alone(tensor):
    return tensor


def test_the_parameters_that_all_classes_share_train_and_lie_outside_the_classifier(model):
    assert set(shared_parameters(model)) == {"shared.weight", "shared.bias", "unread.weight", "unread.bias"}


@pytest.mark.parametrize("magnitude", [torch.abs, torch.square])
def test_every_images_derivative_counts_by_itself(model, magnitude):
    images = torch.randn(5, 3)
    found = measure(shared_parameters(model), images, lambda x: model(x).square().sum(), magnitude, alone)
    expected = torch.zeros(4, 3)
    for image in images:
        model.zero_grad()
        model(image).square().sum().backward()
        expected += magnitude(model.shared.weight.grad) / 5
    assert torch.allclose(found["shared.weight"], expected)
    model.zero_grad()
    (model(images).square().sum() / 5).backward()  # derivatives of a batch cancel
    assert not torch.allclose(found["shared.weight"], magnitude(model.shared.weight.grad), rtol=0.01)


def test_measuring_leaves_no_gradients_and_what_no_score_reads_has_no_importance(model):
    found = measure(shared_parameters(model), torch.randn(2, 3), lambda x: model(x).sum(), torch.abs, alone)
    assert set(found) == {"shared.weight", "shared.bias"}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_is_measured_where_everything_is_frozen(model):
    model.requires_grad_(False)
    assert measure(shared_parameters(model), torch.randn(2, 3), lambda x: model(x).sum(), torch.abs, alone) == {}


def test_processes_share_the_images_and_weigh_each_the_same(model):
    images, parameters = torch.randn(5, 3), shared_parameters(model)
    seen: list[list[torch.Tensor]] = []

    def measured(part, average):
        return measure(parameters, part, lambda x: model(x).square().sum(), torch.abs, average)

    for part in (images[0::2], images[1::2]):
        given: list[torch.Tensor] = []
        measured(part, lambda tensor, given=given: given.append(tensor) or tensor)
        seen.append(given)
    means = iter([(one + other) / 2 for one, other in zip(*seen, strict=True)])
    together, whole = measured(images[0::2], lambda _: next(means)), measured(images, alone)
    assert all(torch.allclose(together[name], whole[name]) for name in whole)


def test_leaving_an_anchor_costs_and_the_optimiser_is_drawn_back(model):
    anchors = Anchors(model, {"shared.bias": torch.tensor([0.5, 0.0, 1.0, 0.25])}, weight=2.0, rate=0.1)
    assert anchors.penalty(model).item() == 0
    with torch.no_grad():
        model.shared.bias += torch.tensor([1.0, 5.0, -1.0, 2.0])
    assert anchors.penalty(model).item() == pytest.approx(1 + 0 + 2 + 0.5 * 4)
    away = model.shared.bias.detach().clone()
    optimizer = torch.optim.SGD([model.shared.bias], lr=0.1)
    anchors.penalty(model).backward()
    optimizer.step()
    assert (model.shared.bias - away).tolist() == pytest.approx([-0.2, 0.0, 0.4, -0.2])  # -0.1 * 2 * importance * d


def test_no_price_lets_a_step_overshoot_its_anchor(model):
    importance = torch.tensor([1.0, 100.0, 1e9, 0.0])
    anchors = Anchors(model, {"shared.bias": importance}, weight=1.0, rate=0.1)
    with torch.no_grad():
        model.shared.bias += 1.0
    away = model.shared.bias.detach().clone()
    optimizer = torch.optim.SGD([model.shared.bias], lr=0.1)
    anchors.penalty(model).backward()
    optimizer.step()
    assert (model.shared.bias - away).tolist() == pytest.approx([-0.2, -1.0, -1.0, 0.0])


def test_importances_add_up_and_a_frozen_layer_keeps_its_own():
    earlier = {"a": torch.tensor([1.0]), "frozen_now": torch.tensor([5.0])}
    new = {"a": torch.tensor([2.0]), "free_now": torch.tensor([7.0])}
    total = add_importance(earlier, new)
    assert {name: weight.item() for name, weight in total.items()} == {"a": 3.0, "frozen_now": 5.0, "free_now": 7.0}
    assert earlier["a"].item() == 1.0
    assert new["a"].item() == 2.0


def test_with_one_head_per_task_the_own_heads_logits_count():
    logits = torch.arange(6.0).view(2, 3)
    assert own_logits(logits, 2, True).tolist() == [[2.0], [5.0]]
    assert own_logits(logits, 2, False) is logits


def test_images_are_drawn_by_the_seed_without_repetition():
    images = [*range(50)]
    assert sorted(draw(images, 100, 1)) == images
    assert draw(images, 10, 1) == draw(images, 100, 1)[:10]
    assert draw(images, 10, 1) != draw(images, 10, 2)


def test_a_file_gives_back_what_was_kept_and_refuses_what_is_none(tmp_path):
    save_importance(tmp_path / "kept.safetensors", {"a": torch.tensor([1.5])})
    assert load_importance(tmp_path / "kept.safetensors")["a"].tolist() == [1.5]
    save_tensors(tmp_path / "other.safetensors", "aligner", {}, None)
    for name in ("missing", "other"):
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors.*--resume"):
            load_importance(tmp_path / f"{name}.safetensors")
