"""The research backend: Detectron2's meta-architectures, made incremental.

Importing it registers ``IncrementalRCNN``, its RPN and ROI heads and the shared backbones in Detectron2's registries,
so that Detectron2's own tools build them by name. The library is on no package index: it is installed from its
repository, as its INSTALL.md says.
"""

from __future__ import annotations

try:
    import detectron2  # noqa: F401
except ImportError as error:
    from incdet.errors import ConfigError

    raise ConfigError(
        "BACKEND detectron2 needs the library Detectron2, which this Python does not have. It is installed from its "
        "repository, facebookresearch/detectron2 (see its INSTALL.md and docs/detectron2.md), or choose BACKEND "
        "torchvision."
    ) from error

from incdet.backends.detectron2.config import native
from incdet.backends.detectron2.model import IncrementalRCNN, build_detectron2

__all__ = ["IncrementalRCNN", "build_detectron2", "native"]
