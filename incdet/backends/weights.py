"""Weights from the files the field uses, into a model under other names; no file can run code here.

``MODEL.WEIGHTS`` may name a torchvision enum, a safetensors, ``.pth``, detectron2 ``.pkl`` or ``.npz`` file, or the
folder of a run or of a task. Names are brought to torchvision's. A file that is damaged, unsafe or of another network
raises ``CheckpointError``.
"""

from __future__ import annotations

import contextlib
import difflib
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
import yaml
from safetensors import safe_open
from torch import Tensor, nn
from torchvision.models import get_model_weights, get_weight, list_models

from incdet.backends.models import weights_file
from incdet.backends.names import (
    BODY,
    CAFFE2_PIXELS,
    DETECTOR_PREFIXES,
    IMAGENET_PIXELS,
    Pixels,
    State,
    for_pixels,
    from_caffe2,
    match_names,
    torchvision_name,
)
from incdet.errors import CheckpointError
from incdet.files import write_atomic

TORCHVISION = "torchvision://"


class Stored(NamedTuple):
    """The tensors of a file, under the file's own names."""

    tensors: State
    caffe2: bool  # in Caffe2's layout, as detectron2's ``MSRA/R-50.pkl``
    by_suffix: bool  # the file asks for its names to be matched by their endings (``matching_heuristics``)
    config: Mapping[str, Any] | None = None  # what incdet trained the file with, where incdet wrote it

    @property
    def pixels(self) -> Pixels | None:
        """What the network of the file saw, where that is known."""
        if self.config is None:
            return CAFFE2_PIXELS if self.caffe2 else None
        model = self.config["MODEL"]
        return Pixels(self.config["INPUT"]["FORMAT"], tuple(model["PIXEL_MEAN"]), tuple(model["PIXEL_STD"]))


