import pytest

from incdet.config import get_cfg
from incdet.data.shapes import write_shapes
from incdet.engine.protocol import Problem, first_task_key
from incdet.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(root / "shapes", train=24, test=4, size=32)
    return root


def config(root, *overrides):
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.ROOT", str(root), *overrides])
    return cfg


def key(root, *overrides, processes=1):
    cfg = config(root, *overrides)
    problem = Problem.load(cfg)
    return first_task_key(cfg, problem.view(problem.stream[0]), processes)


@pytest.mark.parametrize(
    "overrides",
    [
        ("METHODS", "['ilod']"),
        ("METHOD.ILOD.WEIGHT", "2.0"),
        ("NEXT_TASKS.SOLVER.MAX_ITER", "3"),
        ("OUTPUT_DIR", "elsewhere"),
        ("LOG_PERIOD", "3"),
        ("SOLVER.CHECKPOINT_PERIOD", "3"),
        ("DATALOADER.NUM_WORKERS", "0"),
        ("TASKS.SPLIT", "10+5+5"),
        ("TEST.DETECTIONS_PER_IMAGE", "7"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_what_does_not_touch_the_first_task_keeps_its_key(root, overrides):
    assert key(root, *overrides) == key(root)


@pytest.mark.parametrize(
    "overrides",
    [
        ("SEED", "1"),
        ("SOLVER.BASE_LR", "0.3"),
        ("SOLVER.PRECISION", "bf16-mixed"),
        ("MODEL.BACKBONE.WIDTH", "32"),
        ("INPUT.RANDOM_FLIP", "none"),
        ("TASKS.SPLIT", "15+5"),
        ("TASKS.ORDER", "seed:3"),
        ("TASKS.PROTOCOL", "image_split"),
        ("DATASETS.HELD_OUT", "0.25"),
        ("TASKS.PROXY", "5+5", "DATASETS.HELD_OUT", "0.25"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_what_changes_the_first_task_changes_its_key(root, overrides):
    assert key(root, *overrides) != key(root)


def test_number_of_processes_changes_the_key(root):
    assert key(root, processes=2) != key(root)


def test_redrawn_picture_changes_the_key_though_its_labels_stay(root):
    before = key(root)
    view = Problem.load(config(root)).view(Problem.load(config(root)).stream[0])
    path = view.images[0].record.path
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    changed = key(root)
    path.write_bytes(content)
    assert changed != before == key(root)


def test_weights_count_by_their_content(root, tmp_path):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    first = key(root, "MODEL.WEIGHTS", str(weights))
    weights.write_bytes(b"two")
    assert key(root, "MODEL.WEIGHTS", str(weights)) != first
    (tmp_path / "task_1").mkdir()
    weights = tmp_path / "task_1" / "model.safetensors"
    weights.write_bytes(b"one")
    of_folder = key(root, "MODEL.WEIGHTS", str(tmp_path))
    weights.write_bytes(b"two")
    assert key(root, "MODEL.WEIGHTS", str(tmp_path)) != of_folder


def test_missing_picture(root):
    cfg = config(root)
    problem = Problem.load(cfg)
    view = problem.view(problem.stream[0])
    path = view.images[0].record.path
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match=r"No such file.*DATASETS\.ROOT"):
        first_task_key(cfg, view, 1)
    path.write_bytes(content)


def test_held_out_images_are_training_images(root):
    whole, part = Problem.load(config(root)), Problem.load(config(root, "DATASETS.HELD_OUT", "0.25"))
    ids = {image.image_id for image in whole.train.images}
    assert {image.image_id for image in (*part.train.images, *part.test.images)} == ids
    assert len(part.test) == 6
    assert part.block({"images": 0, "bytes": 0})["held_out"] is True


@pytest.mark.parametrize("protocol", ["class_split", "image_split", "loco", "latest_class"])
def test_a_proxy_is_made_of_the_first_task_alone(root, protocol):
    whole = Problem.load(config(root, "TASKS.PROTOCOL", protocol))
    first = whole.stream[0]
    of_first_task = {image.record.image_id: image for image in whole.view(first).images}
    proxy = Problem.load(
        config(
            root, "TASKS.PROTOCOL", protocol, "TASKS.PROXY", "6+4", "DATASETS.HELD_OUT", "0.25", "DATASETS.TEST", "none"
        )
    )
    assert [task.num_new for task in proxy.stream] == [6, 4]
    assert sorted(proxy.stream.classes) == sorted(first.new)
    assert {image.image_id for image in (*proxy.train.images, *proxy.test.images)} == of_first_task.keys()
    for part in (proxy.train, proxy.test):
        assert set(part.classes) == set(first.new)
        for image in part.images:
            seen = sorted(part.classes[label] for label in image.labels)
            assert seen == sorted(whole.stream.classes[label] for label in of_first_task[image.image_id].labels)
    for task in proxy.stream:
        shown = proxy.view(task).images
        assert {image.record.image_id for image in shown} <= {image.image_id for image in proxy.train.images}
        assert {label for image in shown for label in image.labels.tolist()} <= set(task.new_labels)


def test_a_proxy_says_what_it_stands_for(root):
    block = Problem.load(config(root, "TASKS.PROXY", "5+5", "DATASETS.HELD_OUT", "0.25")).block({"images": 0})
    assert (block["split"], block["proxy_of"], block["held_out"]) == ("5+5", "10+10", True)
    assert block["test"]["name"] == "shapes_train/task_1/held_out"
    assert len(block["classes"]) == 10
    assert Problem.load(config(root)).block({"images": 0})["proxy_of"] is None


def test_a_proxy_is_never_tested_on_the_test_images(root):
    with pytest.raises(ConfigError, match=r"TASKS\.PROXY 5\+5.*DATASETS\.HELD_OUT"):
        Problem.load(config(root, "TASKS.PROXY", "5+5"))
