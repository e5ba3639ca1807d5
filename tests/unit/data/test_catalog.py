import json
import shutil

import cv2
import numpy as np
import pytest

from incdet.data.catalog import known_names, load_dataset
from incdet.data.shapes import SHAPE_CLASSES, write_shapes
from incdet.data.voc import VOC_CLASSES
from incdet.errors import DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root / "shapes", train=4, test=3, size=64)
    return root


def test_shapes(root):
    dataset = load_dataset("shapes_train", root)
    assert (dataset.name, len(dataset), dataset.classes) == ("shapes_train", 4, SHAPE_CLASSES)


def test_voc_names_lead_to_their_folders(tmp_path):
    for year in ("2007", "2012"):
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (tmp_path / f"VOC{year}" / part).mkdir(parents=True)
        base = tmp_path / f"VOC{year}"
        (base / "ImageSets/Main/trainval.txt").write_text(f"{year}_1\n")
        cv2.imwrite(str(base / f"JPEGImages/{year}_1.jpg"), np.zeros((8, 9, 3), dtype=np.uint8))
        (base / f"Annotations/{year}_1.xml").write_text("<annotation/>")
    dataset = load_dataset("voc_2007_trainval, voc_2012_trainval", tmp_path)
    assert dataset.name == "voc_2007_trainval,voc_2012_trainval"
    assert [image.image_id for image in dataset.images] == ["2007_1", "2012_1"]
    assert dataset.classes == VOC_CLASSES


def test_coco_names_lead_to_their_files(tmp_path):
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/val2017").mkdir()
    cv2.imwrite(str(tmp_path / "coco/val2017/1.jpg"), np.zeros((8, 9, 3), dtype=np.uint8))
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 9, "height": 8}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [],
    }
    file = tmp_path / "coco/annotations/instances_val2017.json"
    file.write_text(json.dumps(content))
    dataset = load_dataset("coco_2017_val", tmp_path)
    assert (dataset.name, len(dataset), dataset.classes) == ("coco_2017_val", 1, ("person",))
    free = load_dataset(f"coco:{file}:{tmp_path / 'coco/val2017'}")
    assert free.fingerprint() == dataset.fingerprint()


def test_free_form_and_given_classes(root):
    dataset = load_dataset(f"voc:{root / 'shapes'}:test", classes=SHAPE_CLASSES[::-1])
    known = load_dataset("shapes_test", root)
    assert len(dataset) == 3
    for image, same in zip(dataset.images, known.images, strict=True):
        assert np.array_equal(image.labels, 19 - same.labels)


def test_an_empty_list_of_classes_means_those_of_the_data(root):
    assert load_dataset("shapes_test", root, classes=()).classes == SHAPE_CLASSES
    found = load_dataset(f"voc:{root / 'shapes'}:test", classes=()).classes
    assert set(found) <= set(SHAPE_CLASSES)
    assert found == tuple(sorted(found))
    assert found


def test_joined_sets_must_share_classes_but_no_image(root, tmp_path):
    joined = load_dataset("shapes_train,shapes_test", root)
    assert len(joined) == 7
    with pytest.raises(DataError, match="train_00000: the image id occurs 2 times"):
        load_dataset("shapes_train,shapes_train", root)
    shutil.copytree(root / "shapes", tmp_path / "own")
    (tmp_path / "own/Annotations/test_00000.xml").write_text("<annotation/>")
    with pytest.raises(DataError, match="cannot be joined"):
        load_dataset(f"shapes_train,voc:{tmp_path / 'own'}:test", root)


def test_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(DataError, match=r"Unknown data set 'shape_train'\. Did you mean 'shapes_train'\?") as caught:
        load_dataset("shape_train")
    for name in (*known_names(), "voc:<folder>:<split>"):
        assert name in str(caught.value)
    with pytest.raises(DataError, match="Expected the name of a data set"):
        load_dataset(" , ")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("shapes_test", r"make_shapes\.py"),
        ("voc_2007_test", r"prepare_voc\.py"),
        ("coco_2017_train", r"prepare_coco\.py"),
        ("voc:nowhere:train", "Correct the path"),
    ],
)
def test_missing_folder_says_what_creates_it(tmp_path, name, remedy):
    with pytest.raises(DataError, match=rf"does not exist\..*{remedy}"):
        load_dataset(name, tmp_path)