@dataclass(frozen=True)
class MatchReport:
    """What became of each tensor: names of the model, except ``unexpected``, which are names of the file."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    shape_mismatch: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # name, shape in the file, in the model

    def __str__(self) -> str:
        lines = [f"{len(self.matched)} tensors loaded"]
        if self.missing:
            lines.append(f"{len(self.missing)} of the model not in the file: {_shorten(self.missing)}")
        if self.unexpected:
            lines.append(f"{len(self.unexpected)} of the file not in the model: {_shorten(self.unexpected)}")
        lines += [
            f"{name}: {list(theirs)} in the file, {list(ours)} in the model"
            for name, theirs, ours in self.shape_mismatch
        ]
        return "\n".join(lines)


def load_weights(source: str | Path, pixels: Pixels = IMAGENET_PIXELS) -> State:
    """The tensors of a file or of a torchvision enum, on the CPU, under torchvision's names where they have one.

    Args:
        source: see ``read_weights``.
        pixels: what the model sees, see ``torchvision_tensors``.

    Raises:
        CheckpointError: as ``read_weights``.
    """
    return torchvision_tensors(read_weights(source), pixels)


def torchvision_tensors(stored: Stored, pixels: Pixels) -> State:
    """The tensors under torchvision's names, for a model that sees other pixels.

    Files in Caffe2's layout expect BGR pixels that are not divided, and incdet's own say what they expect; their first
    convolution is rewritten for what the model sees, which gives the same outputs. Other files are taken to be trained
    on what the model sees.
    """
    tensors = from_caffe2(stored.tensors) if stored.caffe2 else stored.tensors
    tensors = {torchvision_name(name): tensor for name, tensor in tensors.items()}
    return tensors if stored.pixels is None else for_pixels(tensors, stored.pixels, pixels)


def read_weights(source: str | Path) -> Stored:
    """The tensors of a file or of a torchvision enum, on the CPU, under their own names.

    Args:
        source: ``torchvision://ResNet18_Weights.IMAGENET1K_V1``, a path ending in ``.safetensors``, ``.pth``, ``.pt``,
            ``.pkl`` or ``.npz``, or the folder of a run or of a task.

    Raises:
        CheckpointError: unknown source, or a file that is missing, damaged, unsafe or without tensors.
    """
    if str(source).startswith(TORCHVISION):
        return Stored(_torchvision_weights(str(source).removeprefix(TORCHVISION)), caffe2=False, by_suffix=False)
    path = weights_file(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise CheckpointError(
            f"MODEL.WEIGHTS: {source} ends in {path.suffix or 'nothing'!r}; expected {', '.join(_READERS)} or "
            f"{TORCHVISION}<name of a weights enum>."
        )
    with _reading(path):
        content = reader(path)
    caffe2 = path.suffix.lower() == ".pkl" and isinstance(content, Mapping) and "model" not in content
    by_suffix = isinstance(content, Mapping) and bool(content.get("matching_heuristics"))
    config = content.get("config") if path.suffix.lower() == ".safetensors" else None
    return Stored(_tensors(content, path), caffe2, by_suffix, config)


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    prefixes: Sequence[tuple[str, str]] = DETECTOR_PREFIXES,
    *,
    strict: bool = False,
    source: str | Path = "the weights",
) -> MatchReport:
    """Copy ``state`` into ``model`` by exact name, else by the first of ``prefixes`` that gives a name of the model.

    A tensor that differs only in its number of rows (another number of classes or anchors) is left as it was and
    reported. Any other difference in shape means another network and is an error; nothing has been copied then.

    Args:
        model: keeps its device and dtypes.
        state: the tensors, named as ``load_weights`` returns them.
        prefixes: (beginning of a name in ``state``, what takes its place in the model).
        strict: every tensor of both sides must fit: for incdet's own checkpoints.
        source: what the messages call the weights, usually the file.

    Raises:
        CheckpointError: another network, another number of classes (strict), batch norm folded in the file but not in
            the model, or nothing that fits.
    """
    ours = model.state_dict()
    renamed, unexpected = match_names(state, ours, prefixes)
    mismatch = tuple(
        (name, tuple(tensor.shape), tuple(ours[name].shape))
        for name, tensor in renamed.items()
        if tensor.shape != ours[name].shape
    )
    unfit = {name for name, _, _ in mismatch}
    matched = tuple(name for name in renamed if name not in unfit)
    missing = _without_counts(name for name in ours if name not in renamed)
    report = MatchReport(matched, missing, _without_counts(unexpected), mismatch)
    _refuse_folded(state, unexpected, source)
    _refuse_unfit(report, strict, source)
    with torch.no_grad():
        for name in matched:
            ours[name].copy_(renamed[name])
    return report


def save_model(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and their description as one safetensors file, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    # Through memory, not through the library's own file writer, whose errors hide that the disk is full.
    write_atomic(path, safetensors.torch.save(tensors, dict(metadata)))


def read_model(path: str | Path) -> tuple[State, dict[str, str]]:
    """The tensors and the description that ``save_model`` wrote.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    with _reading(Path(path)), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  not a dict


# ---------------------------------------------------------------------- refusals


def _refuse_folded(state: Mapping[str, Tensor], unexpected: Sequence[str], source: str | Path) -> None:
    """A convolution that fits but for its bias has a norm folded into that; dropping it would ruin the network."""
    lost = set(unexpected)
    for name in unexpected:
        weight = name.removesuffix("bias") + "weight"
        fits = name.endswith(".bias") and weight in state and weight not in lost
        if fits and state[weight].ndim == 4 and state[name].any():
            raise CheckpointError(
                f"{source}: {name} has no place in the model: in the file batch norm is folded into convolutions that "
                "have a bias. Set MODEL.BACKBONE.NORM to none, or use weights that are not folded."
            )


def _refuse_unfit(report: MatchReport, strict: bool, source: str | Path) -> None:
    another = [item for item in report.shape_mismatch if item[1][1:] != item[2][1:]]
    names = (*report.matched, *report.missing)
    no_body = any(name.startswith(BODY) for name in names) and not any(n.startswith(BODY) for n in report.matched)
    if another or no_body or not report.matched:
        raise CheckpointError(
            f"{source} is of another network than the model. {_shape(another) if another else report}. "
            "Make MODEL.BACKBONE (NAME, WIDTH) and MODEL.NECK those of the file, or choose other MODEL.WEIGHTS."
        )
    if strict and report.shape_mismatch:
        raise CheckpointError(
            f"{source} knows another number of classes than the model. {_shape(report.shape_mismatch)}. Use the "
            "checkpoint of the same task, with the same TASKS.SPLIT and MODEL.ANCHOR_GENERATOR as it was trained with."
        )
    if strict and (report.missing or report.unexpected):
        raise CheckpointError(
            f"{source} does not fit the model: {report}. Use the config that the file was trained with; it lies "
            "beside it as config.yaml."
        )


