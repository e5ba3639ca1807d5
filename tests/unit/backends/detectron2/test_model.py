"""What holds a detector's losses together is not a part of it."""

import pytest
from tiny import FIRST, tiny_config, tiny_detector

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from incdet.engine.learner import Learner, freeze_copy

pytestmark = pytest.mark.detectron2


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_a_learner_is_no_part_of_the_module_tree(neck):
    detector = tiny_detector(tiny_config(neck, "BACKEND", "detectron2"))
    modules, keys = list(detector.modules()), detector.state_dict().keys()
    detector.learner = learner = Learner(detector, freeze_copy(detector), [], FIRST)
    assert detector.learner is learner
    assert list(detector.modules()) == modules
    assert detector.state_dict().keys() == keys
    detector.train()  # walks the tree
    assert detector.training
    detector.learner = None
    assert detector.learner is None
