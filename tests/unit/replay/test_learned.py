"""Pixels that are learned: the unrolled step by hand, its gradient by finite differences, the release's loss."""

import math

import pytest
import torch
from tiny import random_images, tiny_config, tiny_detector
from torch import Tensor
from torch.nn.functional import cross_entropy

from incdet.replay.learned import (
    PixelModel,
    bilevel_objective,
    draw,
    halved_rates,
    learn_pixels,
    prototype_loss,
    prototype_objective,
    unrolled,
)
from incdet.structures import Batch, Target


def labelled(images: list[Tensor], labels: list[int]) -> Batch:
    box = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    return Batch(images, [Target.from_boxes(box, torch.tensor([label])) for label in labels])


def labels_of(batch: Batch) -> Tensor:
    return torch.cat([target.labels for target in batch.targets])


def square(parameters, batch: Batch) -> Tensor:
    """(w x - 1)^2 of one weight and one pixel."""
    return (parameters["w"] * batch.images[0] - 1).square().sum()


def two_layers(parameters, batch: Batch) -> Tensor:
    x = torch.stack([image.flatten() for image in batch.images])
    hidden = torch.tanh(x @ parameters["first"])
    return cross_entropy(hidden @ parameters["second"], labels_of(batch))


@pytest.fixture
def net():
    """Parameters, three exemplars and five queries of two pixels each, in double precision."""
    generator = torch.Generator().manual_seed(0)

    def draw_doubles(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    parameters = {"first": draw_doubles(6, 4) - 0.5, "second": draw_doubles(4, 2) - 0.5}
    images = [draw_doubles(3, 1, 2) for _ in range(8)]
    parameters = {name: value.requires_grad_() for name, value in parameters.items()}
    return parameters, labelled(images[:3], [0, 1, 1]), labelled(images[3:], [0, 1, 0, 0, 1])


# ---------------------------------------------------------------------- the paper's two levels


def test_an_unrolled_step_by_hand():
    pixel = torch.tensor([0.25], requires_grad=True)
    weight = torch.tensor([1.0], requires_grad=True)
    moved = unrolled(square, {"w": weight}, labelled([pixel], [0]), steps=1, rate=0.1)["w"]
    assert moved.item() == pytest.approx(1.0375)  # 1 - 0.1 * 2 * (0.25 - 1) * 0.25
    (slope,) = torch.autograd.grad(moved, pixel)
    assert slope.item() == pytest.approx(0.1)  # -0.1 * 2 * (2 * 0.25 - 1)
    assert weight.item() == 1.0


def test_two_unrolled_steps_are_one_after_the_other():
    weight, batch = torch.tensor([1.0], requires_grad=True), labelled([torch.tensor([0.25])], [0])
    once = unrolled(square, {"w": weight}, batch, steps=1, rate=0.1)
    again = unrolled(square, once, batch, steps=1, rate=0.1)
    assert torch.equal(unrolled(square, {"w": weight}, batch, steps=2, rate=0.1)["w"], again["w"])


@pytest.mark.parametrize("steps", [1, 3])
def test_the_outer_gradient_equals_finite_differences(net, steps):
    parameters, exemplars, queries = net
    objective = bilevel_objective(two_layers, parameters, steps, rate=0.7)
    pixels = torch.stack(exemplars.images).requires_grad_()

    def loss(values: Tensor) -> Tensor:
        return objective(labelled(list(values), [0, 1, 1]), queries)

    (gradient,) = torch.autograd.grad(loss(pixels), pixels)
    step, expected = 1e-5, torch.empty_like(pixels)
    for index in range(pixels.numel()):
        nudge = torch.zeros(pixels.numel(), dtype=torch.float64)
        nudge[index] = step
        nudge = nudge.view_as(pixels)
        expected.view(-1)[index] = ((loss(pixels + nudge) - loss(pixels - nudge)) / (2 * step)).detach()
    assert gradient.abs().min() > 1e-5
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-5, atol=1e-8)


# ---------------------------------------------------------------------- the release's one


def test_the_prototype_loss_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])  # the means are (1/2, 1/2) and (0, 3)
    queries = torch.tensor([[0.0, 5.0], [2.0, 0.0]])
    diagonal = 1 / math.sqrt(2)
    expected = [math.log(math.exp(diagonal) + math.exp(1)) - 1, math.log(math.exp(diagonal) + 1) - diagonal]
    loss = prototype_loss(features, torch.tensor([0, 0, 1]), queries, torch.tensor([1, 0]), classes=2)
    assert loss.item() == pytest.approx(sum(expected) / 2)


def test_known_exemplars_count_in_the_means_and_take_no_gradient():
    known, new = torch.tensor([[[1.0]], [[0.0]]]), torch.tensor([[[0.0]], [[1.0]]])

    def features(batch: Batch) -> tuple[Tensor, Tensor]:
        return torch.stack([image.flatten() for image in batch.images]), labels_of(batch)

    known, new = known.requires_grad_(), new.requires_grad_()
    queries = labelled([torch.tensor([[0.5], [1.0]])], [1])
    objective = prototype_objective(features, labelled([known], [0]), classes=2)
    loss = objective(labelled([new], [1]), queries)
    both = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = prototype_loss(both, torch.tensor([0, 1]), torch.tensor([[0.5, 1.0]]), torch.tensor([1]), classes=2)
    assert torch.equal(loss.detach(), expected)
    loss.backward()
    assert known.grad is None
    assert new.grad.any()
    alone = prototype_objective(features, Batch([], []), classes=2)(labelled([new], [1]), queries)
    assert alone.isfinite()


