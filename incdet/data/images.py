"""Reading image files: always three channels, always whole, never turned."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from incdet.data.defects import Defect, DefectError

_REMEDY = "Copy or download the file again, or take the image out of the split"
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"


def read_image(path: str | Path) -> torch.Tensor:
    """Decodes an image file to ``(3, h, w)`` uint8 RGB.

    Grey images are repeated over the channels and alpha is dropped. The orientation in EXIF is ignored: boxes are
    annotated on the stored pixels.

    Raises:
        DataError: the file is missing, empty, cut short or no image.
    """
    data = _read_bytes(path)
    if not _is_whole(data):
        raise _defect(path, f"the file is cut short ({len(data)} bytes without the format's end marker)")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error as error:
        raise _defect(path, f"opencv cannot decode it ({error.err})") from error
    if pixels is None:
        raise _defect(path, "opencv cannot decode it")
    rgb = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))


def image_size(path: str | Path) -> tuple[int, int]:
    """``(width, height)`` in stored pixels, from the file's header alone.

    Raises:
        DataError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except UnidentifiedImageError as error:
        raise _defect(path, "its header is that of no known image format") from error
    except OSError as error:
        raise _defect(path, f"cannot be read ({error.strerror or error})") from error


def _read_bytes(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise _defect(path, f"cannot be read ({error.strerror})") from error
    if not data:
        raise _defect(path, "the file is empty")
    return data


def _is_whole(data: bytes) -> bool:
    # Several releases of opencv fill what is missing with grey and say nothing, so the end is looked for here. In a
    # JPEG an end marker counts only after the last start of scan: an EXIF thumbnail brings one of its own before it.
    if data.startswith(_JPEG):
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    if data.startswith(_PNG):
        return b"IEND" in data
    return True


def _defect(path: str | Path, problem: str) -> DefectError:
    return DefectError(Defect(str(path), "", problem, _REMEDY))
