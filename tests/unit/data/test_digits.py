"""Digits as folders: one per class, and permutations whose classes stay together."""

import pytest
import torch

from incdet.data.catalog import load_dataset
from incdet.data.digits import Digits, bundled_digits, permutations, write_digits, write_permuted_digits
from incdet.data.images import read_image
from incdet.errors import DataError
from incdet.tasks import build_stream


def few(count: int = 20) -> Digits:
    """Two images of every digit, for training and for testing."""
    digits = bundled_digits()
    return Digits("few", *(part[:count] for part in (digits.train_images, torch.arange(count) % 10) * 2))


def test_permutations_move_pixels_and_keep_all_else():
    own, first, second = permutations(few(), 3)
    assert own.train_images is not first.train_images
    assert torch.equal(own.train_images, few().train_images)
    for permuted in (first, second):
        assert not torch.equal(permuted.train_images, own.train_images)
        assert torch.equal(permuted.train_images.sort(dim=1).values, own.train_images.sort(dim=1).values)
        assert torch.equal(permuted.train_labels, own.train_labels)
        assert torch.equal(permuted.train_images, permuted.test_images)  # in one order: here they are the same images
    assert not torch.equal(first.train_images, second.train_images)


def test_a_permutation_depends_on_its_number_alone():
    *_, last_of_two = permutations(few(), 2)
    _, second_of_three, _ = permutations(few(), 3)
    assert torch.equal(last_of_two.train_images, second_of_three.train_images)


def test_permuted_digits_teach_one_permutation_after_the_other(tmp_path):
    write_permuted_digits(few(), tmp_path / "permuted_digits", 11)
    dataset = load_dataset("permuted_digits_train", tmp_path)
    assert len(dataset) == 11 * 20
    stream = build_stream("10x11", dataset.classes)
    assert stream[0].new == tuple(f"p00_{digit}" for digit in range(10))
    assert all(task.new == tuple(f"p{task.index - 1:02}_{digit}" for digit in range(10)) for task in stream)


def test_written_digits_are_read_back(tmp_path):
    write_digits(few(), tmp_path / "digits")
    dataset = load_dataset("digits_test", tmp_path)
    assert dataset.classes == tuple("0123456789")
    expected = few().test_images[[0, 10]].reshape(2, 8, 8)
    for image, pixels in zip(dataset.images[:2], expected, strict=True):
        assert torch.equal(read_image(image.path)[0], (pixels * 255).round().to(torch.uint8))


def test_a_folder_that_is_there_stays(tmp_path):
    for write in (lambda: write_digits(few(), tmp_path), lambda: write_permuted_digits(few(), tmp_path, 2)):
        with pytest.raises(DataError, match=r"exists already.*--output"):
            write()


def test_a_draft_that_fails_leaves_nothing(tmp_path):
    broken = Digits("broken", torch.zeros(2, 64), torch.zeros(1), torch.zeros(0, 64), torch.zeros(0))
    with pytest.raises(ValueError, match="shorter"):
        write_digits(broken, tmp_path / "new" / "digits")
    assert not list((tmp_path / "new").iterdir())


def test_missing_permuted_digits_say_how_to_write_them(tmp_path):
    with pytest.raises(DataError, match=r"make_digits.py --permutations 10 --output .*permuted_digits"):
        load_dataset("permuted_digits_train", tmp_path)
