"""What the tensors of a backbone are called, and in which pixels they see, in each of the files that may bring them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]

BODY = "backbone.body."  # a shared backbone, in detectors of either library and in classifiers
# The last stage of a ResNet is the box head of a C4 detector; elsewhere it belongs to the body.
_LAST_STAGES = (f"{BODY}layer4.", "roi_heads.box_head.", "roi_heads.res5.")
# (beginning of a name in a file, what takes its place in a model), tried in this order after the exact name.
DETECTOR_PREFIXES = (
    ("", BODY),
    ("features.", BODY),
    *((old, new) for old in ("layer4.", *_LAST_STAGES) for new in _LAST_STAGES if old != new),
)
_STEMS = tuple(prefix + stem for prefix in ("", BODY, "features.") for stem in ("conv1.weight", "0.0.weight"))


class Pixels(NamedTuple):
    """What a network sees of pixels from 0 to 255."""

    order: str  # RGB or BGR
    mean: Sequence[float]  # subtracted, in that order
    std: Sequence[float]  # divided by


IMAGENET_PIXELS = Pixels("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
CAFFE2_PIXELS = Pixels("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))


def torchvision_name(name: str) -> str:
    """detectron2's name of a ResNet tensor as torchvision's; any other name as it is."""
    found = re.fullmatch(r"(?:backbone\.bottom_up\.|backbone\.|roi_heads\.)?(stem|res[2-5])\.(.+)", name)
    if not found:
        return name
    stage, rest = found.groups()
    rest = re.sub(r"conv(\d)\.norm\.", r"bn\1.", rest)
    rest = rest.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")
    return rest if stage == "stem" else f"layer{int(stage[3:]) - 1}.{rest}"


def from_caffe2(blobs: State) -> State:
    """Caffe2's blob names (``res2_0_branch2a_bn_s``) as torchvision's; optimiser state is left out."""
    branches = {"branch1": "downsample", "branch2a": "1", "branch2b": "2", "branch2c": "3"}
    endings = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
    result: State = {}
    for name, value in blobs.items():
        first = re.fullmatch(r"(?:res_)?conv1_(bn_)?(w|s|b|rm|riv)", name)
        block = re.fullmatch(r"res([2-5])_(\d+)_(branch1|branch2[abc])_(bn_)?(w|s|b|rm|riv)", name)
        if first:
            norm, ending = first.groups()
            result[f"{'bn1' if norm else 'conv1'}.{endings.get(ending, 'weight')}"] = value
        elif block:
            stage, index, branch, norm, ending = block.groups()
            part = branches[branch]
            layer = f"downsample.{1 if norm else 0}" if part == "downsample" else f"{'bn' if norm else 'conv'}{part}"
            result[f"layer{int(stage) - 1}.{index}.{layer}.{endings.get(ending, 'weight')}"] = value
        elif not name.endswith("_momentum"):
            result[name] = value
    return result


def for_pixels(tensors: State, theirs: Pixels, ours: Pixels) -> State:
    """The tensors with their first convolution rewritten, so that it makes of our pixels what it made of theirs.

    That is exact where the means are the same.
    """
    if (theirs.order, *theirs.std) == (ours.order, *ours.std):
        return tensors
    flip = theirs.order != ours.order
    result = dict(tensors)
    for name in _STEMS:
        stem = tensors.get(name)
        if stem is not None and stem.shape[1:2] == (3,):
            stem = stem / torch.tensor(theirs.std, dtype=stem.dtype).view(1, 3, 1, 1)
            stem = stem.flip(1) if flip else stem
            result[name] = stem * torch.tensor(ours.std, dtype=stem.dtype).view(1, 3, 1, 1)
    return result


def same_mean(theirs: Pixels, ours: Pixels) -> bool:
    """Whether both subtract the same of every channel, to the nearest half of a grey level."""
    mean = theirs.mean if theirs.order == ours.order else tuple(reversed(theirs.mean))
    return all(abs(one - other) < 0.5 for one, other in zip(mean, ours.mean, strict=True))


def match_names(
    state: Mapping[str, Tensor], places: Iterable[str], prefixes: Sequence[tuple[str, str]]
) -> tuple[State, list[str]]:
    """``state`` under the names of ``places``, each taken once, and the names that there is no place for."""
    free = set(places)
    renamed: State = {}
    unexpected = []
    for name, tensor in state.items():
        candidates = [name, *(new + name.removeprefix(old) for old, new in prefixes if name.startswith(old))]
        place = next((candidate for candidate in candidates if candidate in free), None)
        if place is None:
            unexpected.append(name)
        else:
            free.remove(place)
            renamed[place] = tensor
    return renamed, unexpected
