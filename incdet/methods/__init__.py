"""Finding methods by the name of their file."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from itertools import permutations

from fvcore.common.config import CfgNode as _FvcoreNode

from incdet.config.node import CfgNode
from incdet.errors import MethodError
from incdet.methods.base import Method


def method_names(problem: str | None = None) -> list[str]:
    """Every method of the package, the files of this folder; of a problem those that are defined for it."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")
    return [name for name in names if problem is None or problem in method_class(name).works_on]


def problem_of(cfg: _FvcoreNode) -> str:
    """The problem that a configuration poses: detection, classification, or multi_label."""
    return "multi_label" if cfg.TASK == "classification" and cfg.MODEL.CLASSIFIER.MULTI_LABEL else cfg.TASK


def method_class(name: str) -> type[Method]:
    """The one :class:`Method` that ``incdet/methods/<name>.py`` defines.

    Raises:
        MethodError: there is no such file; the nearest name is suggested.
    """
    names = method_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise MethodError(f"METHODS: no method {name!r}.{hint} Known: {', '.join(names)}.")
    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    return found


def method_defaults() -> CfgNode:
    """The configuration nodes of all methods: ``METHOD.<NAME>``."""
    return CfgNode({name.upper(): CfgNode(dict(method_class(name).DEFAULTS)) for name in method_names()})


def build_methods(cfg: _FvcoreNode) -> list[Method]:
    """The methods that ``cfg.METHODS`` names, in order.

    Raises:
        MethodError: an unknown name, a name given twice, or two methods that exclude each other.
        ConfigError: a method cannot run with a value of the configuration.
    """
    names = list(cfg.METHODS)
    classes, problem = {name: method_class(name) for name in names}, problem_of(cfg)
    if len(classes) < len(names) or not names:
        raise MethodError(f"METHODS: expected one or more different methods, got {names}.")
    for name, kind in classes.items():
        if problem not in kind.works_on:
            key = "MODEL.CLASSIFIER.MULTI_LABEL" if problem == "multi_label" else "TASK"
            raise MethodError(
                f"METHODS: {name} works on {' and '.join(kind.works_on)}, not on {problem} ({key}). "
                f"What does: {', '.join(method_names(problem))}."
            )
        if not kind.combines and len(names) > 1:
            raise MethodError(f"METHODS: {name} cannot be combined, got {names}. {_first_line(kind)}")
    _refuse_contained(classes)
    methods = {name: kind(cfg.METHOD[name.upper()]) for name, kind in classes.items()}
    for method in methods.values():
        method.check(cfg)
    _refuse_two_owners(methods)
    return list(methods.values())


def _refuse_contained(classes: dict[str, type[Method]]) -> None:
    """A method that extends another returns the other's losses too."""
    for (name, kind), (other, part) in permutations(classes.items(), 2):
        if issubclass(kind, part):
            raise MethodError(f"METHODS: {name} contains {other} already; keep one of them.")


def _first_line(kind: type[Method]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


def _refuse_two_owners(methods: dict[str, Method]) -> None:
    """A base loss, the aligner's slot, the read-out and the constraints can each belong to one method only."""
    owner: dict[str, str] = {}
    for name, method in methods.items():
        for place in (*method.replaces, *method.slots):
            if place in owner:
                raise MethodError(f"METHODS: both {owner[place]} and {name} provide {place}; keep one of them.")
            owner[place] = name
