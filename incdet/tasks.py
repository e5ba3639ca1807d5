"""How a set of classes is taught in tasks: ``15+5``, ``10+5+5``, ``15+1x5``.

A ``TaskStream`` fixes the order of the classes once; a class's position in it is its label everywhere in incdet (see
``incdet.structures``). Three words mean one thing each, seen from one task: *new* classes are taught in it, *old* ones
were taught before it, *seen* ones are both together.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from incdet.errors import SplitError

_TERM = re.compile(r"([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?", re.ASCII)  # four digits: a typing error must not fill memory
_SEEDED = re.compile(r"seed:(\d+)", re.ASCII)
_HASH_DIGITS = 12


@dataclass(frozen=True)
class TaskSpec:
    """One step of the stream: which classes it teaches, and which were taught before."""

    index: int  # 1 for the first task
    old: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def seen(self) -> tuple[str, ...]:
        return self.old + self.new

    @property
    def num_old(self) -> int:
        return len(self.old)

    @property
    def num_new(self) -> int:
        return len(self.new)

    @property
    def num_seen(self) -> int:
        return self.num_old + self.num_new

    @property
    def old_labels(self) -> range:
        """Labels of the old classes, in stream order."""
        return range(self.num_old)

    @property
    def new_labels(self) -> range:
        """Labels of the new classes, in stream order."""
        return range(self.num_old, self.num_seen)


@dataclass(frozen=True)
class TaskStream:
    """The tasks in the order they are learned. ``stream[0]`` is the first, whose ``index`` is 1."""

    split: str  # as the user wrote it
    classes: tuple[str, ...]  # in the order they are taught: the label of a class is its position here
    tasks: tuple[TaskSpec, ...]
    order: str  # how the order was chosen, e.g. "alphabetical" or "seed:3"

    @property
    def order_hash(self) -> str:
        return class_order_hash(self.classes)

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[TaskSpec]:
        return iter(self.tasks)

    def __getitem__(self, position: int) -> TaskSpec:
        return self.tasks[position]


def build_stream(
    split: str, classes: Sequence[str], order: str = "alphabetical", listed: Sequence[str] = ()
) -> TaskStream:
    """The stream that teaches ``classes`` in tasks of the split's sizes.

    Raises SplitError where the split or the order does not fit the classes.
    """
    sizes = parse_split(split)
    if sum(sizes) != len(classes):
        raise SplitError(
            f"the split '{split}' teaches {sum(sizes)} classes but the data has {len(classes)}. "
            f"Set TASKS.SPLIT (or --split) to sizes that sum to {len(classes)}, "
            f"e.g. '{_fitting_split(sizes, len(classes))}', or choose the classes with DATASETS.CLASSES"
        )
    ordered = order_classes(classes, order, listed)
    ends = tuple(accumulate(sizes))
    tasks = tuple(
        TaskSpec(index, old=ordered[: end - size], new=ordered[end - size : end])
        for index, (size, end) in enumerate(zip(sizes, ends, strict=True), start=1)
    )
    return TaskStream(split, ordered, tasks, order)


def parse_split(text: str) -> tuple[int, ...]:
    """Sizes of the tasks: ``"10+5+5"`` is (10, 5, 5), ``"15+1x5"`` is 15 classes and then five steps of one.

    Raises SplitError for anything that is not a sum of positive ``size`` or ``size x steps`` terms.
    """
    sizes: list[int] = []
    for term in text.replace(" ", "").split("+"):
        match = _TERM.fullmatch(term)
        if match is None:
            raise SplitError(
                f"cannot read the split '{text}': expected sizes joined by '+', each a number from 1 to 9999 or "
                f"<size>x<steps>, e.g. '10+10', '10+5+5' or '15+1x5'; got the term '{term}'. "
                "Mend TASKS.SPLIT (or --split)"
            )
        size, steps = match.groups(default="1")
        sizes += [int(size)] * int(steps)
    return tuple(sizes)


def proxy_split(split: str) -> str:
    """The split of the first task's own classes that resembles ``split``: as many tasks, in the same ratio (ours).

    Every later task has its share, rounded, and at least one class; the first task has the rest.

    Raises SplitError where no classes are left for the first task, or ``split`` has one task.
    """
    first, *later = sizes = parse_split(split)
    shares = [max(1, round(size * first / sum(sizes))) for size in later]
    if not later or sum(shares) >= first:
        raise SplitError(
            f"the first task of '{split}' teaches {first} classes, which cannot be taught in {len(sizes)} tasks of the "
            "same ratio. Give sizes that sum to them with TASKS.PROXY (or --split)"
        )
    return _written((first - sum(shares), *shares))


def order_classes(classes: Sequence[str], order: str, listed: Sequence[str] = ()) -> tuple[str, ...]:
    """The classes in the order they are taught.

    ``alphabetical`` sorts the names, ``id`` keeps the order of the source (VOC's list, COCO's category ids),
    ``listed`` takes ``listed`` itself and ``seed:<n>`` shuffles. The shuffle sorts by a hash of seed and name, so it
    depends neither on the order of the source nor on the version of a random generator (ours).

    Raises SplitError for an unknown order, a repeated class, or a list that is not exactly these classes.
    """
    _refuse_repeated(classes, "the data's classes", "DATASETS.CLASSES or the annotation file")
    if listed and order != "listed":
        raise SplitError(
            f"TASKS.LISTED names {len(listed)} classes but TASKS.ORDER is '{order}', which would ignore them. "
            "Set TASKS.ORDER to 'listed' or leave TASKS.LISTED empty"
        )
    if order == "alphabetical":
        return tuple(sorted(classes))
    if order == "id":
        return tuple(classes)
    if order == "listed":
        return _listed_order(classes, listed)
    seeded = _SEEDED.fullmatch(order)
    if seeded is None:
        raise SplitError(
            f"unknown class order '{order}': expected 'alphabetical', 'id', 'listed' or 'seed:<number>'. "
            "Set TASKS.ORDER (or --order)"
        )
    return tuple(sorted(classes, key=lambda name: hashlib.sha256(f"{int(seeded[1])}:{name}".encode()).digest()))


def class_order_hash(classes: Sequence[str]) -> str:
    """Twelve hexadecimal digits that differ when the classes or their order do."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()[:_HASH_DIGITS]


