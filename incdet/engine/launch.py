"""Devices and processes, by Lightning Fabric."""

from __future__ import annotations

import os
from urllib.parse import urlparse

import torch
from lightning_fabric import Fabric

from incdet.errors import ConfigError

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


def build_fabric(
    precision: str = "32-true", gpus: int = 1, machines: int = 1, machine_rank: int = 0, url: str | None = None
) -> Fabric:
    """A Fabric for this machine: CUDA where there is one, else as many processes on the CPU.

    Under ``torchrun`` the counts come from its environment.

    Raises:
        ConfigError: an unknown precision, or fewer GPUs than asked for.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"SOLVER.PRECISION: expected one of {', '.join(PRECISIONS)}, got {precision!r}.")
    cuda = torch.cuda.is_available()
    if cuda and gpus > torch.cuda.device_count():
        raise ConfigError(f"--num-gpus is {gpus}, but this machine has {torch.cuda.device_count()}.")
    if url is not None:
        address = urlparse(url)
        if address.hostname is None or address.port is None:
            raise ConfigError(f"--dist-url: expected tcp://HOST:PORT, got {url!r}.")
        os.environ.update(MASTER_ADDR=address.hostname, MASTER_PORT=str(address.port))
    if machines > 1:
        os.environ["NODE_RANK"] = str(machine_rank)
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        gpus, machines = local, int(os.environ["WORLD_SIZE"]) // local
    return Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=gpus,
        num_nodes=machines,
        strategy="ddp" if gpus * machines > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
    )
