"""A split shown to people: the table, the drawn samples and the command around them."""

import json

import cv2
import numpy as np
import pytest

from incdet.cli import main as incdet_main
from incdet.data.catalog import load_dataset
from incdet.data.manifest import protocol_manifest
from incdet.data.protocols import ObjectTable
from incdet.report.draw import draw_boxes
from incdet.report.split import (
    HIDDEN_FUTURE,
    HIDDEN_OLD,
    UNUSED,
    VISIBLE,
    draw_sample,
    manifest_table,
    object_roles,
    write_samples,
)
from incdet.tasks import build_stream

CLASSES = ("apple", "bean", "carrot pie", "date")
STREAM = build_stream("1+2+1", CLASSES)
WIDTH, HEIGHT = 500, 480  # large enough not to be enlarged when drawn


def main(arguments):
    return incdet_main(["inspect", *arguments])


@pytest.fixture
def data_name(tmp_path):
    """Three grey images: one with an object of every class and a crowd, one with beans alone, one empty."""
    images, annotations = [], []
    for number, objects in enumerate([(0, 1, 2, 3, 2), (1, 1), ()], start=1):
        file = f"{number}.png"
        cv2.imwrite(str(tmp_path / file), np.full((HEIGHT, WIDTH, 3), 200, np.uint8))
        images.append({"id": number, "file_name": file, "width": WIDTH, "height": HEIGHT})
        for place, label in enumerate(objects):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [100 * place + 10, 200, 60, 80],
                    "area": 4800,
                    "iscrowd": int(place == 4),
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return f"coco:{file}:{tmp_path}"


@pytest.fixture
def dataset(data_name):
    return load_dataset(data_name)


def test_roles_say_what_becomes_of_an_object_in_a_task(dataset):
    table = ObjectTable.of(dataset, CLASSES)
    roles = object_roles(table, STREAM[1], "keep")
    assert roles == [HIDDEN_OLD, VISIBLE, VISIBLE, HIDDEN_FUTURE, UNUSED, VISIBLE, VISIBLE]


def test_a_sample_shows_each_object_in_the_colour_of_its_role_and_dashes_the_hidden(dataset):
    one = type(dataset)(dataset.name, dataset.classes, dataset.images[:1])
    drawn = draw_sample(one, STREAM, STREAM[1])
    assert drawn.shape[0] > HEIGHT
    assert drawn.shape[1] == WIDTH
    for place, role in enumerate([HIDDEN_OLD, VISIBLE, VISIBLE, HIDDEN_FUTURE, UNUSED]):
        edge = drawn[200:280, 100 * place + 70]  # the right edge of the box, from top to bottom
        coloured = (np.abs(edge.astype(int) - role.colour).max(axis=1) < 40).mean()
        assert 0.2 < coloured < 0.85 if role.dashed else coloured > 0.95


def test_the_legend_names_every_role_in_its_colour(dataset):
    one = type(dataset)(dataset.name, dataset.classes, dataset.images[2:])
    legend = draw_sample(one, STREAM, STREAM[0])[HEIGHT:].reshape(-1, 3).astype(int)
    for role in (VISIBLE, UNUSED, HIDDEN_OLD, HIDDEN_FUTURE):
        assert (np.abs(legend - role.colour).max(axis=1) < 10).any()


def test_the_image_itself_is_not_drawn_on(dataset):
    one = type(dataset)(dataset.name, dataset.classes, dataset.images[2:])
    np.testing.assert_array_equal(
        draw_sample(one, STREAM, STREAM[0])[:HEIGHT],
        draw_boxes(np.full((HEIGHT, WIDTH, 3), 200, np.uint8), np.zeros((0, 4)), []),
    )


