"""What every method keeps to, on every kind of head. New methods are found by their file and tested here unasked."""

import copy
import inspect
import itertools
from functools import cache

import pytest
import torch
from tiny import FIRST, SECOND, World, random_batch, random_images, tiny_config
from torch.nn import functional

import incdet.methods
from incdet.backends.backbone import Body
from incdet.backends.base import BASE_LOSSES, Detector
from incdet.config import get_cfg
from incdet.engine.learner import Learner, check_losses, freeze_copy
from incdet.engine.slots import install_slots
from incdet.errors import MethodError
from incdet.methods import build_methods, method_class, method_names
from incdet.methods.base import SLOTS, Method
from incdet.structures import Batch, Target

NAMES = method_names("detection")
CLASSES = {name: method_class(name) for name in NAMES}
# A random detector is never sure; these let its detections through. Fits and stages are short.
CREDULOUS = (
    "METHOD.ELI.ITERATIONS", 3,
    "METHOD.BPF.INTERIM_ITERATIONS", 1,
    "METHOD.BPF.SCORE_ROI", 0.36,
    "METHOD.ABR.MIN_SIZE", 12,
    "METHOD.DISTILL_RETROSPECT.EXPERT_ITERATIONS", 1,
    "METHOD.IOD.FINETUNE_ITER", 2,
    "METHOD.LWF.WARMUP_ITER", 1,
    "METHOD.PROTOTYPES.ITERATIONS", 2,
    "METHOD.PSEUDO_LABEL.SCORE_IGNORE", 0.3,
    "METHOD.PSEUDO_LABEL.SCORE_RPN", 0.34,
    "METHOD.PSEUDO_LABEL.SCORE_ROI", 0.36,
)  # fmt: skip
BACKENDS = {"torchvision": (), "detectron2": pytest.mark.detectron2}
HEADS = [
    pytest.param(
        (neck, "BACKEND", backend, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic, *CREDULOUS),
        id=f"{backend}-{neck}{'-agnostic' * agnostic}",
        marks=marks,
    )
    for backend, marks in BACKENDS.items()
    for neck in ("fpn", "c4")
    for agnostic in (False, True)
]


def excluded(one: str, other: str) -> bool:
    """Whether one of two methods contains the other or holds the same place, so that they exclude each other."""
    kinds = CLASSES[one], CLASSES[other]
    mine, its = ({*kind.replaces, *(s for s in SLOTS if getattr(kind, s) is not getattr(Method, s))} for kind in kinds)
    return issubclass(*kinds) or issubclass(*kinds[::-1]) or not mine.isdisjoint(its)


def changes_data(name: str) -> bool:
    """Whether a method changes what is trained on; of two such methods the order matters."""
    hooks = ("training_data", "transform_batch")
    return any(getattr(CLASSES[name], hook) is not getattr(Method, hook) for hook in hooks)


COMBINABLE = [name for name in NAMES if CLASSES[name].combines]
PAIRS = [
    pair
    for pair in itertools.permutations(COMBINABLE, 2)
    if not excluded(*pair) and (pair[0] < pair[1] or all(map(changes_data, pair)))
]


@pytest.fixture(params=HEADS)
def world(request, tmp_path):
    return World(tmp_path, tiny_config(*request.param))


@pytest.fixture(params=[pytest.param(backend, marks=marks) for backend, marks in BACKENDS.items()])
def fpn_world(request, tmp_path):
    return World(tmp_path, tiny_config("fpn", "BACKEND", request.param, *CREDULOUS))


@pytest.fixture(scope="module")
def losses_alone(tmp_path_factory):
    """The names of the losses of a method that is used alone, on a backend: computed once for all pairs."""

    @cache
    def names(backend: str, name: str) -> frozenset[str]:
        world = World(tmp_path_factory.mktemp(name), tiny_config("fpn", "BACKEND", backend, *CREDULOUS))
        return frozenset(world.begin_second(chosen(world, name))[0](random_batch(2, SECOND.num_seen)))

    return names


def chosen(world: World, *names: str) -> list[Method]:
    cfg = world.cfg.clone()
    cfg.METHODS = names
    return build_methods(cfg)


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def train_one_step(learner: Learner, batch: Batch, seed: int = 0) -> dict[str, torch.Tensor]:
    """Losses, gradients and an optimiser step, as the loop does it, with the checks that hold for any method."""
    torch.manual_seed(seed)
    losses = learner(batch)
    check_losses(losses, 0)
    assert all(value.shape == () and torch.isfinite(value) for value in losses.values())
    assert all(name.startswith("loss_") for name in losses)
    assert losses.keys() >= set(BASE_LOSSES)
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    assert losses.keys().isdisjoint(learner.constraints)
    with learner.around_backward(lambda rows: rows):
        sum(losses.values()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in parameters)
    before = snapshot(learner.student)
    with learner.around_update():
        optimizer.step()
    assert not unchanged(learner.student, before)
    return losses