def _listed_order(classes: Sequence[str], listed: Sequence[str]) -> tuple[str, ...]:
    _refuse_repeated(listed, "the listed class order", "TASKS.LISTED")
    missing = sorted(set(classes) - set(listed))
    unknown = sorted(set(listed) - set(classes))
    if missing or unknown:
        problems = [
            f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names
        ]
        raise SplitError(
            f"the listed class order must name each of the data's {len(classes)} classes once; "
            f"{'; '.join(problems)}. Mend TASKS.LISTED. The data's classes are: {', '.join(classes)}"
        )
    return tuple(listed)


def _refuse_repeated(names: Sequence[str], what: str, where: str) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise SplitError(f"{what} must name each class once; repeated: {', '.join(repeated)}. Mend {where}")


def _fitting_split(sizes: Sequence[int], total: int) -> str:
    """The split nearest to ``sizes`` in spirit that teaches ``total`` classes: its first tasks, then the rest."""
    kept = [size for size, end in zip(sizes, accumulate(sizes), strict=True) if end < total]
    if not kept and total > 1:
        kept = [total - total // 2]
    return _written([*kept, total - sum(kept)])


def _written(sizes: Sequence[int]) -> str:
    """The split that ``parse_split`` reads as these sizes."""
    runs = [(size, len(list(run))) for size, run in groupby(sizes)]
    return "+".join(f"{size}x{steps}" if steps > 2 else "+".join([str(size)] * steps) for size, steps in runs)
