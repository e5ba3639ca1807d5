from pathlib import Path

import cv2
import numpy as np
import pytest

from incdet.data.records import ImageRecord
from incdet.data.voc import VOC_CLASSES, load_voc, write_annotation
from incdet.errors import DataError

MINI = Path(__file__).parents[4] / "shared" / "data" / "voc2012_mini"


def obj(name="dog", box=(11, 21, 50, 60), extra=""):
    corners = "".join(
        f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def xml(*objects, size="<size><width>100</width><height>80</height><depth>3</depth></size>"):
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def make_folder(root, annotations, split="train", suffix=".jpg"):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for image_id, text in annotations.items():
        (root / "Annotations" / f"{image_id}.xml").write_text(text)
        cv2.imwrite(str(root / "JPEGImages" / f"{image_id}{suffix}"), np.zeros((80, 100, 3), dtype=np.uint8))
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(annotations) + "\n")
    return root


def load_one(root, *objects, **kwargs):
    return load_voc(make_folder(root, {"a": xml(*objects)}), "train", **kwargs).images[0]


def test_corners_become_continuous(tmp_path):
    # Pixels 11..50 of a row: the first one's left edge is at 10, the last one's right edge at 50; 40 pixels.
    image = load_one(tmp_path, obj(box=(11, 21, 50, 60)))
    assert image.boxes.tolist() == [[10, 20, 50, 60]]
    assert image.boxes.dtype == np.float32
    assert (image.width, image.height) == (100, 80)
    assert image.path == tmp_path / "JPEGImages" / "a.jpg"
    assert image.labels.tolist() == [VOC_CLASSES.index("dog")]


def test_whole_image_box_covers_the_image(tmp_path):
    assert load_one(tmp_path, obj(box=(1, 1, 100, 80))).boxes.tolist() == [[0, 0, 100, 80]]


def test_fractional_corners(tmp_path):
    assert load_one(tmp_path, obj(box=(11.5, 21.25, 50.75, 60))).boxes.tolist() == [[10.5, 20.25, 50.75, 60]]


def test_one_pixel_of_overhang_is_clipped(tmp_path):
    assert load_one(tmp_path, obj(box=(0, 0, 101, 81))).boxes.tolist() == [[0, 0, 100, 80]]


def test_only_the_objects_own_box_counts(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part>"
    assert load_one(tmp_path, obj("person", extra=part)).boxes.tolist() == [[10, 20, 50, 60]]
    with pytest.raises(DataError, match=r"object\[0\]/bndbox: the person has no box of its own"):
        load_one(tmp_path, f"<object><name>person</name>{part}</object>")


def test_difficult(tmp_path):
    image = load_one(tmp_path, obj(extra="<difficult>1</difficult>"), obj(extra="<difficult>0</difficult>"), obj())
    assert image.difficult.tolist() == [True, False, False]
    assert not image.crowd.any()


def test_image_without_objects(tmp_path):
    image = load_one(tmp_path)
    assert image.boxes.shape == (0, 4)
    assert image.labels.shape == image.difficult.shape == image.crowd.shape == (0,)


def test_classes_are_vocs_or_those_found_or_those_given(tmp_path):
    folder = make_folder(tmp_path / "voc", {"a": xml(obj("dog"))})
    assert load_voc(folder, "train").classes == VOC_CLASSES
    folder = make_folder(tmp_path / "own", {"a": xml(obj("zebra"), obj("dog"))})
    dataset = load_voc(folder, "train")
    assert dataset.classes == ("dog", "zebra")
    assert dataset.images[0].labels.tolist() == [1, 0]
    dataset = load_voc(folder, "train", classes=["zebra", "dog"], name="mine")
    assert dataset.images[0].labels.tolist() == [0, 1]
    assert dataset.name == "mine"
    with pytest.raises(DataError, match=r"a\.xml: object/name: unknown class 'zebra'; the classes are dog"):
        load_voc(folder, "train", classes=["dog"])


def test_splits_are_joined_by_plus_and_keep_their_order(tmp_path):
    make_folder(tmp_path, {"b": xml(obj()), "a": xml(obj())}, "train")
    make_folder(tmp_path, {"c": xml(obj())}, "val", suffix=".png")
    dataset = load_voc(tmp_path, "train+val")
    assert [image.image_id for image in dataset.images] == ["b", "a", "c"]
    assert dataset.images[2].path.suffix == ".png"


def test_missing_size_is_taken_from_the_image(tmp_path):
    folder = make_folder(tmp_path, {"a": xml(obj(), size="")})
    assert (load_voc(folder, "train").images[0].width, load_voc(folder, "train").images[0].height) == (100, 80)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (xml(obj())[:-20], "no XML"),
        ("", "no XML"),
        ('<!DOCTYPE a [<!ENTITY x "dog">]><annotation><name>&x;</name></annotation>', "EntitiesForbidden"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "EntitiesForbidden"),
        (xml(obj(box=(11, 21, "nan", 60))), r"object\[0\]/bndbox/xmax: expected a finite number, got 'nan'"),
        (xml(obj(box=(11, "", 50, 60))), r"bndbox/ymin: expected a finite number, got ''"),
        (xml(obj(), obj().replace("<xmax>50</xmax>", "")), r"object\[1\]/bndbox/xmax: the field is missing"),
        (xml(obj(box=(50, 21, 11, 60))), "positive width and height"),
        (xml(obj(box=(51, 21, 50, 60))), "positive width and height"),
        (xml(obj(box=(11, 21, 103, 60))), "leaves the image, which is 100 x 80 pixels"),
        (xml(obj(box=(-2, 21, 50, 60))), "leaves the image"),
        (xml(obj(box=(101, 21, 101, 60))), "lies outside the image"),
        (xml(obj(name="")), "class name is missing"),
        (xml(obj(extra="<difficult>maybe</difficult>")), r"object\[0\]/difficult: expected a finite number"),
        (xml(obj(), size="<size><width>100</width></size>"), "size/height: the field is missing"),
    ],
)
def test_defective_annotation_is_refused_with_its_place(tmp_path, text, message):
    folder = make_folder(tmp_path, {"a": text})
    with pytest.raises(DataError, match=rf"(?s)a\.xml.*{message}"):
        load_voc(folder, "train")