# ---------------------------------------------------------------------- steps


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_the_first_task_has_the_base_losses_and_no_teacher(world, name):
    learner, view = world.begin_first(chosen(world, name))
    assert learner.teacher is None
    assert train_one_step(learner, world.batch(view)).keys() >= set(BASE_LOSSES)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_the_second_task_teaches_the_student_and_leaves_the_teacher_alone(world, name):
    learner, view = world.begin_second(chosen(world, name))
    assert learner.student.num_classes == SECOND.num_seen
    assert (learner.teacher is not None) is CLASSES[name].needs_teacher
    before = snapshot(learner.teacher) if learner.teacher else {}
    for iteration in range(2):
        train_one_step(learner, world.batch(view, iteration), iteration)
    if learner.teacher:
        assert unchanged(learner.teacher, before)
        assert not learner.teacher.training
        assert all(p.grad is None and not p.requires_grad for p in learner.teacher.parameters())


@pytest.mark.parametrize("name", [name for name in NAMES if CLASSES[name].needs_teacher])
def test_the_teacher_is_in_no_checkpoint_and_no_optimiser(fpn_world, name):
    learner, _ = fpn_world.begin_second(chosen(fpn_world, name))
    assert {key.split(".")[0] for key in learner.state_dict()} == {"student"}
    assert len(learner.state_dict()) == len(learner.student.state_dict())
    teachers = {id(parameter) for parameter in learner.teacher.parameters()}
    assert teachers.isdisjoint(id(parameter) for parameter in learner.parameters())
    assert learner.teacher not in set(learner.modules())
    learner.train()
    assert not learner.teacher.training


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_methods_that_combine_run_together(fpn_world, losses_alone, names):
    alone = [losses_alone(fpn_world.cfg.BACKEND, name) for name in names]
    learner, view = fpn_world.begin_second(chosen(fpn_world, *names))
    assert train_one_step(learner, fpn_world.batch(view)).keys() == frozenset.union(*alone)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_a_function_of_its_seed(fpn_world, name):
    learner, view = fpn_world.begin_second(chosen(fpn_world, name))
    state, batch = snapshot(learner.student), fpn_world.batch(view)
    results = []
    for _ in range(2):
        learner.student.load_state_dict(state)
        torch.manual_seed(3)
        results.append(learner(batch))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(value, results[1][loss]) for loss, value in results[0].items())


# ---------------------------------------------------------------------- prediction


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_the_same_whatever_the_targets_are(world, name):
    methods = chosen(world, name)
    learner, _ = world.begin_second(methods)
    student = learner.student
    context = world.context(SECOND, student, learner.teacher)
    for method in methods:
        method.refine(context)
    for method in methods:
        method.end_task(context)
    install_slots(student.eval(), methods, context.task_folder)
    images = random_images(2)
    true = random_batch(2, SECOND.num_seen).targets
    wrong = [Target.from_boxes(target.boxes.flip(0) / 2, (target.labels + 1) % SECOND.num_seen) for target in true]
    results = []
    for targets in (true, wrong, None):
        with torch.no_grad():
            outputs = student.image_pass(Batch(images, targets))
            student.region_pass(outputs)
        results.append(student.predict(images))
    assert sum(len(found) for found in results[0]) > 0
    for others in results[1:]:
        for found, other in zip(results[0], others, strict=True):
            assert torch.equal(found.boxes, other.boxes)
            assert torch.equal(found.scores, other.scores)
            assert torch.equal(found.labels, other.labels)


def test_prediction_has_no_way_in_for_targets():
    for kind in (Detector, *Detector.__subclasses__()):
        assert list(inspect.signature(kind.predict).parameters) == ["self", "images"]


# ---------------------------------------------------------------------- frozen stages


def test_the_teacher_takes_the_students_frozen_features_where_they_are_its_own(world, monkeypatch):
    passes = []
    frozen_pass = Body.frozen_pass

    def counted(body, x):
        passes.append(body)
        return frozen_pass(body, x)

    monkeypatch.setattr(Body, "frozen_pass", counted)
    learner, view = world.begin_second(chosen(world, "faster_ilod"))
    batch, state, results = world.batch(view), snapshot(learner.student), []
    for share in (True, False):
        passes.clear()
        learner.student.load_state_dict(state)
        monkeypatch.setattr(learner, "shares_frozen_stages", lambda _, share=share: share)
        torch.manual_seed(0)
        results.append(learner(batch))
        assert len(passes) == (1 if share else 2)
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_sharing_is_decided_by_the_weights(fpn_world):
    methods = chosen(fpn_world, "ilod")
    learner, _ = fpn_world.begin_second(methods)
    assert learner.shares_frozen_stages(learner.teacher)
    other = copy.deepcopy(learner.student)
    torch.nn.init.normal_(other.backbone.body["conv1"].weight)
    assert not Learner(other, learner.teacher, methods, SECOND).shares_frozen_stages(learner.teacher)
    other = copy.deepcopy(learner.student)
    other.freeze(0, norm=False)
    assert not Learner(other, learner.teacher, methods, SECOND).shares_frozen_stages(learner.teacher)


# ---------------------------------------------------------------------- methods written here


