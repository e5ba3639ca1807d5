"""GPM: the outputs of old images stay, whatever the optimiser carries along, and the rest goes on learning."""

import copy

import pytest
import torch
from tiny import FIRST, SECOND, World, tiny_config

from incdet.data.images import read_image
from incdet.engine.learner import Learner
from incdet.errors import CheckpointError, ConfigError
from incdet.methods.gpm import FILE, KIND, Gpm
from incdet.structures import Batch
from incdet.tensors import load_tensors

EXACT = {"THRESHOLD": 1.0, "PATCHES": 10**4}
TEXTS = ("a", "b", "a", "b", "c", "d", "c", "d")  # fewer old images than a layer has inputs
NETWORKS = {
    "mlp": ("MODEL.BACKBONE.NAME", "mlp", "MODEL.BACKBONE.WIDTH", 32),
    "resnet18": ("MODEL.BACKBONE.NAME", "resnet18"),
}
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.05),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.5),
}


def classification(tmp_path, *overrides) -> World:
    keys = ("TASK", "classification", "TASKS.SPLIT", "2+2", "INPUT.MIN_SIZE_TRAIN", (16,), "INPUT.MIN_SIZE_TEST", 16)
    return World(tmp_path, tiny_config("fpn", *keys, "MODEL.BACKBONE.FREEZE_AT", 0, *overrides), TEXTS)


def method(world: World, **changes) -> Gpm:
    node = world.cfg.METHOD.GPM.clone()
    node.update(changes)
    return Gpm(node)


def memory_after(gpm: Gpm, world: World, task=FIRST, **changes) -> dict[str, torch.Tensor]:
    context = world.context(task, **changes)
    gpm.end_task(context)
    return load_tensors(context.task_folder / FILE, KIND, "")[0]


def grown(world: World):
    torch.manual_seed(1)
    student = copy.deepcopy(world.first)
    student.expand_classes(SECOND.num_new)
    return student


def learn_second(world: World, gpm: Gpm | None, kind: str, steps: int = 4):
    student, methods = grown(world), [gpm] if gpm else []
    context = world.context(SECOND, student)
    for each in methods:
        each.begin_task(context)
    learner = Learner(student.train(), None, methods, SECOND)
    optimizer = OPTIMIZERS[kind]([p for p in student.parameters() if p.requires_grad])
    for step in range(steps):
        torch.manual_seed(step)
        losses = learner(world.batch(context.view, step))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        with learner.around_update():
            optimizer.step()
    return student


@torch.no_grad()
def looked_at(world: World, student):
    """What a detector makes of the old images."""
    pixels = [read_image(image.record.path).float() / 255 for image in world.context(FIRST).view.images]
    with student.evaluating():
        images = student.image_pass(Batch(pixels, None))
        return images, student.region_pass(images)


def change_of_logits(world: World, student, columns: int) -> float:
    before, after = (looked_at(world, detector)[1].logits[:, :columns] for detector in (grown(world), student))
    return (after - before).abs().max().item()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("heads", [True, False], ids=["one head per task", "one head"])
@pytest.mark.parametrize("network", NETWORKS)
def test_outputs_of_remembered_images_stay(tmp_path, network, heads, kind):
    world = classification(tmp_path, *NETWORKS[network], "MODEL.CLASSIFIER.MULTI_HEAD", heads)
    gpm = method(world, **EXACT)
    memory_after(gpm, world)
    student = learn_second(world, gpm, kind)
    columns = FIRST.num_seen if heads else SECOND.num_seen  # with one head, what it says of new classes stays too
    assert change_of_logits(world, student, columns) < 1e-5
    assert change_of_logits(world, learn_second(world, None, kind), columns) > 1e-3
    assert any((p - q).abs().max() > 1e-3 for p, q in _weights(world, student, "backbone"))
    assert any((p - q).abs().max() > 1e-3 for p, q in _weights(world, student, "head"))


def _weights(world: World, student, part: str):
    before = dict(grown(world).named_parameters())
    return [(p, before[n]) for n, p in student.named_parameters() if n.startswith(part) and n.endswith("weight")]


def test_in_detection_the_maps_stay_and_the_head_learns(tmp_path):
    world = World(tmp_path, tiny_config("fpn", "MODEL.BACKBONE.FREEZE_AT", 2))
    gpm = method(world, **EXACT)
    memory_after(gpm, world)
    student = learn_second(world, gpm, "SGD")
    free = learn_second(world, None, "SGD")
    for level, before in looked_at(world, world.first)[0].features.items():
        scale = before.abs().max()
        assert (looked_at(world, student)[0].features[level] - before).abs().max() < 1e-4 * scale
        assert (looked_at(world, free)[0].features[level] - before).abs().max() > 1e-2 * scale
    assert any((p - q).abs().max() > 1e-3 for p, q in _weights(world, student, "roi_heads"))
    assert any((p - q).abs().max() > 1e-3 for p, q in _weights(world, student, "rpn"))


def test_norms_and_biases_stay_and_the_new_head_has_its_own(tmp_path):
    world = classification(tmp_path, *NETWORKS["resnet18"], "MODEL.CLASSIFIER.MULTI_HEAD", True)
    gpm = method(world)
    memory_after(gpm, world)
    student = learn_second(world, gpm, "AdamW")
    before = grown(world).state_dict()
    held = [name for name in before if ".bn" in name or "downsample.1" in name]
    assert any(name.endswith("running_mean") for name in held)
    assert all(torch.equal(student.state_dict()[name], before[name]) for name in held)
    assert (student.head.bias[FIRST.num_seen :] - before["head.bias"][FIRST.num_seen :]).abs().min() > 1e-3


