import json
from pathlib import Path

import pytest

from incdet.data.check import Defect, find_defects
from incdet.data.shapes import write_shapes
from incdet.errors import DataError


@pytest.fixture
def root(tmp_path):
    write_shapes(tmp_path / "shapes", train=6, test=1, size=64)
    return tmp_path


def test_a_sound_set_has_no_defects(root):
    assert find_defects("shapes_train", root) == []


def test_all_defects_are_found_at_once(root):
    images, annotations = root / "shapes" / "JPEGImages", root / "shapes" / "Annotations"
    first = images / "train_00000.jpg"
    first.write_bytes(first.read_bytes()[:-100])
    (annotations / "train_00001.xml").write_text("<annotation>")
    (images / "train_00002.jpg").unlink()
    third = annotations / "train_00003.xml"
    third.write_text(third.read_text().replace("<width>64</width>", "<width>65</width>"))
    fourth = annotations / "train_00004.xml"
    fourth.write_text(fourth.read_text().replace("<object>", "<object><bndbox/>", 1))
    defects = find_defects("shapes_train", root)
    found = {Path(defect.file).name: defect for defect in defects}
    assert len(defects) == 5
    assert "cut short" in found["train_00000.jpg"].problem
    assert "no XML" in found["train_00001.xml"].problem
    assert "missing" in found["train_00002.jpg"].problem
    assert found["train_00003.jpg"].problem == "the image is 64 x 64 pixels, its annotation says 65 x 64"
    assert found["train_00004.xml"].field == "object[0]/bndbox/xmin"
    assert all(defect.remedy for defect in defects)


def test_a_missing_image_of_a_coco_file_is_reported_once(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "gone.jpg", "width": 9, "height": 8}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    (defect,) = find_defects(f"coco:{tmp_path / 'a.json'}:{tmp_path}")
    assert defect.file == str(tmp_path / "gone.jpg")


def test_a_defect_reads_as_one_sentence_of_place_problem_and_remedy():
    defect = Defect("a.xml", "object[0]/name", "the class name is missing", "Name the object's class")
    assert str(defect) == "a.xml: object[0]/name: the class name is missing. Name the object's class."
    assert str(Defect("a.jpg", "", "the file is empty", "Copy it again")) == "a.jpg: the file is empty. Copy it again."


def test_nothing_to_check_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        find_defects("shapes_train", tmp_path)
