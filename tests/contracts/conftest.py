"""The detectors that every contract of the interface is tested on: both backends, both necks, both kinds of boxes."""

import pytest
from tiny import tiny_config, tiny_detector

AGNOSTIC = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
BUILDS = {"fpn": ("fpn",), "c4": ("c4",), "fpn-agnostic": ("fpn", *AGNOSTIC), "c4-agnostic": ("c4", *AGNOSTIC)}
BACKENDS = [pytest.param("torchvision"), pytest.param("detectron2", marks=pytest.mark.detectron2)]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(params=BUILDS.values(), ids=BUILDS.keys())
def cfg(request, backend):
    return tiny_config(*request.param, "BACKEND", backend)


@pytest.fixture
def detector(cfg):
    return tiny_detector(cfg).train()