def test_the_scale_that_cosine_heads_share_stays(tmp_path):
    heads = ("MODEL.CLASSIFIER.MULTI_HEAD", True, "MODEL.CLASSIFIER.HEAD", "cosine")
    world = classification(tmp_path, *NETWORKS["mlp"], *heads)
    gpm = method(world, **EXACT)
    gpm.check(world.cfg)
    memory_after(gpm, world)
    assert change_of_logits(world, learn_second(world, gpm, "AdamW"), FIRST.num_seen) < 1e-5


def test_with_a_sigmoid_per_class_old_rows_stay_and_new_ones_learn(tmp_path):
    """No new class competes with an old one, so nothing has to keep its row away from what old images look like."""
    world = classification(tmp_path, *NETWORKS["mlp"], "MODEL.CLASSIFIER.MULTI_LABEL", True)
    gpm = method(world, **EXACT)
    assert set(memory_after(gpm, world)) == {"backbone.body.fc1.0", "backbone.body.fc2.0"}
    student = learn_second(world, gpm, "AdamW")
    before = grown(world).head
    assert change_of_logits(world, student, FIRST.num_seen) < 1e-5
    for now, then in zip(student.head.parameters(), before.parameters(), strict=True):
        assert torch.equal(now[: FIRST.num_seen], then[: FIRST.num_seen])
        assert (now[FIRST.num_seen :] - then[FIRST.num_seen :]).abs().max() > 1e-3
    _, regions = looked_at(world, student)
    _, were = looked_at(world, grown(world))
    assert (regions.logits - were.logits)[:, FIRST.num_seen :].abs().max() > 1e-3  # also on what old images look like


def test_the_memory_grows_and_stays_orthonormal(tmp_path):
    world = classification(tmp_path, *NETWORKS["mlp"])
    gpm = method(world, THRESHOLD=0.9, STEP=0.05)
    first = memory_after(gpm, world)
    second = memory_after(gpm, world, SECOND, student=learn_second(world, gpm, "SGD"))
    assert set(first) == set(second) == {"backbone.body.fc1.0", "backbone.body.fc2.0", "head"}
    for name, basis in second.items():
        count = first[name].shape[1]
        assert torch.equal(basis[:, :count], first[name])
        torch.testing.assert_close(basis @ basis.transpose(1, 2), torch.eye(basis.shape[1])[None])
    assert second["head"].shape[2] == 32
    assert sum(basis.shape[1] for basis in second.values()) > sum(basis.shape[1] for basis in first.values())


def test_with_one_head_per_task_no_head_is_remembered(tmp_path):
    world = classification(tmp_path, *NETWORKS["mlp"], "MODEL.CLASSIFIER.MULTI_HEAD", True)
    assert set(memory_after(method(world), world)) == {"backbone.body.fc1.0", "backbone.body.fc2.0"}


def test_at_most_so_many_images_are_remembered(tmp_path):
    world = classification(tmp_path, *NETWORKS["mlp"])
    for images in (1, 3):
        memory = memory_after(method(world, IMAGES=images, **EXACT), world)
        assert {basis.shape[1] for basis in memory.values()} == {images}


def test_the_threshold_rises_from_task_to_task_up_to_one(tmp_path):
    gpm = method(classification(tmp_path), THRESHOLD=0.97, STEP=0.003)
    assert [gpm.threshold(task) for task in (1, 2, 10, 11, 12)] == pytest.approx([0.97, 0.973, 0.997, 1.0, 1.0])


def test_a_higher_threshold_leaves_less_to_learn(tmp_path):
    world = classification(tmp_path, *NETWORKS["resnet18"])
    shares = []
    for threshold in (0.5, 0.9, 1.0):
        gpm = method(world, THRESHOLD=threshold)
        memory_after(gpm, world)
        gpm.begin_task(world.context(SECOND, grown(world)))
        shares.append(gpm.report()["gradient_memory"]["free_share"])
    assert shares[0] > shares[1] > shares[2] > 0


def test_the_first_task_trains_freely(tmp_path):
    world = classification(tmp_path)
    gpm = method(world)
    gpm.begin_task(world.context(FIRST))
    weight = torch.nn.Parameter(torch.ones(1))
    with gpm.around_update({"backbone.body.conv1.weight": weight}):
        weight.data += 1
    assert weight.item() == 2
    assert all(parameter.requires_grad for parameter in world.first.parameters())
    assert gpm.report() == {}


def test_one_process_writes_the_memory(tmp_path):
    world = classification(tmp_path, *NETWORKS["mlp"])
    context = world.context(FIRST, is_main=False)
    method(world).end_task(context)
    assert not list(context.task_folder.iterdir())


def test_a_missing_memory_says_how_to_come_by_it(tmp_path):
    world = classification(tmp_path, *NETWORKS["mlp"])
    with pytest.raises(CheckpointError, match=r"gradient_memory\.safetensors .*cannot be read.*--resume"):
        method(world).begin_task(world.context(SECOND))


@pytest.mark.parametrize("changes", [{"THRESHOLD": 0.0}, {"THRESHOLD": 1.5}, {"STEP": -0.1}])
def test_a_threshold_that_is_no_share_is_refused(tmp_path, changes):
    with pytest.raises(ConfigError, match=r"METHOD\.GPM\.THRESHOLD"):
        method(classification(tmp_path), **changes)


def test_a_single_cosine_head_is_refused(tmp_path):
    world = classification(tmp_path, "MODEL.CLASSIFIER.HEAD", "cosine")
    with pytest.raises(ConfigError, match=r"MODEL\.CLASSIFIER\.HEAD: expected linear, got cosine"):
        method(world).check(world.cfg)