def _shape(items: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> str:
    name, theirs, ours = items[0]
    return f"{name} is {list(theirs)} in the file and {list(ours)} in the model"


def _without_counts(names: Iterable[str]) -> tuple[str, ...]:
    """Batch norms' step counts left out: they are absent from most files and play no part in any output."""
    return tuple(name for name in names if not name.endswith("num_batches_tracked"))


def _shorten(names: Sequence[str], limit: int = 6) -> str:
    """Names by the part of a model they belong to, with their number: ``backbone.fpn (8), rpn.head (6)``."""
    counts = Counter(_part(name) for name in names)
    only = {_part(name): name for name in names}
    shown = [f"{part} ({count})" if count > 1 else only[part] for part, count in counts.items()]
    return ", ".join(shown[:limit]) + (f" and {len(shown) - limit} more" if len(shown) > limit else "")


def _part(name: str) -> str:
    parents = name.split(".")[:-1]
    return ".".join(parents[: 3 if name.startswith(BODY) else 2]) or name


# ---------------------------------------------------------------------- files


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises on ``path`` into one error that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"The weights file {path} does not exist. Check MODEL.WEIGHTS or the path.") from error
    except Exception as error:  # parsers fail in every possible way on a file that was cut short
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"The weights file {path} cannot be read: {reason}. It is damaged, cut short or not a {path.suffix} file: "
            "copy or download it again."
        ) from error


def _torchvision_weights(name: str) -> State:
    try:
        weights = get_weight(name)
    except (ValueError, KeyError) as error:
        known = [str(entry) for model in list_models() for entry in get_model_weights(model)]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]}?" if close else "An example is ResNet18_Weights.IMAGENET1K_V1."
        raise CheckpointError(f"MODEL.WEIGHTS: torchvision has no weights called {name!r}. {hint}") from error
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"MODEL.WEIGHTS: {name} could not be fetched from {weights.url}: {error}. Connect, or fetch that file "
            "elsewhere and set MODEL.WEIGHTS to its path."
        ) from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    tensors, metadata = read_model(path)
    ours = {"incdet", "config"} <= metadata.keys()
    return {"model": tensors, "config": yaml.safe_load(metadata["config"]) if ours else None}


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_pth(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"The weights file {path} is damaged, or holds more than tensors and was refused because it could run "
            f"code: {reason}. Save its state_dict alone."
        ) from error


def _read_pkl(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


_READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _read_safetensors,
    ".pth": _read_pth,
    ".pt": _read_pth,
    ".pkl": _read_pkl,
    ".npz": _read_npz,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads a pickle of arrays, containers, text and numbers; any other name it asks for is refused unread."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self.file = file.name

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")  # numpy 2 renamed it; files hold either
        if (module, name) not in _HARMLESS:
            raise CheckpointError(
                f"The weights file {self.file} asks for {module}.{name}, which could run code; only arrays and plain "
                "values are read. Nothing of it was run. Convert it to .safetensors where you trust it."
            )
        return _HARMLESS[module, name]


def _latin1(text: str, encoding: str) -> bytes:
    """How a pickle of protocol 2 holds bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"unexpected encoding {encoding!r}")
    return text.encode("latin1")


def _from_buffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


_HARMLESS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
    ("numpy.core.multiarray", "scalar"): np.float32(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): OrderedDict,
}


def _tensors(content: Any, path: Path) -> State:
    """The tensors of what a reader returned, unwrapped from a training checkpoint if they lie in one."""
    for wrapper in ("model", "state_dict", "blobs"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"The weights file {path} holds a {type(content).__name__}, expected named tensors.")
    result: State = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            result[str(name)] = value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            result[str(name)] = torch.tensor(np.asarray(value, order="C"))
    if not result:
        raise CheckpointError(f"The weights file {path} holds no tensors. Check that it is a file of weights.")
    return result
