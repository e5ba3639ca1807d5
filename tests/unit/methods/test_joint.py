"""The upper bound: all labels, and a schedule as long as all tasks together."""

import numpy as np
from tiny import SECOND, World, tiny_config

from incdet.config import get_cfg
from incdet.methods.joint import Joint


def config(iterations: int, steps: tuple[int, ...], rate: float):
    cfg = get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.BASE_LR = iterations, steps, rate
    return cfg


def test_the_recipe_is_the_first_tasks_stretched_to_all_iterations():
    cfgs = [config(100, (60, 80), 0.4), config(50, (40,), 0.1), config(30, (), 0.1)]
    joint = Joint(get_cfg().METHOD.JOINT)
    both, all_three = joint.task_config(cfgs[:2]).SOLVER, joint.task_config(cfgs).SOLVER
    assert (both.MAX_ITER, both.STEPS, both.BASE_LR) == (150, (90, 120), 0.4)
    assert (all_three.MAX_ITER, all_three.STEPS) == (180, (108, 144))
    assert (cfgs[0].SOLVER.MAX_ITER, cfgs[0].SOLVER.STEPS) == (100, (60, 80))
    assert joint.task_config(cfgs[:1]).SOLVER == cfgs[0].SOLVER


def test_it_trains_on_every_label_of_every_seen_class(tmp_path):
    world = World(tmp_path, tiny_config(), texts=("ca", "b", "dd"))
    context = world.context(SECOND)
    view = Joint(world.cfg.METHOD.JOINT).training_data(context.view, context)
    found = {image.record.image_id: image.labels.tolist() for image in view.images}
    assert found == {"im0": [2, 0], "im1": [1], "im2": [3, 3]}
    assert all(image.labelled == {0, 1, 2, 3} for image in view.images)
    np.testing.assert_array_equal(view.images[0].boxes, world.dataset.images[0].boxes)
