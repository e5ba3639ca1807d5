"""Example images: which are chosen, what counts as found, what is drawn."""

import json

import cv2
import numpy as np
import pytest
from voc_images import write_predictions, write_voc_images

from incdet.errors import IncdetError
from incdet.report.examples import draw_examples, match
from incdet.report.runs import read_runs

CLASSES = ["circle", "cross", "ring", "star"]


@pytest.fixture
def data(tmp_path):
    return write_voc_images(tmp_path / "data", CLASSES, count=8)


def perfect(truth, known):
    return [(one["image_id"], name, box, 0.9) for one in truth for name, box in one["objects"] if name in known]


def notes(examples, column):
    return [row[column].note for row in examples.panels]


def test_each_object_is_found_once_by_the_best_score_of_its_class():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 60, 60]], dtype=np.float32)
    scores = np.array([0.6, 0.9, 0.8, 0.7], dtype=np.float32)
    names = ["dog", "dog", "cat", "dog"]
    truth = np.array([[0, 0, 10, 10], [30, 30, 40, 40]], dtype=np.float32)
    assert match(boxes, scores, names, truth, ["dog", "dog"]) == [-1, 0, -1, -1]
    assert match(boxes, scores, names, np.zeros((0, 4), np.float32), []) == [-1] * 4
    assert match(boxes[:0], scores[:0], [], truth, ["dog", "dog"]) == []


def test_one_run_shows_the_truth_and_every_task(make_run, data, tmp_path):
    folder = make_run("a", root=tmp_path / "data")
    write_predictions(folder, 1, CLASSES, perfect(data, CLASSES[:2]))
    write_predictions(folder, 2, CLASSES, perfect(data, CLASSES[2:]))
    examples = draw_examples(read_runs([folder]))
    assert examples.columns == ("the truth", "pseudo_label, after task 1", "pseudo_label, after task 2")
    assert len(examples.panels) == 6
    # Each image has one old and one new object; the new one is no miss before it is taught.
    assert set(notes(examples, 1)) == {"finds 1 of 1"}
    assert set(notes(examples, 2)) == {"finds 1 of 2"}
    image = cv2.imdecode(np.frombuffer(examples.panels[0][0].jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (256, 256, 3)


def test_several_runs_share_images_and_stamps_show(make_run, data, tmp_path):
    folders = [
        make_run(name, methods=[name], root=tmp_path / "data", stamps=[s]) for name, s in (("a", "x"), ("b", "y"))
    ]
    for folder in folders:
        write_predictions(folder, 1, CLASSES, perfect(data, CLASSES[:2]))
        write_predictions(folder, 2, CLASSES, perfect(data, CLASSES))
    examples = draw_examples(read_runs(folders))
    assert examples.columns[1:] == ("a [X], after task 1", "a [X], after task 2", "b [Y], after task 2")
    shown = {name for one in data if one["image_id"] in examples.image_ids for name, _ in one["objects"]}
    assert shown == set(CLASSES)


def test_wrong_detections_are_counted_and_unsure_ones_are_not(make_run, data, tmp_path):
    folder = make_run("a", root=tmp_path / "data", finished=1)
    wrong = [(one["image_id"], "circle", (100.0, 110.0, 120.0, 125.0), score) for one in data for score in (0.8, 0.3)]
    write_predictions(folder, 1, CLASSES, wrong)
    assert set(notes(draw_examples(read_runs([folder])), 1)) == {"finds 0 of 1, 1 wrong"}


def test_the_choice_does_not_depend_on_what_was_found(make_run, data, tmp_path):
    folder = make_run("a", root=tmp_path / "data")
    write_predictions(folder, 1, CLASSES, [])
    empty = draw_examples(read_runs([folder])).image_ids
    write_predictions(folder, 1, CLASSES, perfect(data[5:], CLASSES))
    assert draw_examples(read_runs([folder])).image_ids == empty


def test_a_held_out_run_shows_only_images_it_was_tested_on(make_run, data, tmp_path):
    folder = make_run("a", root=tmp_path / "data", held_out=True)
    write_predictions(folder, 1, CLASSES, perfect(data[5:], CLASSES))
    assert set(draw_examples(read_runs([folder])).image_ids) <= {one["image_id"] for one in data[5:]}


def test_absent_images_or_predictions_are_named(make_run, data, tmp_path):
    with pytest.raises(IncdetError, match=r"predictions\.json"):
        draw_examples(read_runs([make_run("a", root=tmp_path / "data")]))
    with pytest.raises(IncdetError, match="shapes"):
        draw_examples(read_runs([make_run("b", root=tmp_path / "nowhere")]))
    bare = make_run("c")
    (bare / "config.yaml").unlink()
    with pytest.raises(IncdetError, match=r"DATASETS\.TEST"):
        draw_examples(read_runs([bare]))


def test_a_multi_label_classifier_finds_classes_and_not_places(make_run, data, tmp_path):
    folder = make_run("a", root=tmp_path / "data")
    results = json.loads((folder / "results.json").read_text())
    results["summary"] = {"multi_label_ap": results["summary"]["voc_area_50"]}
    (folder / "results.json").write_text(json.dumps(results))
    whole = (0.0, 0.0, 128.0, 128.0)
    present = [(one["image_id"], name, whole, 0.9) for one in data for name, _ in one["objects"] if name in CLASSES[:2]]
    absent = [(one["image_id"], name, whole, 0.3) for one in data for name in CLASSES[:2]]
    write_predictions(folder, 1, CLASSES, [*present, *absent])
    assert set(notes(draw_examples(read_runs([folder])), 1)) == {"finds 1 of 1"}