def test_missing_files(tmp_path):
    folder = make_folder(tmp_path, {"a": xml(obj()), "b": xml(obj())})
    with pytest.raises(DataError, match=r"Main/test\.txt.*a split that the folder has \(train\)"):
        load_voc(folder, "test")
    (folder / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"b\.jpg: the image of a listed id is missing"):
        load_voc(folder, "train")
    (folder / "Annotations" / "a.xml").unlink()
    with pytest.raises(DataError, match=r"a\.xml: cannot be read \(No such file"):
        load_voc(folder, "train")


def test_duplicate_and_empty_splits(tmp_path):
    folder = make_folder(tmp_path, {"a": xml(obj())})
    with pytest.raises(DataError, match=r"train\.txt: a: the id is listed a second time"):
        load_voc(folder, "train+train")
    (folder / "ImageSets" / "Main" / "none.txt").write_text("\n \n")
    with pytest.raises(DataError, match=r"none\.txt: the split lists no image"):
        load_voc(folder, "none")


def test_every_defect_reaches_the_report(tmp_path):
    folder = make_folder(tmp_path, {"a": xml(obj(box=(9, 9, 9, 5)), obj(), obj(name="")), "b": "<", "c": xml(obj())})
    defects = []
    dataset = load_voc(folder, "train", report=defects.append)
    assert [Path(defect.file).name for defect in defects] == ["a.xml", "a.xml", "b.xml"]
    assert [defect.field for defect in defects] == ["object[0]/bndbox", "object[2]/name", ""]
    assert [len(image.labels) for image in dataset.images] == [1, 1]


def test_written_annotation_is_read_back(tmp_path):
    folder = make_folder(tmp_path, {"a": xml()})
    boxes = np.array([[0, 0, 100, 80], [0.1, 20 / 3, 97.123456, 40.25]], dtype=np.float32)
    flags = np.array([False, True])
    record = ImageRecord("a", Path("a.jpg"), 100, 80, boxes, np.array([1, 0]), flags, np.zeros(2, dtype=bool))
    write_annotation(folder, record, ("cat", "fish & chips"))
    image = load_voc(folder, "train", classes=("cat", "fish & chips")).images[0]
    assert np.array_equal(image.boxes, boxes)
    assert image.labels.tolist() == [1, 0]
    assert image.difficult.tolist() == [False, True]


@pytest.mark.shared_data
@pytest.mark.skipif(not MINI.is_dir(), reason=f"no photographs at {MINI}")
def test_real_photographs():
    splits = [load_voc(MINI, split) for split in ("trainval", "test")]
    assert [len(split) for split in splits] == [500, 256]
    images = load_voc(MINI, "trainval+test").images
    assert len(images) == 756
    assert sum(len(image.labels) for image in images) == 1994
    assert sum(int(image.difficult.sum()) for image in images) == 340
    assert splits[0].classes == VOC_CLASSES
    assert {int(label) for image in images for label in image.labels} == set(range(20))
    for image in images:
        assert (image.boxes[:, :2] >= 0).all()
        assert (image.boxes[:, 2:] <= (image.width, image.height)).all()
        assert (image.boxes[:, 2:] > image.boxes[:, :2]).all()


def test_every_annotation_of_a_folder_without_image_sets(tmp_path):
    root = make_folder(tmp_path, {"b": xml(obj()), "a": xml(obj("cat"))})
    (root / "ImageSets" / "Main" / "train.txt").unlink()
    assert [image.image_id for image in load_voc(root, "*").images] == ["a", "b"]


def test_a_folder_without_annotations_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no annotation"):
        load_voc(tmp_path, "*")
