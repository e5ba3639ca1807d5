"""Unpacking the archives in which published sets come."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from incdet.errors import DataError


def unpack(archive: str | Path, output: str | Path, patterns: Sequence[str]) -> list[Path]:
    """Unpacks a tar or zip file and moves the folders that ``patterns`` (globs) find in it into ``output``.

    A folder that is there already is added to, as VOC's two archives of one year need. Nothing is moved before the
    whole archive is unpacked.

    Returns:
        The folders in ``output``.

    Raises:
        DataError: the archive is missing, damaged, reaches outside its folder, or holds none of the folders.
    """
    archive, output = Path(archive), Path(output)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=output) as workshop:
        try:
            if zipfile.is_zipfile(
                archive
            ):  # its unpacking takes no filter, and skips absolute names and ".." by itself
                shutil.unpack_archive(archive, workshop)
            else:
                shutil.unpack_archive(archive, workshop, filter="data")
        except (OSError, EOFError, shutil.ReadError, tarfile.TarError, zipfile.BadZipFile) as error:
            raise DataError(f"{archive}: cannot be unpacked ({error}). Download the archive again.") from error
        folders = [path for pattern in patterns for path in sorted(Path(workshop).glob(pattern)) if path.is_dir()]
        if not folders:
            raise DataError(
                f"{archive}: expected a folder {' or '.join(patterns)} in it. Give one of the set's archives."
            )
        for folder in folders:
            _merge(folder, output / folder.name)
    return [output / folder.name for folder in folders]


def _merge(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
