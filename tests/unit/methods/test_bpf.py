"""What is taught of the past, what is excused for the future, and who is believed about a region."""

from types import SimpleNamespace

import pytest
import torch
from tiny import FIRST, SECOND, World, random_batch, tiny_config

from incdet.config import get_cfg
from incdet.engine.learner import Learner
from incdet.errors import ConfigError
from incdet.losses.bridge import largest_iou
from incdet.methods import bpf
from incdet.methods.bpf import Bpf, rank
from incdet.structures import IGNORED, Detections

OBJECT = [4.0, 4.0, 28.0, 28.0]  # the first object of each image of the world


def method(**changes) -> Bpf:
    node = get_cfg().METHOD.BPF.clone()
    node.INTERIM_ITERATIONS = 1
    for key, value in changes.items():
        node[key] = value
    return Bpf(node)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, tiny_config(), texts=("ca", "dd", "bc"))


# ---------------------------------------------------------------------- the past


@pytest.mark.parametrize(
    ("bottom", "weight"),
    [(28.0 + 36.0, 1.0), (28.0 + 35.9, 0.3), (28.0 + 10.3, 0.3), (28.0 + 10.2, None)],
    ids=["IoU 0.4", "a little more", "hardly 0.7", "more than 0.7"],
)
def test_the_nearer_to_a_labelled_object_the_less_a_pseudo_label_counts(world, bottom, weight):
    """IoU of the object with a box as wide, from the same top left, is 24 over the box's height."""
    box = torch.tensor([[4.0, 4.0, 28.0, bottom]])
    found = Detections(box, torch.tensor([0.9]), torch.tensor([0]))
    nothing = Detections(box[:0], torch.zeros(0), torch.zeros(0, dtype=torch.int64))

    def detect(detector, images, description):
        return [found if image.record.image_id == "im0" else nothing for image in images]

    context = world.context(SECOND, teacher=world.first, detect=detect)
    (image,) = (i for i in method().training_data(context.view, context).images if i.record.image_id == "im0")
    assert image.weights.tolist() == pytest.approx([1.0] if weight is None else [1.0, weight])


def test_a_band_is_of_the_nearest_object_however_many_there_are():
    near, far = OBJECT, [60.0, 4.0, 84.0, 28.0]
    image = SimpleNamespace(boxes=torch.tensor([far, near]).numpy())
    between = torch.tensor([[4.0, 4.0, 28.0, 44.0]]).numpy()  # IoU 0.6 with the near object
    assert method().weights(image, between).tolist() == pytest.approx([0.3])


# ---------------------------------------------------------------------- the future


def first_task(world, **changes):
    one = method(**changes)
    one.begin_task(world.context(FIRST))
    torch.manual_seed(0)
    images = world.first.train().image_pass(random_batch(2))
    return one, images, world.first.region_pass(images)


def test_negatives_far_from_every_target_are_excused_and_nothing_else_changes(world):
    one, images, regions = first_task(world, FUTURE_SHARE=0.9)
    anchors, labels = images.anchor_labels.clone(), regions.labels.clone()
    one.relabel(images, regions)
    changed, changed_regions = images.anchor_labels != anchors, regions.labels != labels
    assert changed.any()
    assert changed_regions.any()
    assert (anchors[changed] == 0).all()
    assert (images.anchor_labels[changed] == IGNORED).all()
    assert (labels[changed_regions] == 2).all()  # the background
    assert (regions.labels[changed_regions] == IGNORED).all()
    for i, target in enumerate(images.targets):
        here = changed_regions & (regions.image_index == i)
        assert (largest_iou(images.anchors[i][changed[i]], target.boxes) < 0.1).all()
        assert (largest_iou(regions.boxes[here], target.boxes) < 0.1).all()


def test_with_the_whole_share_all_far_negatives_are_excused(world):
    one, images, regions = first_task(world, FUTURE_SHARE=1.0)
    one.relabel(images, regions)
    for i, target in enumerate(images.targets):
        left = (regions.labels == 2) & (regions.image_index == i)
        assert (largest_iou(images.anchors[i][images.anchor_labels[i] == 0], target.boxes) >= 0.1).all()
        assert (largest_iou(regions.boxes[left], target.boxes) >= 0.1).all()


def test_regions_are_ordered_as_the_proposals_are(world, monkeypatch):
    one, images, regions = first_task(world)
    orders = []

    def watch(objectness, attention, overlap, share, far):
        orders.append(objectness)
        return torch.zeros(len(objectness), dtype=torch.bool)

    monkeypatch.setattr(bpf, "likely_future", watch)
    one.relabel(images, regions)
    _, _, *of_regions = orders  # anchors come first, an image after the other
    for i, order in enumerate(of_regions):
        here = regions.boxes[(regions.labels == 2) & (regions.image_index == i)]
        assert torch.equal(images.proposals[i][-order], here)


def test_losses_are_the_librarys_where_nothing_is_excused(world):
    losses = []
    for one in (method(FUTURE_IOU=0.0), None):
        methods = [] if one is None else [one]
        if one is not None:
            one.begin_task(world.context(FIRST))
        torch.manual_seed(0)
        losses.append(Learner(world.first.train(), None, methods, FIRST)(random_batch(2)))
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(value, losses[1][name]) for name, value in losses[0].items())


