"""The nearest mean of the exemplars: what reads features in the predictor's place (Rebuffi et al., iCaRL, CVPR 2017).

A classifier's rows remember where the features of old classes were; the stored images, seen by the current model, say
where they are now. Shapes: R regions, K classes, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from incdet.data.views import TrainImage
from incdet.errors import DataError
from incdet.replay.selection import class_features
from incdet.tensors import load_tensors, save_tensors

FILE = "class_means.safetensors"
KIND = "class_means"
SHARPNESS = 16.0  # of the softmax that makes scores of cosines: they say how sure a class is, not which it is. Ours
_REMEDY = "It belongs beside the model.safetensors of its task: copy both, or learn that task again."


def mean_direction(features: Sequence[Tensor]) -> Tensor:
    """The mean (D,) of features (D,) of unit length, of unit length again."""
    return normalize(torch.stack(list(features)).mean(dim=0), dim=0)


def class_means(images: Sequence[TrainImage], features: Sequence[Tensor], classes: Sequence[str]) -> Tensor:
    """The direction (K, D) of each class (Rebuffi et al., alg. 1): mean of the normalised features, normalised.

    Args:
        images: the stored ones.
        features: per image (n, D), one row for each of its visible boxes.
        classes: the names of all seen classes, in the order of their labels.

    Raises:
        DataError: no image of a class is stored.
    """
    means = []
    for label, name in enumerate(classes):
        _, normalised = class_features(images, features, label)
        if not normalised:
            raise DataError(
                f"No image of the class {name!r} is stored, so that it has no mean to be read by. Give the training "
                "set images of it, or read by the head (READING: head)."
            )
        means.append(mean_direction(normalised))
    return torch.stack(means)


class NearestMean(nn.Module):
    """Reads features by the nearest mean, in a read-out's slot.

    Args:
        means: (K, D) of unit length, so that the nearest to a feature of unit length has the largest cosine with it.
    """

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.means: Tensor
        self.register_buffer("means", means)

    def forward(self, features: Tensor, predictor: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """Logits (R, K) of features (R, D): scaled cosines with the means. The predictor is not asked."""
        return SHARPNESS * normalize(features.float(), dim=1) @ self.means.T


def save_means(folder: Path, means: Tensor, classes: Sequence[str]) -> None:
    """Write the means (K, D) of classes beside the model in ``folder``."""
    save_tensors(folder / FILE, KIND, {"means": means}, list(classes))


def load_means(folder: Path) -> Tensor:
    """The means (K, D) that lie beside a model.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    return load_tensors(folder / FILE, KIND, _REMEDY)[0]["means"]
