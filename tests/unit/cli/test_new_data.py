"""The folder of new labels: how it is found, split and written."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import write_folder

from incdet.cli.new_data import (
    data_name,
    load_new_data,
    load_old_test,
    relabel,
    save_set,
    set_name,
    with_stand_ins,
    write_once,
)
from incdet.data.catalog import load_dataset
from incdet.data.coco import to_coco
from incdet.errors import ConfigError, DataError
from incdet.structures import Detections

OLD = ("disc", "bar")


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("voc") / "set", 20, ("ring", "bar"), 1)


def write_coco(folder, voc, place="images", annotations="labels.json"):
    """The VOC folder's content in COCO layout; ``place`` holds the images."""
    (folder / place).mkdir(parents=True)
    data = load_dataset(f"voc:{voc}:*")
    for image in data.images:
        (folder / place / image.path.name).write_bytes(image.path.read_bytes())
    file = folder / annotations
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(to_coco(data)))
    return folder


def test_names_and_layouts(voc, tmp_path):
    assert data_name("shapes_train") == "shapes_train"
    assert data_name("voc_2007_trainval,voc_2012_trainval") == "voc_2007_trainval,voc_2012_trainval"
    assert data_name("voc:a:train") == "voc:a:train"
    assert data_name(str(voc)) == f"voc:{voc}:*"
    coco = write_coco(tmp_path / "coco", voc, "images", "annotations/instances.json")
    assert data_name(str(coco)) == f"coco:{coco}/annotations/instances.json:{coco}/images"
    flat = write_coco(tmp_path / "flat", voc, ".", "labels.json")
    assert data_name(str(flat)) == f"coco:{flat}/labels.json:{flat}"
    assert load_dataset(data_name(str(flat))).fingerprint() == load_dataset(f"voc:{voc}:*").fingerprint()


@pytest.mark.parametrize(
    ("splits", "expected"), [(("train", "val", "trainval"), "trainval"), (("train", "test"), "train")]
)
def test_lists_of_images_are_respected(tmp_path, splits, expected):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    for split in splits:
        (tmp_path / "ImageSets" / "Main" / f"{split}.txt").touch()
    assert data_name(str(tmp_path)) == f"voc:{tmp_path}:{expected}"


def test_what_is_no_data_set_is_refused(voc, tmp_path):
    with pytest.raises(DataError, match="neither a folder nor a known data set"):
        data_name(str(tmp_path / "typo"))
    with pytest.raises(DataError, match="there is no annotation file"):
        data_name(str(tmp_path))
    write_coco(tmp_path / "two", voc)
    (tmp_path / "two" / "more.json").write_text("{}")
    with pytest.raises(DataError, match="2 annotation files"):
        data_name(str(tmp_path / "two"))
    (tmp_path / "two" / "labels.json").unlink()
    with pytest.raises(DataError, match=r"its first image \(None\) is in none of"):
        data_name(str(tmp_path / "two"))
    (tmp_path / "a,b").mkdir()
    with pytest.raises(DataError, match="a comma joins"):
        data_name(str(tmp_path / "a,b"))
    (tmp_path / "only" / "Annotations").mkdir(parents=True)
    (tmp_path / "only" / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "only" / "ImageSets" / "Main" / "test.txt").touch()
    with pytest.raises(DataError, match=r"has the splits test and neither"):
        data_name(str(tmp_path / "only"))


def test_a_part_is_kept_from_training_and_only_chosen_labels_stay(voc):
    new = load_new_data(f"voc:{voc}:*", "", ["ring"], OLD)
    assert new.classes == ("disc", "bar", "ring")
    assert new.num_old == 2
    assert (len(new.train), len(new.test)) == (16, 4)
    assert {int(label) for image in new.train.images for label in image.labels} == {2}
    assert all(image.unlabelled == {0, 1} for image in (*new.train.images, *new.test.images))
    again = load_new_data(f"voc:{voc}:*", "", ["ring"], OLD)
    assert again.train.fingerprint() == new.train.fingerprint()


def test_a_class_without_an_image_to_learn_from_is_refused(tmp_path):
    """Classes are held out one after the other, so one of three that a single image shows is kept from training."""
    folder = write_folder(tmp_path / "set", 20, ("ring",), 1, present=("ring",))
    for number, rare in enumerate(("star", "sun", "sword")):
        file = folder / "Annotations" / f"im{number:03d}.xml"
        file.write_text(file.read_text().replace("<name>ring</name>", f"<name>{rare}</name>"))
    with pytest.raises(DataError, match=r"too few images hold star\. Label more, or leave it out by --classes"):
        load_new_data(f"voc:{folder}:*", "", [], OLD)
    assert load_new_data(f"voc:{folder}:*", "", ["ring"], OLD).classes == ("disc", "bar", "ring")


def test_what_is_written_is_read_back_the_same(voc, tmp_path):
    new = load_new_data(f"voc:{voc}:*", "", ["ring"], OLD)
    save_set(tmp_path / "train.json", new.train)
    again = load_dataset(set_name(tmp_path / "train.json", new.train))
    assert again.fingerprint() == new.train.fingerprint()
    assert again.images[0].path == new.train.images[0].path


def test_an_old_test_judges_old_classes_only(voc):
    new = load_new_data(f"voc:{voc}:*", "", ["ring"], OLD)
    old_test = load_old_test(f"voc:{voc}:*", "", new)
    assert {int(label) for image in old_test.images for label in image.labels} == {1}
    assert old_test.images[0].unlabelled == {0, 2}  # no disc is among that set's classes
    assert old_test.images[0].image_id == "old_test/im000"


def test_relabelling_keeps_flags_beside_their_boxes(voc):
    data = load_dataset(f"voc:{voc}:*")
    index = next(i for i, image in enumerate(data.images) if set(image.labels) == {0, 1})
    image = data.images[index]
    marked = replace(data, images=(replace(image, difficult=image.labels == data.classes.index("ring")),))
    kept = relabel(marked, ("disc", "ring"), ["ring"]).images[0]
    assert kept.labels.tolist() == [1]
    assert kept.difficult.tolist() == [True]
    assert kept.boxes.tolist() == image.boxes[image.labels == data.classes.index("ring")].tolist()


def test_confident_detections_stand_in_unless_they_lie_on_a_label(voc):
    data = load_new_data(f"voc:{voc}:*", "", ["ring"], OLD).test
    image = next(image for image in data.images if len(image.boxes) == 1)
    ring = image.boxes[0]
    found = Detections(
        torch.tensor(np.stack([[1, 1, 9, 9], ring, [2, 2, 8, 8]]), dtype=torch.float32),
        torch.tensor([0.9, 0.8, 0.69]),
        torch.tensor([1, 0, 0]),
    )
    stood = with_stand_ins(replace(data, images=(image,)), [found]).images[0]
    assert stood.boxes.tolist() == [ring.tolist(), [1, 1, 9, 9]]
    assert stood.labels.tolist() == [2, 1]
    assert len(stood.difficult) == len(stood.crowd) == 2
    assert stood.unlabelled == frozenset()


def test_a_file_that_differs_is_never_overwritten(tmp_path):
    file = tmp_path / "deep" / "a.json"
    write_once(file, b"one")
    write_once(file, b"one")
    with pytest.raises(ConfigError, match="another model or other data"):
        write_once(file, b"two")
    assert file.read_bytes() == b"one"
