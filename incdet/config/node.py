"""The configuration tree: detectron2's grammar and key names, safe YAML only, and errors that say where a key was set.

A configuration is defaults, then the files of a `_BASE_` chain (bases first), then ``KEY VALUE`` pairs from the command
line. Every key remembers who set it last. A section declared with ``CfgNode(new_allowed=True)`` is free-form: it holds
overrides of the root (``NEXT_TASKS.SOLVER.BASE_LR``), checked against the root's own keys and types. A value can bring
further keys (``BACKEND: detectron2``, all of Detectron2's), and a `_BASE_` can lie in a library (``library://file``).
"""

from __future__ import annotations

import contextlib
import difflib
from ast import literal_eval
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import BASE_KEY
from fvcore.common.config import CfgNode as _CfgNode

from incdet.errors import ConfigError

NEXT_TASKS = "NEXT_TASKS"
COMMAND_LINE = "on the command line"
_IN_CODE = "in code"
_ORIGINS = "__origins__"
_LIBRARY = "__library__"
_LEAF_TYPES = (bool, int, float, str, list, tuple, type(None))


@dataclass
class Library:
    """A library whose own keys and configuration files can be used: its name is the value that brings its keys."""

    name: str  # the value, and the scheme of its files: ``<name>://<file>``
    key: str  # that takes the value
    defaults: Callable[[], Mapping[str, Any]]  # the library's whole default configuration
    file: Callable[[str], Path]  # where a file of the library lies
    keys: set[str] = field(default_factory=set)  # dotted; those that it has added


class CfgNode(_CfgNode):
    """A section of the configuration; the root is the whole of it."""

    def know(self, library: Library) -> None:
        """Let this root take the keys and the files of ``library``, which is imported when they are asked for."""
        self.__dict__[_LIBRARY] = library

    def merge_from_file(self, cfg_filename: str | Path) -> None:
        """Merge a YAML file and the files that its `_BASE_` names (a path or a list, relative to the file).

        Raises:
            ConfigError: a file is missing, unsafe or not YAML, the bases form a cycle, a key is unknown, or a value
                has another type than its default.
        """
        library = self.__dict__.get(_LIBRARY)
        for path, mapping in _read_with_bases(Path(cfg_filename), library):
            self._merge(mapping, f"in {path}" if path else None)

    def merge_from_list(self, cfg_list: Sequence[Any]) -> None:
        """Merge ``[KEY, value, KEY, value, ...]``; a value that is text is read as a Python literal where it is one.

        Raises:
            ConfigError: a key is unknown, a value has another type than its default, or the pairs are not pairs.
        """
        if len(cfg_list) % 2:
            raise ConfigError(
                f"Overrides {COMMAND_LINE} come as pairs KEY VALUE (no `=`), got {len(cfg_list)} words: "
                f"{' '.join(map(str, cfg_list))}. Add the missing key or value."
            )
        for key, value in zip(cfg_list[0::2], cfg_list[1::2], strict=True):
            decoded = _decode(value)
            # A folder called 2024 is still text: where text is expected only None and text are taken as literals.
            plain_text = isinstance(self._get(key), str) and not isinstance(decoded, str | None)
            self._merge({key: value if plain_text else decoded}, COMMAND_LINE)

    def merge_from_other_cfg(self, cfg_other: Mapping[str, Any], where: str = _IN_CODE) -> None:
        """Merge another configuration, with the same checks as for a file; ``where`` is what messages say of it."""
        self._merge(cfg_other, where)

    def origin(self, key: str) -> str | None:
        """Who set the dotted ``key`` last, as in "in configs/a.yaml"; None for a default. Ask the root."""
        return self.__dict__.get(_ORIGINS, {}).get(key)

    def strays(self) -> list[str]:
        """The dotted keys that were set, but belong to a library that is not chosen any more. Ask the root."""
        library = self.__dict__.get(_LIBRARY)
        if library is None or self._get(library.key) == library.name:
            return []
        return sorted(key for key in library.keys if self.origin(key))

    def _merge(self, mapping: Mapping[str, Any], where: str | None, prefix: str = "") -> None:
        library = self.__dict__.get(_LIBRARY)
        if library is not None and not library.keys and mapping.get(library.key) == library.name:
            library.keys.update(add_missing(self, library.defaults()))
        for name, value in mapping.items():
            if isinstance(value, Mapping) and value:
                self._merge(value, where, f"{prefix}{name}.")
            else:
                self._assign(f"{prefix}{name}", value, where)

    def _assign(self, key: str, value: Any, where: str | None) -> None:
        """Set one dotted key of this root after checking it; without ``where`` it counts as a default."""
        current = self._expect(key, where or "as a default")
        if isinstance(current, CfgNode):
            if not isinstance(value, Mapping):  # an empty mapping changes nothing
                raise ConfigError(
                    f"{key} is a section of keys, got {type(value).__name__} {value!r}; set {where}. "
                    f"Give its keys: {', '.join(map(str, current)) or 'none are defined'}."
                )
            return
        value = _coerce(value, current, key, where or "as a default")
        *parents, name = key.split(".")
        node = self
        for parent in parents:
            if parent not in node:
                node[parent] = CfgNode()
            node = node[parent]
        node[name] = value
        if where is not None:
            self.__dict__.setdefault(_ORIGINS, {})[key] = where

    def _reference(self, key: str) -> str:
        """The dotted key whose default decides the type of ``key``: a free-form section overrides the root's keys."""
        section, _, rest = key.partition(".")
        # Overrides of overrides would mean nothing, so a free-form section is not looked up inside another.
        return rest if rest and _is_free_form(self.get(section)) and rest.split(".")[0] != section else key

    def _get(self, key: str) -> Any:
        """The value that decides the type of the dotted ``key``, or None if there is none."""
        node: Any = self
        for part in self._reference(key).split("."):
            node = node.get(part) if isinstance(node, CfgNode) else None
        return node

    def _expect(self, key: str, where: str) -> Any:
        """The value that decides the type of the dotted ``key``; an error if there is none."""
        reference = self._reference(key)
        node: Any = self
        for part in reference.split("."):
            if not isinstance(node, CfgNode):
                raise ConfigError(
                    f"{key} is set {where}, but what is before .{part} is a value ({type(node).__name__} {node!r}), "
                    "not a section of keys. Set that value itself."
                )
            if part not in node:
                hint = self._did_you_mean(reference, key.removesuffix(reference)) + self._library_hint()
                raise ConfigError(f"Unknown key {key}, set {where}. {hint}")
            node = node[part]
        return node

    def _library_hint(self) -> str:
        library = self.__dict__.get(_LIBRARY)
        if library is None or library.keys:
            return ""
        return f" A key of {library.name} needs {library.key}: {library.name} beside it, or before it."

    def _did_you_mean(self, key: str, prefix: str) -> str:
        known = {name.upper(): name for name, _ in leaves(self)}
        close = difflib.get_close_matches(key.upper(), known, n=1, cutoff=0.5)
        if close:
            return f"Did you mean {prefix}{known[close[0]]}?"
        return "Run tools/show_config.py to see every key there is."


