"""Rules that rank the images of a class."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from incdet.data.records import ImageRecord
from incdet.data.views import TrainImage
from incdet.replay.selection import class_features, images_of, rank_balanced, rank_herding, rank_mean, rank_random


def image(labels, unused=()) -> TrainImage:
    """An image with objects of these labels; ``unused`` are positions of ignored ones."""
    labels = np.array(labels, dtype=np.int64)
    used = np.array([i not in unused for i in range(len(labels))], dtype=bool)
    boxes, none = np.zeros((len(labels), 4), np.float32), np.zeros(len(labels), dtype=bool)
    record = ImageRecord("x", Path("x.png"), 10, 10, boxes, labels, none, none)
    return TrainImage(record, boxes, labels, np.ones(len(labels), np.float32), used, used, frozenset({0, 1, 2}))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


IMAGES = [image([0]), image([1]), image([0, 1, 2]), image([0, 0]), image([0, 2], unused=[0]), image([2, 0]), image([])]


def test_an_image_shows_a_class_where_a_usable_object_of_it_is():
    assert images_of(IMAGES, 0) == [0, 2, 3, 5]
    assert images_of(IMAGES, 1) == [1, 2]
    assert images_of(IMAGES, 2) == [2, 4, 5]
    assert images_of(IMAGES, 3) == []


def test_random_order_is_a_permutation_that_follows_the_generator():
    orders = [rank_random(IMAGES, 0, seeded(seed)) for seed in range(30)]
    assert all(sorted(order) == [0, 2, 3, 5] for order in orders)
    assert len(set(map(tuple, orders))) > 10
    assert rank_random(IMAGES, 0, seeded(3)) == orders[3]
    assert {order[0] for order in orders} == {0, 2, 3, 5}


def test_balanced_order_shows_most_classes_first_and_is_random_among_equals():
    orders = [rank_balanced(IMAGES, 0, seeded(seed)) for seed in range(30)]
    assert all(order[:2] == [2, 5] for order in orders)  # three classes, then two
    assert {tuple(order[2:]) for order in orders} == {(0, 3), (3, 0)}


def test_balanced_order_does_not_count_ignored_objects():
    images = [image([0, 1, 2], unused=[1, 2]), image([0, 1])]
    assert rank_balanced(images, 0, seeded(0)) == [1, 0]


def test_herding_by_hand():
    """Mean 2: first 2.5 (0.5 away); then 1 gives mean 1.75; then 4.5 gives 8 / 3, 0 gives 3.5 / 3."""
    features = [torch.tensor([value]) for value in (0.0, 1.0, 2.5, 4.5)]
    assert rank_herding(features, 4) == [2, 1, 3, 0]
    assert rank_herding(features, 2) == [2, 1]


def greedy(features: np.ndarray, count: int) -> list[int]:
    """Herding as its definition says, one mean at a time."""
    chosen: list[int] = []
    for _ in range(min(count, len(features))):
        rest = [i for i in range(len(features)) if i not in chosen]
        distances = [np.linalg.norm(features[chosen + [i]].mean(axis=0) - features.mean(axis=0)) for i in rest]
        chosen.append(rest[int(np.argmin(distances))])
    return chosen


@pytest.mark.parametrize("seed", range(10))
def test_herding_equals_the_greedy_choice_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rng.integers(1, 12), 3))
    count = int(rng.integers(1, 14))
    assert rank_herding([torch.from_numpy(row) for row in features], count) == greedy(features, count)


@pytest.mark.parametrize("seed", range(5))
def test_herding_of_directions_follows_the_largest_product_with_what_is_missing(seed):
    """How iCaRL's and LUCIR's releases choose: w begins as the mean, and each choice adds the mean less itself."""
    features = torch.nn.functional.normalize(torch.randn(9, 3, generator=seeded(seed), dtype=torch.float64), dim=1)
    mean = features.mean(dim=0)
    missing, chosen = mean.clone(), []
    for _ in range(9):
        products = features @ missing
        products[chosen] = -torch.inf
        chosen.append(int(products.argmax()))
        missing += mean - features[chosen[-1]]
    assert rank_herding(list(features), 9) == chosen


def test_herding_starts_with_the_best_single_image():
    features = torch.randn(8, 4, generator=seeded(0), dtype=torch.float64)
    target = features.mean(dim=0)
    best = min(range(8), key=lambda i: float((features[i] - target).norm()))
    assert rank_herding(list(features), 1) == [best]


def test_herding_takes_no_image_twice_even_among_equals():
    same = [torch.ones(2)] * 4
    assert sorted(rank_herding(same, 9)) == [0, 1, 2, 3]
    assert rank_herding([], 3) == []


def test_a_shorter_herd_is_the_beginning_of_a_longer_one():
    features = list(torch.randn(9, 3, generator=seeded(1)))
    orders = [rank_herding(features, count) for count in range(10)]
    assert all(longer[:-1] == shorter for shorter, longer in itertools.pairwise(orders))


def test_the_feature_of_an_image_is_the_normalised_mean_of_its_objects_of_the_class():
    images = [image([0, 1, 0]), image([1]), image([0, 0], unused=[1])]
    features = [
        torch.tensor([[6.0, 0.0], [9.0, 9.0], [0.0, 8.0]]),
        torch.tensor([[1.0, 1.0]]),
        torch.tensor([[0.0, 2.0], [7.0, 0.0]]),
    ]
    positions, means = class_features(images, features, 0)
    assert positions == [0, 2]
    torch.testing.assert_close(torch.stack(means), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


def test_nearest_to_the_mean_by_hand():
    """Means 2 and (2, 0); equals keep their order."""
    assert rank_mean(torch.tensor([[0.0], [4.0], [1.0], [3.0]])) == [2, 3, 0, 1]
    assert rank_mean(torch.tensor([[6.0, 0.0], [0.0, 3.0], [2.0, -3.0], [0.0, 0.0]])) == [3, 2, 1, 0]