class OwnClassification(Method):
    """Replaces the classification loss."""

    replaces = ("loss_cls",)

    def losses(self, step):
        return {"loss_cls": step.student.regions.logits.square().mean()} if step.task.old else {}


class AnotherClassification(OwnClassification):
    """Replaces it too, without knowing of the first."""


class Intruder(Method):
    """Returns a base loss that it did not announce."""

    def losses(self, step):
        return {"loss_cls": step.student.regions.logits.sum()}


class Aligner(Method):
    """Sits in the aligner's slot."""

    def aligner(self, folder):
        return lambda features, predictor: features


class AnotherAligner(Method):
    """Sits there as well."""

    def aligner(self, folder):
        return lambda features, predictor: features * 2


class Reader(Method):
    """Reads the features in another way, which no aligner minds."""

    def read_out(self, folder):
        return lambda features, predictor: predictor(features)[0]


def learners_of_both_tasks(world: World, method: Method):
    student = copy.deepcopy(world.first)
    yield Learner(student.train(), None, [method], FIRST)
    student = copy.deepcopy(world.first)
    student.expand_classes(SECOND.num_new)
    yield Learner(student.train(), freeze_copy(world.first), [method], SECOND)


def test_a_replaced_loss_is_not_computed_once_there_is_something_to_remember(world, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the base loss was computed")

    first, second = learners_of_both_tasks(world, OwnClassification(get_cfg()))
    monkeypatch.setattr(functional, "cross_entropy", refuse)
    with pytest.raises(AssertionError, match="was computed"):
        first(random_batch(2))
    losses = second(random_batch(2, SECOND.num_seen))
    assert set(losses) == set(BASE_LOSSES)
    losses["loss_cls"].backward()
    assert second.student.roi_heads.box_predictor.cls_score.weight.grad.any()


def test_a_base_loss_cannot_be_replaced_unannounced(fpn_world):
    for learner in learners_of_both_tasks(fpn_world, Intruder(get_cfg())):
        with pytest.raises(MethodError, match="Intruder returns the loss 'loss_cls', which is there already"):
            learner(random_batch(2))


@pytest.fixture
def written_here(monkeypatch):
    """Build methods from the classes of this file; returns a function from classes to methods."""
    cfg = get_cfg()

    def build(*kinds: type[Method]) -> list[Method]:
        known = {kind.__name__.lower(): kind for kind in kinds}
        monkeypatch.setattr(incdet.methods, "method_class", known.__getitem__)
        cfg.METHODS = tuple(known)
        for name in known:
            cfg.METHOD[name.upper()] = {}
        return build_methods(cfg)

    return build


@pytest.mark.parametrize(
    ("kinds", "place"),
    [
        ((OwnClassification, type("Unrelated", (Method,), {"replaces": ("loss_cls",)})), "loss_cls"),
        ((Aligner, AnotherAligner), "aligner"),
        ((Reader, type("SecondReader", (Method,), {"read_out": Reader.read_out})), "read_out"),
    ],
    ids=["loss", "aligner", "read_out"],
)
def test_two_owners_of_one_place_are_refused_before_anything_runs(written_here, kinds, place):
    names = [kind.__name__.lower() for kind in kinds]
    with pytest.raises(MethodError, match=rf"both {names[0]} and {names[1]} provide {place}; keep one"):
        written_here(*kinds)


def test_a_method_beside_one_that_contains_it_is_refused(written_here):
    for kinds in itertools.permutations((OwnClassification, AnotherClassification)):
        with pytest.raises(MethodError, match="anotherclassification contains ownclassification already; keep one"):
            written_here(*kinds)


def test_faster_ilod_has_the_losses_of_ilod_so_they_exclude_each_other():
    cfg = get_cfg()
    cfg.METHODS = ("ilod", "faster_ilod")
    with pytest.raises(MethodError, match="faster_ilod contains ilod already"):
        build_methods(cfg)


def test_owners_of_different_places_are_welcome_together(written_here):
    assert [type(m) for m in written_here(OwnClassification, Aligner, Reader)] == [OwnClassification, Aligner, Reader]


# ---------------------------------------------------------------------- by name


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_of_a_method_are_in_the_configuration(name):
    cfg = get_cfg()
    assert dict(cfg.METHOD[name.upper()]) == dict(CLASSES[name].DEFAULTS)
    cfg.METHODS = (name,)
    (method,) = build_methods(cfg)
    assert type(method) is CLASSES[name]
    assert method.cfg is cfg.METHOD[name.upper()]
    assert CLASSES[name].__doc__ != Method.__doc__
    assert set(CLASSES[name].replaces) <= set(BASE_LOSSES)


@pytest.mark.parametrize("name", [name for name in NAMES if not CLASSES[name].combines])
def test_a_method_that_stands_alone_refuses_company(name):
    other = next(other for other in NAMES if other != name)
    for names in ((name, other), (other, name)):
        cfg = get_cfg()
        cfg.METHODS = names
        with pytest.raises(MethodError, match="cannot be combined"):
            build_methods(cfg)
