"""Finding and combining methods by name."""

import pytest

from incdet.config import get_cfg
from incdet.errors import MethodError
from incdet.methods import build_methods, method_class, method_names
from incdet.methods.base import Method


def build(*names: str) -> list[Method]:
    cfg = get_cfg()
    cfg.METHODS = names
    return build_methods(cfg)


def test_the_files_are_the_methods():
    assert {"faster_ilod", "finetune", "ilod", "joint", "pseudo_label", "replay"} <= set(method_names())
    assert "base" not in method_names()
    assert method_names() == sorted(method_names())
    assert method_class("faster_ilod").__name__ == "FasterIlod"


def test_methods_keep_the_order_in_which_they_were_named():
    assert [type(method).__name__ for method in build("replay", "ilod")] == ["Replay", "Ilod"]
    assert [type(method).__name__ for method in build("ilod", "replay")] == ["Ilod", "Replay"]


def test_a_slip_of_the_pen_gets_the_nearest_name():
    with pytest.raises(MethodError, match=r"METHODS: no method 'pseudo_lable'\. Did you mean 'pseudo_label'\? Known: "):
        build("pseudo_lable")
    with pytest.raises(MethodError, match=r"no method 'xyz'\. Known: .*finetune"):
        build("xyz")


@pytest.mark.parametrize("names", [(), ("ilod", "ilod")])
def test_none_or_one_twice_is_refused(names):
    with pytest.raises(MethodError, match="expected one or more different methods, got "):
        build(*names)


def test_a_lonely_method_says_why():
    with pytest.raises(MethodError, match=r"joint cannot be combined.*all labels at once"):
        build("replay", "joint")