def config_for_task(cfg: CfgNode, task_index: int) -> CfgNode:
    """The configuration of one task (counted from 1): a clone, with ``NEXT_TASKS`` merged from the second task on."""
    cfg = cfg.clone()
    if task_index > 1:
        for key, value in list(leaves(cfg[NEXT_TASKS])):
            cfg._assign(key, value, cfg.origin(f"{NEXT_TASKS}.{key}") or f"{_IN_CODE} ({NEXT_TASKS})")
    return cfg


def add_missing(node: CfgNode, more: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Give ``node`` the keys of ``more`` that it lacks, and yield them, dotted."""
    for name, value in more.items():
        if isinstance(value, Mapping):
            if name not in node:
                node[name] = CfgNode(new_allowed=_is_free_form(value))
            if isinstance(node[name], CfgNode):
                yield from add_missing(node[name], value, f"{prefix}{name}.")
        elif name not in node:
            node[name] = value
            yield f"{prefix}{name}"


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, value) below ``node`` that is not itself a section."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def diff(cfg: CfgNode, other: CfgNode) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ, each with both values; None stands for a key that one side lacks."""
    ours, theirs = dict(leaves(cfg)), dict(leaves(other))
    keys = sorted(ours.keys() | theirs.keys())
    return {key: (ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)}


def annotate(cfg: CfgNode, default: CfgNode) -> str:
    """``cfg`` as YAML, with a comment on each key that differs from ``default``: the default, and where it was set."""
    changed = diff(cfg, default)
    lines: list[str] = []
    seen: list[str] = []
    for key, value in sorted(leaves(cfg)):
        *sections, name = key.split(".")
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(sections, seen, strict=False)))
        lines += [f"{'  ' * depth}{sections[depth]}:" for depth in range(shared, len(sections))]
        seen = sections
        line = f"{'  ' * len(sections)}{name}: {_flow(value)}"
        if key in changed:
            line += f"  # default {_flow(changed[key][1])}; set {cfg.origin(key) or _IN_CODE}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _is_free_form(node: Any) -> bool:
    return isinstance(node, CfgNode) and node.is_new_allowed()