# ---------------------------------------------------------------------- steps on pixels


def learn(batch: Batch, objective, rates, count: int = 99) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return learn_pixels(batch, [batch] * len(rates), objective, rates, count, generator)


@pytest.mark.parametrize("slope", [1e-4, 3.0])
def test_steps_are_as_long_as_their_rate_whatever_the_slope(slope):
    start = labelled([torch.full((3, 1, 1), 0.5)], [0])
    learned = learn(start, lambda exemplars, queries: slope * exemplars.images[0].sum(), [0.1, 0.05])
    torch.testing.assert_close(learned.images[0], torch.full((3, 1, 1), 0.5 - 0.1 - 0.05), rtol=0, atol=1e-4)
    assert torch.equal(start.images[0], torch.full((3, 1, 1), 0.5))
    assert not learned.images[0].requires_grad
    assert learned.targets is start.targets


@pytest.mark.parametrize("sign", [-1, 1])
def test_pixels_stay_from_0_to_1(sign):
    start = labelled([torch.rand(3, 2, 2), torch.rand(3, 4, 1)], [0, 1])
    objective = lambda exemplars, queries: sign * sum(image.sum() for image in exemplars.images)  # noqa: E731
    learned = learn(start, objective, [5.0, 5.0])
    assert [image.shape for image in learned.images] == [image.shape for image in start.images]
    assert all((image == (0.0 if sign > 0 else 1.0)).all() for image in learned.images)


def test_learned_exemplars_teach_the_queries_better(net):
    parameters, exemplars, queries = net
    objective = bilevel_objective(two_layers, parameters, steps=1, rate=2.0)
    generator = torch.Generator().manual_seed(0)
    learned = learn_pixels(exemplars, [queries] * 30, objective, [0.02] * 30, 3, generator)
    assert objective(learned, queries) < objective(exemplars, queries) - 0.01


def test_a_step_moves_only_the_exemplars_that_it_draws():
    start = labelled([torch.full((3, 1, 1), 0.5) for _ in range(5)], [0] * 5)
    learned = learn(start, lambda exemplars, queries: sum(i.sum() for i in exemplars.images), [0.1], count=2)
    moved = [not torch.equal(image, before) for image, before in zip(learned.images, start.images, strict=True)]
    assert sum(moved) == 2


def test_what_is_drawn_keeps_its_labels_and_its_way_back():
    images = [torch.full((3, 1, 1), float(number), requires_grad=True) for number in range(6)]
    drawn = draw(labelled(images, [0, 1, 2, 3, 4, 5]), 4, torch.Generator().manual_seed(0))
    assert len(set(labels_of(drawn).tolist())) == 4
    assert [int(image[0]) for image in drawn.images] == labels_of(drawn).tolist()
    assert all(any(image is one for one in images) for image in drawn.images)


def test_the_rate_is_halved_after_so_many_epochs():
    assert halved_rates(0.8, epochs=5, steps=2, halve_every=2) == [0.8] * 4 + [0.4] * 4 + [0.2] * 2
    assert halved_rates(0.8, epochs=5, steps=0, halve_every=2) == []


# ---------------------------------------------------------------------- a detector as such a model


@pytest.fixture(params=["fpn", "mlp"])
def detector(request):
    keys = ("TASK", "classification", "TASKS.SPLIT", "2+2", "INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.MIN_SIZE_TEST", 32)
    backbone = ("MODEL.BACKBONE.NAME", "mlp") if request.param == "mlp" else ("MODEL.BACKBONE.FREEZE_AT", 2)
    return tiny_detector(tiny_config("fpn", *keys, *backbone)).train()


def test_gradients_reach_the_pixels_even_through_frozen_stages_and_leave_the_detector_alone(detector):
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    trains = [parameter.requires_grad for parameter in detector.parameters()]
    model = PixelModel(detector)
    pixels = [image.requires_grad_() for image in random_images(2)]
    batch = labelled(pixels, [0, 1])
    objective = bilevel_objective(model.loss, model.trained, steps=1, rate=0.1)
    objective(batch, labelled(random_images(2, seed=1), [1, 0])).backward()
    assert all(image.grad.any() for image in pixels)
    assert all(parameter.grad is None for parameter in detector.parameters())
    assert [parameter.requires_grad for parameter in detector.parameters()] == trains
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert detector.training


def test_its_loss_and_features_are_the_detectors(detector):
    model, batch = PixelModel(detector), labelled(random_images(2), [0, 1])
    with detector.evaluating():
        regions = detector.region_pass(detector.image_pass(batch))
    torch.testing.assert_close(model.loss(model.trained, batch), cross_entropy(regions.logits, regions.labels))
    features, labels = model.features(batch)
    torch.testing.assert_close(features, regions.features)
    assert labels.tolist() == [0, 1]
    assert {name.removeprefix("detector.") for name in model.trained} == {
        name for name, parameter in detector.named_parameters() if parameter.requires_grad
    }
