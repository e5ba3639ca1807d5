"""GEM and A-GEM: stored images bound the step, and teach nothing."""

from dataclasses import replace

import pytest
import torch
from tiny import FIRST, SECOND, World, one_image, random_batch, tiny_config
from torch.nn import functional as F

from incdet.methods.agem import Agem
from incdet.methods.gem import Gem
from incdet.projection import project_off, project_onto_cone
from incdet.structures import IGNORED, Batch, Target
from incdet.tasks import build_stream

CLASSIFICATION = (
    "TASK", "classification",
    "MODEL.BACKBONE.NAME", "mlp",
    "MODEL.BACKBONE.WIDTH", 8,
    "INPUT.MIN_SIZE_TRAIN", (8,),
    "INPUT.MIN_SIZE_TEST", 8,
)  # fmt: skip
TEXTS = ("a", "b", "a", "c", "d", "c")
STEPS = build_stream("1+1+2", ("a", "b", "c", "d"))


def method(world: World, kind=Gem, **changes) -> Gem:
    node = world.cfg.METHOD[kind.__name__.upper()].clone()
    node.update({"IMAGES_PER_CLASS": 1, **changes})
    return kind(node)


def classifier_world(tmp_path, *overrides) -> World:
    return World(tmp_path, tiny_config("fpn", *CLASSIFICATION, *overrides), TEXTS)


def labelled(batch: Batch, *tasks: tuple[int, ...]) -> Batch:
    """The batch with the classes that are labelled in each image."""
    pairs = zip(batch.targets, tasks, strict=True)
    return replace(batch, targets=[replace(target, labelled=frozenset(labels)) for target, labels in pairs])


def whole_images(*labels: int) -> Batch:
    batch = random_batch(len(labels))
    box = torch.tensor([[0.0, 0.0, 96.0, 64.0]])
    return replace(batch, targets=[Target.from_boxes(box, torch.tensor([label])) for label in labels])


def mixed(world: World, *methods: Gem):
    """A learner in the second task, and a batch of two new images and two of the memory."""
    learner, view = world.begin_second(list(methods))
    assert view.memory_share == 0.5
    batch = world.batch(view)
    labels = torch.stack([target.labels[0] for target in batch.targets])
    assert (labels < FIRST.num_seen).tolist() == [False, False, True, True]
    return learner, batch, labels


@pytest.mark.parametrize("heads", [False, True], ids=["one_head", "head_per_task"])
def test_stored_images_teach_nothing_and_are_the_constraint(tmp_path, heads):
    world = classifier_world(tmp_path, "TASKS.SPLIT", "2+2", "MODEL.CLASSIFIER.MULTI_HEAD", heads)
    learner, batch, labels = mixed(world, method(world))
    losses = learner(batch)
    student = learner.student
    logits = student.region_pass(student.image_pass(batch)).logits
    new, old = (logits[:2, 2:], logits[2:, :2]) if heads else (logits[:2], logits[2:])
    assert torch.allclose(losses["loss_cls"], F.cross_entropy(new, labels[:2] - 2 * heads))
    assert learner.constraints.keys() == {"constraint_task_1"}
    assert torch.allclose(learner.constraints["constraint_task_1"], F.cross_entropy(old, labels[2:]))


@pytest.mark.parametrize("kind", [Gem, Agem])
def test_the_step_raises_no_stored_images_loss(tmp_path, kind):
    exact = {"MARGIN": 0.0, "RIDGE": 0.0} if kind is Gem else {}
    world = classifier_world(tmp_path)
    learner, batch, _ = mixed(world, method(world, kind, **exact))
    losses = learner(batch)
    (bound,) = learner.constraints.values()
    parameters = [parameter for parameter in learner.student.parameters() if parameter.requires_grad]
    raises = torch.cat([g.flatten() for g in torch.autograd.grad(bound, parameters, retain_graph=True)])
    plain = torch.cat([g.flatten() for g in torch.autograd.grad(losses["loss_cls"], parameters, retain_graph=True)])
    assert plain @ raises < 0
    with learner.around_backward(lambda rows: rows):
        losses["loss_cls"].backward()
    projected = torch.cat([parameter.grad.flatten() for parameter in parameters])
    assert abs(projected @ raises) < 1e-4 * abs(plain @ raises)
    assert torch.allclose(projected, project_off(plain, raises), atol=1e-5 * plain.norm().item())


