"""incdet's keys and Detectron2's in one tree.

Both libraries use the same names for the same things, so a tree can hold both. It comes about in two ways:

- ``incdet.config.add_incdet_config(cfg)`` on Detectron2's ``get_cfg()``: its values stay, incdet's keys are added.
- ``BACKEND: detectron2`` in incdet's ``get_cfg()``: incdet's values stay, Detectron2's keys are added. A `_BASE_` from
  the model zoo, ``detectron2://PascalVOC-Detection/faster_rcnn_R_50_C4.yaml``, counts on Detectron2's defaults and
  brings them.

``native`` turns such a tree into what Detectron2 builds an incremental detector from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode as Detectron2Node
from detectron2.config import get_cfg as detectron2_defaults

from incdet.backends.backbone import NETWORKS
from incdet.config.node import CfgNode, Library, add_missing, leaves
from incdet.errors import ConfigError

RUN_KEYS = ("OUTPUT_DIR", "SEED", "VERSION")  # of a run, not of a model: incdet's own defaults hold
INCREMENTAL = {
    "MODEL.META_ARCHITECTURE": {"GeneralizedRCNN": "IncrementalRCNN"},
    "MODEL.PROPOSAL_GENERATOR.NAME": {"RPN": "IncrementalRPN"},
    "MODEL.ROI_HEADS.NAME": {
        "StandardROIHeads": "IncrementalStandardROIHeads",
        "Res5ROIHeads": "IncrementalRes5ROIHeads",
    },
}
# What Detectron2's own trainer and loader do and incdet's engine does not: with what to do instead.
ELSEWHERE = {
    "CUDNN_BENCHMARK": "leave it out",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": "a task's images are those with its objects",
    "DATALOADER.REPEAT_THRESHOLD": "leave it out",
    "DATALOADER.SAMPLER_TRAIN": "METHODS: [replay] decides what is drawn",
    "DATASETS.PROPOSAL_FILES_TEST": "proposals are the RPN's",
    "DATASETS.PROPOSAL_FILES_TRAIN": "proposals are the RPN's",
    "FLOAT32_PRECISION": "leave it out",
    "GLOBAL.HACK": "leave it out",
    "INPUT.CROP.ENABLED": "leave it out",
    "SOLVER.AMP.ENABLED": "set SOLVER.PRECISION: 16-mixed",
    "SOLVER.BASE_LR_END": "leave it out",
    "SOLVER.NUM_DECAYS": "leave it out",
    "SOLVER.REFERENCE_WORLD_SIZE": "scale SOLVER yourself",
    "SOLVER.RESCALE_INTERVAL": "leave it out",
    "SOLVER.WARMUP_METHOD": "the warm-up is linear",
    "TEST.AUG.ENABLED": "leave it out",
    "TEST.EVAL_PERIOD": "a task is tested at its end",
    "TEST.PRECISE_BN.ENABLED": "leave it out",
    "VIS_PERIOD": "leave it out",
}


class IncdetNode(CfgNode, Detectron2Node):
    """incdet's configuration tree, which Detectron2's tools take for their own."""


def adopt(cfg: CfgNode, ours: CfgNode, library: Library) -> None:
    """Make Detectron2's configuration incdet's too (``incdet.config.add_incdet_config``).

    Args:
        cfg: Detectron2's, changed in place.
        ours: incdet's defaults.
        library: Detectron2, as incdet's configuration knows it.
    """
    _become(cfg)
    library.keys.update(key for key, _ in leaves(cfg))
    list(add_missing(cfg, ours))
    cfg.BACKEND = library.name
    cfg.know(library)


def _become(node: CfgNode) -> None:
    object.__setattr__(node, "__class__", IncdetNode)  # its own refuses what is no value
    for child in node.values():
        if isinstance(child, Detectron2Node):
            _become(child)


def defaults() -> Mapping[str, Any]:
    """Detectron2's defaults, without those of a run."""
    return {key: value for key, value in detectron2_defaults().items() if key not in RUN_KEYS}


def zoo_file(name: str) -> Path:
    """Where a configuration of Detectron2's model zoo lies, e.g. ``PascalVOC-Detection/faster_rcnn_R_50_C4.yaml``.

    Raises:
        ConfigError: the model zoo has no such file.
    """
    from detectron2 import model_zoo  # here, because it needs setuptools below 81, which nothing else does

    try:
        return Path(model_zoo.get_config_file(name))
    except RuntimeError as error:
        raise ConfigError(f"_BASE_ detectron2://{name}: Detectron2's model zoo has no configuration {name}.") from error


def native(cfg: CfgNode, num_classes: int) -> CfgNode:
    """A copy of ``cfg`` from which Detectron2's ``build_model`` builds an incremental detector.

    A shared backbone (``MODEL.BACKBONE.NAME: resnet50``) with ``MODEL.NECK`` decides the heads and their inputs, where
    these are as Detectron2 has them by default. Detectron2's own names are taken as they are, its RPN and ROI heads in
    their incremental form.

    Args:
        cfg: a tree with both libraries' keys.
        num_classes: of the head, the background not counted.
    """
    cfg = cfg.clone()
    cfg.defrost()
    values, theirs = dict(leaves(cfg)), dict(leaves(detectron2_defaults()))
    if cfg.MODEL.BACKBONE.NAME in NETWORKS:
        values |= {key: value for key, value in _shared_keys(cfg) if _plain(values[key]) == _plain(theirs[key])}
    for key, names in INCREMENTAL.items():
        values[key] = names.get(values[key], values[key])
    for key, default in theirs.items():
        # Some of its parts change a list in place, which a tuple does not bear.
        _set(cfg, key, list(values[key]) if isinstance(default, list) else values[key])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.DEVICE = "cpu"  # the engine moves it
    return cfg


def _shared_keys(cfg: CfgNode) -> Iterator[tuple[str, Any]]:
    if cfg.MODEL.NECK == "c4":
        levels: tuple[str, ...] = ("res4",)
        yield "MODEL.RPN.IN_FEATURES", levels
        yield "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"
    else:
        levels = tuple(cfg.MODEL.FPN.IN_FEATURES)
        yield "MODEL.RPN.IN_FEATURES", (*levels, "pool")
        yield "MODEL.ROI_HEADS.NAME", "StandardROIHeads"
        yield "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"
        yield "MODEL.ROI_BOX_HEAD.NUM_FC", 2
    yield "MODEL.ROI_HEADS.IN_FEATURES", levels


def _set(cfg: CfgNode, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    node = cfg
    for section in sections:
        node = node[section]
    node[name] = value


def refuse_elsewhere(cfg: CfgNode) -> None:
    """Stop where a key asks for something that only Detectron2's own trainer does.

    Raises:
        ConfigError: naming the keys, where they were set, and what to do instead.
    """
    ours, theirs = dict(leaves(cfg)), dict(leaves(detectron2_defaults()))
    lines = [
        f"  {key} = {ours[key]!r} ({cfg.origin(key) or 'a default'}): {instead}"
        for key, instead in ELSEWHERE.items()
        if _plain(ours[key]) != _plain(theirs[key])
    ]
    if lines:
        raise ConfigError(
            "incdet's engine does not do what these keys of Detectron2 ask for; its own trainer does "
            "(docs/detectron2.md):\n" + "\n".join(lines)
        )


def _plain(value: Any) -> Any:
    """A list and a tuple of the same values are the same setting."""
    return tuple(value) if isinstance(value, list) else value
