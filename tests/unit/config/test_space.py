"""The file that says what a sweep searches."""

import pytest

from incdet.config import get_cfg
from incdet.config.space import Choices, Range, read_space, values_in
from incdet.errors import ConfigError


@pytest.fixture
def read(tmp_path):
    def read(text, cfg=None):
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return read_space(path, cfg or get_cfg())

    return read


def test_ranges_and_choices_have_the_types_of_their_keys(read):
    space = read(
        """
METHOD.PSEUDO_LABEL.SCORE_ROI: {low: 0.3, high: 0.9}
SOLVER.BASE_LR: {low: 1e-4, high: 1, log: true}
NEXT_TASKS.SOLVER.MAX_ITER: {choices: [250, 400]}
SOLVER.WARMUP_ITERS: {low: 1, high: 100}
SOLVER.STEPS: {choices: [[3, 4], [5]]}
METHODS: {choices: [[finetune], [ilod]]}
"""
    )
    assert space == {
        "METHOD.PSEUDO_LABEL.SCORE_ROI": Range(0.3, 0.9),
        "SOLVER.BASE_LR": Range(1e-4, 1.0, log=True),
        "NEXT_TASKS.SOLVER.MAX_ITER": Choices((250, 400)),
        "SOLVER.WARMUP_ITERS": Range(1, 100),
        "SOLVER.STEPS": Choices(((3, 4), (5,))),
        "METHODS": Choices((("finetune",), ("ilod",))),
    }
    assert isinstance(space["SOLVER.BASE_LR"].high, float)
    assert isinstance(space["SOLVER.WARMUP_ITERS"].high, int)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER.BASE_LRR: {low: 1, high: 2}", r"SOLVER\.BASE_LRR, set in .*space\.yaml.*Did you mean SOLVER\.BASE_LR"),
        ("SOLVER.MAX_ITER: {low: 1.5, high: 2}", r"SOLVER\.MAX_ITER expects int.*space\.yaml"),
        ("SOLVER: {low: 1, high: 2}", r"SOLVER is a section of keys.*space\.yaml"),
        ("SOLVER.BASE_LR: 0.1", r"space\.yaml: SOLVER\.BASE_LR: expected \{low"),
        ("SOLVER.BASE_LR: {low: 0.1}", r"space\.yaml: SOLVER\.BASE_LR: expected \{low"),
        ("SOLVER.BASE_LR: {low: 1, high: 2, step: 1}", r"space\.yaml: SOLVER\.BASE_LR: expected \{low"),
        ("SOLVER.BASE_LR: {low: 2, high: 1}", r"SOLVER\.BASE_LR: expected numbers with low below high"),
        ("SOLVER.BASE_LR: {low: 1, high: .inf}", r"SOLVER\.BASE_LR: expected numbers with low below high"),
        ("SOLVER.OPTIMIZER: {low: a, high: b}", r"SOLVER\.OPTIMIZER: expected numbers"),
        ("SOLVER.NESTEROV: {low: false, high: true}", r"SOLVER\.NESTEROV: expected numbers"),
        ("SOLVER.BASE_LR: {low: 0, high: 1, log: true}", r"SOLVER\.BASE_LR: log is .* begins above 0"),
        ("SOLVER.BASE_LR: {low: 1, high: 2, log: 3}", r"SOLVER\.BASE_LR: log is true or false"),
        ("SOLVER.BASE_LR: {choices: 0.1}", r"SOLVER\.BASE_LR: choices are a list of at least two"),
        ("SOLVER.BASE_LR: {choices: [0.1]}", r"SOLVER\.BASE_LR: choices are a list of at least two"),
        ("SOLVER.BASE_LR: {choices: [1, 1.0]}", r"SOLVER\.BASE_LR: every choice is to be given once"),
        ("SEED: {low: 0, high: 9}", r"space\.yaml: SEED belongs to the problem"),
        ("DATASETS.HELD_OUT: {low: 0.1, high: 0.9}", r"DATASETS\.HELD_OUT belongs to the problem"),
        ("NEXT_TASKS.DATASETS.DIFFICULT: {choices: [keep, drop]}", r"NEXT_TASKS\.DATASETS\.DIFFICULT belongs"),
        ("", "names no key to search"),
        ("- SOLVER.BASE_LR", "must hold"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_file_and_key(read, text, message):
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_the_values_of_a_configuration_are_those_of_the_task_that_a_key_speaks_of(read):
    cfg = get_cfg()
    space = read("NEXT_TASKS.SOLVER.MAX_ITER: {low: 1, high: 99}\nSOLVER.STEPS: {choices: [[3, 4], [5]]}", cfg)
    assert values_in(cfg, space) is None  # 18000 is far outside
    cfg.merge_from_list(["SOLVER.MAX_ITER", 7, "SOLVER.STEPS", (5,)])
    assert values_in(cfg, space) == {"NEXT_TASKS.SOLVER.MAX_ITER": 7, "SOLVER.STEPS": (5,)}
    cfg.merge_from_list(["NEXT_TASKS.SOLVER.MAX_ITER", 8])
    assert values_in(cfg, space)["NEXT_TASKS.SOLVER.MAX_ITER"] == 8
