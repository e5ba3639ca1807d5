import copy
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from incdet.data.coco import load_coco, to_coco
from incdet.errors import DataError

CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 100, "height": 80},
        {"id": 3, "file_name": "deep/b.png", "width": 50, "height": 60},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [10.5, 20, 30, 40.25], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 100, 80], "iscrowd": 1},
        {"id": 5, "image_id": 7, "category_id": 2, "bbox": [1, 1, 5, 5], "difficult": 1},
        {"id": 4, "image_id": 7, "category_id": 2, "bbox": [1, 1, 5, 5], "ignore": 1},
    ],
}


@pytest.fixture
def content():
    return copy.deepcopy(CONTENT)


def write(folder, content):
    for name, (width, height) in {"a.png": (100, 80), "deep/b.png": (50, 60)}.items():
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((height, width, 3), dtype=np.uint8))
    file = folder / "instances.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def load(folder, content, **kwargs):
    return load_coco(write(folder, content), folder / "images", **kwargs)


def test_boxes_classes_and_flags(tmp_path, content):
    dataset = load(tmp_path, content)
    assert dataset.name == "instances"
    assert dataset.classes == ("cat", "dog")  # by category id
    first, second = dataset.images
    assert (first.image_id, first.width, first.height) == ("7", 100, 80)
    assert first.path == tmp_path / "images" / "a.png"
    assert first.boxes.tolist() == [[10.5, 20, 40.5, 60.25], [0, 0, 100, 80], [1, 1, 6, 6], [1, 1, 6, 6]]
    assert first.boxes.dtype == np.float32
    assert first.labels.tolist() == [1, 0, 0, 0]
    assert first.crowd.tolist() == [False, True, False, False]
    assert first.difficult.tolist() == [False, False, True, True]
    assert second.boxes.shape == (0, 4)


def test_given_classes_set_the_labels(tmp_path, content):
    assert load(tmp_path, content, classes=["dog", "cat"]).images[0].labels.tolist() == [0, 1, 1, 1]
    with pytest.raises(DataError, match=r"annotations\[1\]/category_id: unknown class 'cat'; the classes are dog"):
        load(tmp_path, content, classes=["dog"])


def test_a_published_box_of_no_height_is_left_out_and_any_other_refused(tmp_path, content):
    content["images"][0]["id"] = 200365
    for entry in content["annotations"]:
        entry["image_id"] = 200365
    content["annotations"][0]["bbox"] = [96.65, 38.33, 1.03, 0.0]
    assert len(load(tmp_path, content).images[0].labels) == 3
    content["annotations"][0]["bbox"] = [96.65, 38.33, 0.0, 1.03]
    with pytest.raises(DataError, match="positive width"):
        load(tmp_path, content)


DAMAGE = [
    ("images", 1, {"id": 7}, r"images\[1\]/id: the image id 7 occurs twice"),
    ("images", 0, {"width": 0}, r"images\[0\]: the image is 0 x 80 pixels"),
    ("images", 0, {"width": "100"}, r"images\[0\]: width has the unusable value '100'"),
    ("images", 0, {"file_name": "c.png"}, r"c\.png: the image is missing"),
    ("categories", 1, {"id": 18}, r"categories\[1\]/id: the category id 18 occurs twice"),
    ("categories", 1, {"name": "dog"}, r"categories\[1\]/name: the name 'dog' occurs twice"),
    ("annotations", 1, {"id": 1}, r"annotations\[1\]/id: the annotation id 1 occurs twice"),
    ("annotations", 1, {"image_id": 99}, r"annotations\[1\]/image_id: no image has the id 99"),
    (
        "annotations",
        1,
        {"category_id": 99},
        r"annotations\[1\]/category_id: no category has the id 99; there are 2, 18",
    ),
    ("annotations", 1, {"bbox": [1, 2, 3]}, r"annotations\[1\]/bbox: expected four finite numbers"),
    ("annotations", 1, {"bbox": [1, 2, math.nan, 4]}, "expected four finite numbers"),
    ("annotations", 1, {"bbox": [1, 2, math.inf, 4]}, "expected four finite numbers"),
    ("annotations", 1, {"bbox": [1, 2, 10**400, 4]}, "expected four finite numbers"),
    ("annotations", 1, {"bbox": [1, 2, "3", 4]}, "expected four finite numbers"),
    ("annotations", 1, {"bbox": [1, 2, 0, 4]}, "positive width and height in image 7"),
    ("annotations", 1, {"bbox": [1, 2, 3, -4]}, "positive width and height in image 7"),
    ("annotations", 1, {"bbox": [90, 2, 13, 4]}, "leaves the image, which is 100 x 80 pixels"),
]


