import pytest
import torch

from incdet.engine.launch import build_fabric
from incdet.errors import ConfigError


def test_one_process_by_default():
    fabric = build_fabric()
    assert fabric.world_size == 1
    assert fabric.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_torchrun_decides_the_numbers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "GROUP_RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    fabric = build_fabric(gpus=1)
    assert fabric._connector._devices_flag == 2
    assert fabric._connector._num_nodes_flag == 2


def test_url_of_the_first_machine(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    import os

    build_fabric(url="tcp://first:29500")
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("first", "29500")


@pytest.mark.parametrize("url", ["first:29500", "tcp://first", "29500"])
def test_url_that_is_none(url):
    with pytest.raises(ConfigError, match=r"--dist-url: expected tcp://HOST:PORT"):
        build_fabric(url=url)


def test_unknown_precision():
    with pytest.raises(ConfigError, match=r"SOLVER\.PRECISION: expected one of 32-true.*'half'"):
        build_fabric("half")


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="--num-gpus is 4, but this machine has 2"):
        build_fabric(gpus=4)
