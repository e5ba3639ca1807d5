"""Class means, what they say of features, and how they lie beside a model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from incdet.errors import CheckpointError, DataError
from incdet.replay.nearest_mean import FILE, NearestMean, class_means, load_means, mean_direction, save_means


def image(label: int) -> SimpleNamespace:
    return SimpleNamespace(labels=np.array([label]), use_roi=np.array([True]))


def forbidden(features):
    raise AssertionError("the predictor was asked")


def test_a_mean_of_directions_is_a_direction():
    found = mean_direction([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])])
    torch.testing.assert_close(found, torch.tensor([0.5**0.5, 0.5**0.5]))


def test_class_means_by_hand_do_not_see_lengths():
    images = [image(0), image(1), image(0)]
    features = [torch.tensor([[9.0, 0.0]]), torch.tensor([[-3.0, 4.0]]), torch.tensor([[0.0, 0.1]])]
    expected = torch.tensor([[0.5**0.5, 0.5**0.5], [-0.6, 0.8]])
    torch.testing.assert_close(class_means(images, features, ("a", "b")), expected)


def test_a_class_without_an_image_is_named():
    with pytest.raises(DataError, match=r"No image of the class 'b' is stored.*READING"):
        class_means([image(0)], [torch.ones(1, 2)], ("a", "b"))


def test_the_nearest_mean_wins_whatever_the_length_of_a_feature():
    torch.manual_seed(0)
    means = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    features = torch.randn(50, 4) * torch.rand(50, 1).mul(9)
    directions = features / features.norm(dim=1, keepdim=True)
    distances = (directions[:, None] - means).norm(dim=2)
    assert torch.equal(NearestMean(means)(features, forbidden).argmax(dim=1), distances.argmin(dim=1))


def test_means_come_back_from_beside_the_model(tmp_path):
    means = torch.randn(3, 4)
    save_means(tmp_path, means, ("a", "b", "c"))
    assert torch.equal(load_means(tmp_path), means)


def test_a_model_that_was_copied_without_its_means_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=rf"{FILE}.*cannot be read.*beside the model.safetensors"):
        load_means(tmp_path)