@pytest.mark.parametrize(("section", "index", "change", "message"), DAMAGE)
def test_damaged_entry_is_refused_with_its_place(tmp_path, content, section, index, change, message):
    content[section][index].update(change)
    with pytest.raises(DataError, match=message):
        load(tmp_path, content)


@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "bbox"])
def test_missing_key_is_refused(tmp_path, content, key):
    del content["annotations"][2][key]
    with pytest.raises(DataError, match=rf"annotations\[2\]: {key} is missing"):
        load(tmp_path, content)


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_missing_section_is_refused(tmp_path, content, section):
    del content[section]
    with pytest.raises(DataError, match=f"{section}: expected a list, got NoneType"):
        load(tmp_path, content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(CONTENT)[:-30], "no JSON"),
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "expected an object at the top, got list"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no image"),
        ('{"images": [3], "annotations": [], "categories": []}', r"images\[0\]: expected an object, got int"),
    ],
)
def test_unusable_file_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=rf"instances\.json.*{message}"):
        load(tmp_path, text)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        load_coco(tmp_path / "none.json", tmp_path)


def test_every_defect_reaches_the_report(tmp_path, content):
    for section, index, change, _ in (DAMAGE[3], DAMAGE[15]):
        content[section][index].update(change)
    content["annotations"][3]["bbox"] = None
    defects = []
    dataset = load(tmp_path, content, report=defects.append)
    places = [(Path(defect.file).name, defect.field) for defect in defects]
    assert places == [("c.png", ""), ("instances.json", "annotations[3]"), ("instances.json", "annotations[1]/bbox")]
    assert len(dataset.images[0].labels) == 2


def test_to_coco_is_accepted_by_pycocotools_and_read_back(tmp_path, content, capsys):
    dataset = load(tmp_path, content)
    exported = json.loads(json.dumps(to_coco(dataset)))
    assert exported["annotations"][0]["bbox"] == [10.5, 20, 30, 40.25]
    assert exported["annotations"][0]["area"] == 30 * 40.25
    assert [entry["category_id"] for entry in exported["annotations"]] == [2, 1, 1, 1]
    coco = COCO()
    coco.dataset = exported
    coco.createIndex()
    assert len(coco.getAnnIds(imgIds=["7"], iscrowd=True)) == 1
    for entry, image in zip(exported["images"], dataset.images, strict=True):
        entry["file_name"] = image.path.relative_to(tmp_path / "images").as_posix()
    again = load(tmp_path, exported, name="instances")
    assert again.fingerprint() == dataset.fingerprint()


def test_an_image_may_leave_categories_unlabelled(tmp_path, content):
    content["images"][1]["unlabelled_category_ids"] = [18]
    dataset = load(tmp_path, content)
    assert dataset.classes == ("cat", "dog")
    assert [image.unlabelled for image in dataset.images] == [frozenset(), {1}]
    assert dataset.fingerprint() != load(tmp_path, CONTENT).fingerprint()
    written = to_coco(dataset, tmp_path / "images")
    assert [entry["file_name"] for entry in written["images"]] == ["a.png", "deep/b.png"]
    assert load(tmp_path, written).fingerprint() == dataset.fingerprint()
    assert load(tmp_path, content, classes=("cat", "dog", "cow")).images[1].unlabelled == {1}


@pytest.mark.parametrize("ids", [[99], "dog", [[18]], 18])
def test_unlabelled_categories_must_be_categories(tmp_path, content, ids):
    content["images"][1]["unlabelled_category_ids"] = ids
    with pytest.raises(DataError, match=r"image 3/unlabelled_category_ids: .* List ids of the file's categories"):
        load(tmp_path, content)


def test_an_object_of_an_unlabelled_category_is_refused(tmp_path, content):
    content["images"][0]["unlabelled_category_ids"] = [18]
    with pytest.raises(DataError, match=r"annotations\[0\]: image 7 says that no 'dog' is labelled in it"):
        load(tmp_path, content)
