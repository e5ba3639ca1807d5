"""What every test shares: one thread, and a printed reason where a marked test cannot run."""

import importlib.util

import pytest
import torch
from shared_data import SHARED_DATA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = {}
    if not SHARED_DATA.is_dir():
        absent["shared_data"] = "../shared/data is absent"
    if importlib.util.find_spec("detectron2") is None:
        absent["detectron2"] = "detectron2 is not installed"
    for item in items:
        for marker, reason in absent.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors here are small: threads cost more than they give, and sums keep their order on every machine."""
    torch.set_num_threads(1)