def _decode(value: Any) -> Any:
    """Text that is a Python literal as that literal, everything else as it is: YAML reads ``1e-4`` as text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return literal_eval(value)
    return value


def _coerce(value: Any, current: Any, key: str, where: str) -> Any:
    """``value`` in the type of ``current``; None fits, and is fitted by, every type."""
    if not isinstance(current, str):
        value = _decode(value)
    if isinstance(current, list | tuple) and isinstance(value, str) and all(isinstance(item, str) for item in current):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(current, list | tuple) and isinstance(value, list | tuple):
        return _nested(value, type(current))
    if value is None or type(value) is type(current) or (current is None and type(value) in _LEAF_TYPES):
        return value
    if type(current) is float and type(value) is int:  # the type itself: True is an int, but no learning rate
        return float(value)
    hint = " On a command line a list is written \"['a', 'b']\"." if isinstance(current, list | tuple) else ""
    expected = "a number, text or a list" if current is None else f"{type(current).__name__} (now {current!r})"
    raise ConfigError(f"{key} expects {expected}, got {type(value).__name__} {value!r}; set {where}.{hint}")


def _nested(value: list[Any] | tuple[Any, ...], container: type) -> Any:
    """``value`` with all its levels in ``container``: YAML has no tuples, so a dumped tuple comes back as a list."""
    return container(_nested(item, container) if isinstance(item, list | tuple) else item for item in value)


def _read_with_bases(
    path: Path, library: Library | None = None, chain: tuple[Path, ...] = ()
) -> Iterator[tuple[Path | None, Mapping[str, Any]]]:
    """The mappings of ``path`` and of all its bases, in the order in which they are to be merged.

    A library's file counts on the library's defaults, so they come before it, without a path.
    """
    path = path.expanduser()
    if path.resolve() in [link.resolve() for link in chain]:
        shown = " -> ".join(map(str, (*chain, path)))
        raise ConfigError(f"The {BASE_KEY} of these files form a cycle: {shown}. Remove one {BASE_KEY}.")
    mapping = read_yaml(path, chain)
    bases = mapping.pop(BASE_KEY, [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{BASE_KEY} expects a path or a list of paths, got {bases!r}; set in {path}.")
    for base in bases:
        if library is not None and base.startswith(f"{library.name}://"):
            yield None, {library.key: library.name, **library.defaults()}
            base_path = library.file(base.removeprefix(f"{library.name}://"))
        else:
            base_path = path.parent / Path(base).expanduser()
        yield from _read_with_bases(base_path, library, (*chain, path))
    yield path, mapping


def read_yaml(path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a YAML file; ``chain`` are the files whose `_BASE_` led to it.

    Raises:
        ConfigError: the file is missing, unsafe, not YAML or not a mapping.
    """
    named_by = f", named as {BASE_KEY} in {chain[-1]}," if chain else ""
    try:
        mapping = yaml.load(path.read_text(encoding="utf-8"), Loader=_SafeLoader)  # noqa: S506  it is a SafeLoader
    except FileNotFoundError as error:
        raise ConfigError(f"The config file {path}{named_by} does not exist. {_what_is_near(path)}") from error
    except OSError as error:
        raise ConfigError(f"The config file {path}{named_by} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"The config file {path} is not plain YAML: {reason}. Only text, numbers, lists and mappings are allowed; "
            "tags that build Python objects are refused because they can run code."
        ) from error
    if mapping is None:
        return {}
    if not isinstance(mapping, dict):
        raise ConfigError(f"The config file {path} must hold `KEY: value` lines, got a {type(mapping).__name__}.")
    return mapping


def _what_is_near(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() or entry.suffix in {".yaml", ".yml"})
    wanted = path.relative_to(folder).parts[0]
    close = difflib.get_close_matches(wanted, names, n=5, cutoff=0.4) or names[:10]
    return f"In {folder} there is: {', '.join(close) or 'no config file'}."


class _SafeLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key given twice: the first one would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice} is given twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)