@pytest.mark.parametrize("share", [0.1, 0.0])
def test_the_last_task_has_no_future_and_a_share_of_none_changes_nothing(world, share):
    one, images, regions = first_task(world, FUTURE_SHARE=share)
    if share:
        one.begin_task(world.context(SECOND))
    anchors, labels = images.anchor_labels.clone(), regions.labels.clone()
    one.relabel(images, regions)
    assert torch.equal(images.anchor_labels, anchors)
    assert torch.equal(regions.labels, labels)
    assert one.changes_first_task is (share > 0)


def test_rank_is_the_position_and_the_last_where_there_is_none():
    ordered = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0]])
    boxes = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [9.0, 9.0, 10.0, 10.0]])
    assert rank(boxes, ordered).tolist() == [1, 0, 3]
    assert rank(boxes, ordered[:0]).tolist() == [0, 0, 0]
    assert rank(boxes[:0], ordered).tolist() == []


# ---------------------------------------------------------------------- two teachers


def test_the_interim_detector_knows_the_new_classes_and_is_found_again(world):
    one = method(SCORE_ROI=0.36)
    learner, view = world.begin_second([one])
    assert one._interim.num_classes == SECOND.num_new
    assert not one._interim.training
    before = {name: value.clone() for name, value in one._interim.state_dict().items()}
    sum(learner(world.batch(view)).values()).backward()
    assert all(parameter.grad is None for parameter in one._interim.parameters())
    again = method()
    again.begin_task(world.context(SECOND, learner.student, learner.teacher))
    assert all(torch.equal(value, before[name]) for name, value in again._interim.state_dict().items())


def test_a_region_on_a_new_object_is_the_interim_detectors(world, monkeypatch):
    """Of four boxes one overlaps a new object by more than half; the old class's object does not count."""
    one = method(REGIONS=4, WEIGHT=2.0)
    learner, _ = world.begin_second([one])
    batch = random_batch(1, SECOND.num_seen)
    boxes = torch.tensor([OBJECT, [4.0, 4.0, 28.0, 40.0], [4.0, 4.0, 28.0, 60.0], [60.0, 4.0, 84.0, 28.0]])
    objects = torch.tensor([OBJECT, [60.0, 4.0, 84.0, 28.0]])
    batch.targets[0] = type(batch.targets[0]).from_boxes(objects, torch.tensor([2, 0]))
    monkeypatch.setattr(learner.teacher, "image_pass_like", with_proposals(learner.teacher, boxes))
    monkeypatch.setattr(bpf, "draw", lambda rows, count: rows)
    believed = []
    monkeypatch.setattr(bpf, "bridged_classification", lambda student, targets: torch.tensor(0.5))

    def boxes_loss(student, old, interim, is_new, num_old):
        believed.append(is_new.tolist())
        return torch.tensor(0.25)

    monkeypatch.setattr(bpf, "bridged_boxes", boxes_loss)
    losses = learner(batch)
    assert believed == [[True, True, False, False]]  # IoU 1, 24 / 36, 24 / 56 and 0
    assert losses["loss_bridge_cls"].item() == 1.0
    assert losses["loss_bridge_box"].item() == 0.5


def with_proposals(detector, boxes):
    look = type(detector).image_pass_like

    def looks(outputs, share_frozen=False):
        found = look(detector, outputs, share_frozen)
        found.propose = lambda: [boxes]
        return found

    return looks


def test_the_first_task_has_no_distillation(world):
    one = method()
    learner, _ = world.begin_first([one])
    assert not [name for name in learner(random_batch(2)) if "bridge" in name]
    assert one._interim is None


def test_distillation_compares_three_detectors_on_the_old_ones_proposals(world):
    """Of all regions, in whatever order they are drawn; where no region is new, classes follow the old detector."""
    one = method(WEIGHT=1.0, REGIONS=1000, CANDIDATES=1000, NEW_IOU=1.0)
    learner, view = world.begin_second([one])
    batch = world.batch(view)
    loss = learner(batch)["loss_bridge_cls"].item()
    with torch.no_grad():
        images = learner.student.image_pass(batch)
        looks = {detector: detector.image_pass_like(images) for detector in (learner.teacher, one._interim)}
        boxes = looks[learner.teacher].proposals
        student = learner.student.region_pass(images, boxes).logits.log_softmax(dim=1)
        old, interim = (detector.region_pass(look, boxes).logits.softmax(dim=1) for detector, look in looks.items())
    targets = torch.cat([old[:, :2], old[:, 2:] * interim], dim=1)
    assert loss == pytest.approx(-(targets * student).mean().item(), rel=1e-4)


@pytest.mark.parametrize("iterations", [0, -1, 2.5, "many"])
def test_iterations_that_are_no_number_of_them_are_refused(iterations):
    with pytest.raises(ConfigError, match=r"METHOD\.BPF\.INTERIM_ITERATIONS: expected a positive whole number"):
        method(INTERIM_ITERATIONS=iterations)
