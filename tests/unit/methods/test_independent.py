"""Every task alone: the task's own view, the first task's recipe, and nothing of the model before."""

from tiny import SECOND, World, tiny_config

from incdet.config import get_cfg
from incdet.methods.independent import Independent


def test_every_task_has_the_recipe_of_the_first():
    cfgs = [get_cfg(), get_cfg()]
    cfgs[0].SOLVER.BASE_LR, cfgs[1].SOLVER.BASE_LR = 0.4, 0.1
    assert Independent(get_cfg().METHOD.INDEPENDENT).task_config(cfgs).SOLVER == cfgs[0].SOLVER


def test_it_sees_what_the_task_sees_and_no_more(tmp_path):
    world = World(tmp_path, tiny_config(), texts=("ca", "b", "dd"))
    context = world.context(SECOND)
    method = Independent(world.cfg.METHOD.INDEPENDENT)
    assert method.training_data(context.view, context) is context.view
    assert method.from_scratch
    assert not method.needs_teacher