def test_the_table_holds_the_counts_and_warns_of_a_class_without_objects(dataset):
    lines = manifest_table(protocol_manifest(dataset, STREAM)).splitlines()
    assert "3 images, 7 objects (0 difficult, 1 crowd)" in lines[0]
    assert lines[2] == "2 images are used, 1 of them in more than one task"
    header = "task classes images visible ignored dropped hidden old hidden future images shared with task"
    assert " ".join(lines[4].split()) == header
    assert [line.split() for line in lines[5:8]] == [
        ["1", "1", "1", "1", "0", "0", "0", "3", "2:", "1,", "3:", "1"],
        ["2", "2", "2", "4", "1", "0", "1", "1", "1:", "1,", "3:", "1"],
        ["3", "1", "1", "1", "0", "0", "3", "0", "1:", "1,", "2:", "1"],
    ]
    assert "  visible        bean 3, carrot pie 1" in lines

    empty = protocol_manifest(dataset, build_stream("2+2", CLASSES))
    empty["tasks"][0]["visible"]["bean"] = 0
    assert "  warning: no visible object of bean" in manifest_table(empty).splitlines()


def test_long_lists_wrap_between_classes_and_never_inside_a_name(dataset):
    manifest = protocol_manifest(dataset, STREAM)
    manifest["tasks"][0]["visible"] = {f"carrot pie {letter}": 10 for letter in "abcdefghijklmnopqrstuvwxyz"}
    lines = [line.strip() for line in manifest_table(manifest).splitlines() if "carrot pie" in line][:4]
    assert max(map(len, lines)) <= 110
    assert all(line.removeprefix("visible").strip().startswith("carrot pie") for line in lines[:3])


def test_samples_are_spread_over_the_images_of_each_task(dataset, tmp_path):
    manifest = protocol_manifest(dataset, STREAM)
    paths = write_samples(dataset, STREAM, manifest, tmp_path / "out", samples=6)
    names = [path.relative_to(tmp_path / "out").as_posix() for path in paths]
    ids = [record.image_id for record in dataset.images]
    assert names == [f"task_{task}/{ids[image]}.jpg" for task, image in ((1, 0), (2, 0), (2, 1), (3, 0))]
    assert all(cv2.imread(str(path)).shape[1] == WIDTH for path in paths)
    assert write_samples(dataset, STREAM, manifest, tmp_path / "none", samples=0) == []


def test_the_command_prints_the_table_and_writes_the_manifest(data_name, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--data", data_name, "--split", "2+2", "--out", str(out), "--samples", "1"]) == 0
    assert "split 2+2, protocol class_split" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert [task["images"] for task in manifest["tasks"]] == [2, 1]
    assert len(list(out.glob("samples/*/*.jpg"))) == 2


def test_the_command_takes_a_listed_order_and_a_protocol(data_name, capsys):
    listed = "date, carrot pie,bean,apple"
    arguments = [
        "--data",
        data_name,
        "--split",
        "1+3",
        "--order",
        "listed",
        "--listed",
        listed,
        "--protocol",
        "image_split",
    ]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "protocol image_split" in text
    assert "class order listed" in text


def test_a_split_that_does_not_fit_is_an_error_without_a_traceback(data_name, capsys):
    assert main(["--data", data_name, "--split", "10+10"]) == 2
    assert "teaches 20 classes but the data has 4" in capsys.readouterr().err


def test_the_check_lists_all_defects_at_once_and_says_so_by_its_status(data_name, tmp_path, capsys):
    assert main(["--data", data_name, "--check"]) == 0
    assert "0 defects" in capsys.readouterr().out

    file = tmp_path / "annotations.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [10, 10, -5, 5]
    content["annotations"][5]["bbox"] = [10, 10, 9000, 5]
    file.write_text(json.dumps(content))
    (tmp_path / "3.png").unlink()
    assert main(["--data", data_name, "--check"]) == 1
    text = capsys.readouterr().out
    assert "3 defects" in text
    assert "3.png" in text


@pytest.mark.parametrize("samples", ["-1", "many"])
def test_a_number_of_samples_that_is_none_is_refused(data_name, samples, capsys):
    with pytest.raises(SystemExit):
        main(["--data", data_name, "--samples", samples])
    assert "--samples" in capsys.readouterr().err