def test_each_past_task_has_its_own_constraint_and_agem_one_for_all(tmp_path):
    world = World(tmp_path, tiny_config("fpn", *CLASSIFICATION), TEXTS, split="1+1+2")
    batch = labelled(whole_images(2, 0, 1, 1), (2, 3), (0,), (1,), (1,))
    expected = {}
    for kind in (Gem, Agem):
        bounded = method(world, kind)
        bounded.begin_task(world.context(STEPS[2]))
        student = world.first.train()
        if student.num_classes < 4:
            student.expand_classes(3)
        images = student.image_pass(batch)
        regions = student.region_pass(images)
        each = F.cross_entropy(regions.logits, regions.labels, reduction="none")
        bounded.relabel(images, regions)
        assert regions.labels.tolist() == [2, IGNORED, IGNORED, IGNORED]
        step = type("Step", (), {"student": type("Pass", (), dict(detector=student, images=images, regions=regions))})
        expected[kind] = [loss.item() for loss in bounded.constraints(step).values()]
    assert expected[Gem] == pytest.approx([each[1].item(), each[2:].mean().item()], rel=1e-5)
    assert expected[Agem] == pytest.approx([each[1:].mean().item()], rel=1e-5)


@pytest.mark.parametrize(
    ("known", "tasks"),
    [((0,), [0]), ((1,), [1]), ((0, 1), [0, 1]), ((2, 3), []), ((0, 1, 2, 3), []), ((), []), (None, [])],
)
def test_an_image_is_of_the_tasks_whose_classes_are_labelled_in_it(tmp_path, known, tasks):
    world = World(tmp_path, tiny_config("fpn", *CLASSIFICATION), TEXTS, split="1+1+2")
    bounded = method(world)
    bounded.begin_task(world.context(STEPS[2]))
    target = Target.from_boxes(torch.zeros(1, 4), torch.tensor([0]))
    assert bounded.kept_by(replace(target, labelled=known if known is None else frozenset(known))) == tasks


def test_a_process_without_stored_images_has_a_constraint_of_zero(tmp_path):
    world = classifier_world(tmp_path)
    learner, _ = world.begin_second([method(world)])
    learner(labelled(whole_images(2, 3), (2, 3), (2, 3)))
    bound = learner.constraints["constraint_task_1"]
    assert bound.item() == 0.0
    assert not torch.autograd.grad(bound, learner.student.classifier.weight)[0].any()


def test_the_first_task_knows_no_constraint(tmp_path):
    world = classifier_world(tmp_path)
    learner, view = world.begin_first([method(world)])
    assert learner(world.batch(view)).keys() == {"loss_cls"}
    assert learner.constraints == {}


def test_a_detectors_anchors_and_regions_in_stored_images_teach_nothing(tmp_path):
    world = World(tmp_path, tiny_config())
    bounded = method(world)
    learner, _ = world.begin_second([bounded])
    pictures = [one_image([[4, 4, 40, 40]], [label]) for label in (2, 0)]
    batch = Batch([one.images[0] for one in pictures], [one.targets[0] for one in pictures])
    batch = labelled(batch, (2, 3), (0, 1))
    student = learner.student
    images = student.image_pass(batch)
    regions = student.region_pass(images)
    whole = student.losses(images, regions)
    of_new = regions.image_index == 0
    labels, anchors = regions.labels.clone(), images.anchor_labels.clone()
    bounded.relabel(images, regions)
    assert torch.equal(regions.labels[of_new], labels[of_new])
    assert torch.equal(images.anchor_labels[0], anchors[0])
    assert (regions.labels[~of_new] == IGNORED).all()
    assert (images.anchor_labels[1] == IGNORED).all()
    assert (anchors[1] >= 0).any()
    step = type("Step", (), {"student": type("Pass", (), dict(detector=student, images=images, regions=regions))})
    (bound,) = bounded.constraints(step).values()
    # Both losses are means: of all regions, and of the images' own.
    shares = of_new.float().mean(), 1 - of_new.float().mean()
    rpn = [(row >= 0).sum() / (anchors >= 0).sum() for row in anchors]
    own = student.losses(images, regions)
    regions.labels, images.anchor_labels = labels.clone(), anchors.clone()
    regions.labels[of_new], images.anchor_labels[0] = IGNORED, IGNORED
    other = student.losses(images, regions)
    assert torch.allclose(bound, sum(other.values()))
    for name, value in whole.items():
        parts = rpn if name.startswith("loss_rpn") else shares
        assert torch.allclose(value, parts[0] * own[name] + parts[1] * other[name], atol=1e-5)


def test_gem_projects_with_its_margin_and_ridge(tmp_path):
    world = classifier_world(tmp_path)
    gradient, constraints = torch.tensor([-3.0, 1.0]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert method(world).project(gradient, constraints).tolist() == pytest.approx([-3 + 3 / 1.001, 2.0], abs=1e-5)
    exact = method(world, MARGIN=0.0, RIDGE=0.0).project(gradient, constraints)
    assert torch.allclose(exact, project_onto_cone(gradient, constraints))
    assert method(world, Agem).project(gradient, constraints[:1]).tolist() == [0.0, 1.0]


def test_the_memory_goes_on_from_task_to_task(tmp_path):
    world = classifier_world(tmp_path)
    bounded = method(world, IMAGES_PER_CLASS=2)
    for task, count in ((FIRST, 3), (SECOND, 6)):
        context = world.context(task)
        bounded.end_task(context)
        assert len(bounded._load(context)) == count
