"""Writes that never leave half a file behind, and reads that say what is wrong.

Every file of a run goes through here: a killed process, a full disk or a lost machine leaves either the old content
or the new one, never a mixture. The module is a leaf (it imports nothing but the errors), so that every room may use
it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from incdet.errors import IncdetError

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\..+)?")  # what atomic_path calls its temporary files
_FREE_SPACE = "Free some space there or point OUTPUT_DIR at another disk, then run again with --resume."
_PERMISSION = "Choose a folder you may write to (OUTPUT_DIR), or mend its permissions."
_FILE_IN_THE_WAY = "A file stands where a folder is needed: choose another OUTPUT_DIR or move that file away."
_REMEDIES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "Raise the limit on the size of a file (`ulimit -f`), then run again with --resume.",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _PERMISSION,
    errno.ENOTDIR: _FILE_IN_THE_WAY,
    errno.EEXIST: _FILE_IN_THE_WAY,
}


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path`` that becomes ``path`` when the block ends without an error.

    The folder is made if it is absent. The temporary file keeps the suffix of ``path``, because some writers choose
    their format by it. On any error it is removed and the old content of ``path`` stays as it was.

    Raises:
        IncdetError: the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        with explain_refusal(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _fsync(temporary)
            temporary.replace(path)
            _fsync(path.parent)
    finally:
        # A folder that could not be made holds nothing to remove either.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            temporary.unlink()


@contextlib.contextmanager
def explain_refusal(path: str | Path) -> Iterator[None]:
    """For writes that need not be atomic, such as a line added to a log: says why the disk refused one.

    Raises:
        IncdetError: the disk is full or the file cannot be written to.
    """
    try:
        yield
    except Exception as error:
        cause = _refused_write(error)
        if cause is None:
            raise
        raise IncdetError(
            f"Cannot write {path}: {os.strerror(cause)}. Results written earlier are untouched. {_REMEDIES[cause]}"
        ) from error


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files that killed writers left below ``folder``; nobody may be writing there now."""
    for path in Path(folder).rglob(".*.tmp*"):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Replace the content of ``path`` by ``data`` in one step; text is written as UTF-8.

    Raises:
        IncdetError: the disk is full or the folder cannot be written to.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write ``value`` as strict JSON in one step; ``indent=None`` gives the compact form for long lists.

    NaN and infinity are not JSON and raise ``ValueError``: an undefined figure is ``None``.
    """
    write_atomic(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """The content of the JSON file ``path``; ``what`` names it in messages, as in "the results of the run".

    Raises:
        IncdetError: the file is missing, cannot be read, or is not whole JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise IncdetError(f"{path} ({what}) does not exist. Check the path, or run the step that writes it.") from error
    except OSError as error:
        raise IncdetError(f"{path} ({what}) cannot be read: {error.strerror}. Check the path.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise IncdetError(
            f"{path} ({what}) is not whole JSON: {error}. It was cut short or changed by hand; "
            "delete it and run the step that writes it again."
        ) from error


def _fsync(path: Path) -> None:
    """Wait until the disk holds the file, or a folder's list of names: a rename alone may outrun the data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused_write(error: BaseException | None) -> int | None:
    """The errno of a refused write among ``error`` and its causes; libraries wrap the system's error in their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REMEDIES:
            return error.errno
        error = error.__cause__ or error.__context__
    return None
