"""Settings: runs that differ in their seed alone, which a page on many runs shows as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from incdet.report.plots import OKABE_ITO
from incdet.report.runs import Run
from incdet.report.table import Cell, metric_name

MANY = len(OKABE_ITO)  # more runs than this have no colours of their own


@dataclass(frozen=True, eq=False)
class Setting:
    """The runs of one setting; all have finished the same number of tasks."""

    label: str  # without stamps; of a single run its own
    runs: tuple[Run, ...]

    @property
    def stamps(self) -> tuple[str, ...]:
        return self.runs[0].stamps

    @property
    def title(self) -> str:
        """The label with every stamp behind it, as ``Run.title``."""
        return self.relabelled[0].title

    @property
    def relabelled(self) -> list[Run]:
        """The runs under the setting's name, for sentences in which the seed plays no part."""
        return [replace(run, label=self.label) for run in self.runs]

    def metric(self, wanted: str) -> str:
        """The metric itself, or the setting's own where it has not that one: heads that know the task."""
        own = self.runs[0].results.get("summary") or {}
        return wanted if wanted in own or not own else self.runs[0].metrics[0]

    def note(self, wanted: str) -> str:
        """What a picture must say of the setting when the others have another metric."""
        own = self.metric(wanted)
        return "" if own == wanted else f" ({metric_name(own)})"

    def cell(self, read: Callable[[Run], float | None]) -> Cell:
        """A number of the runs: its mean, and its deviation over the seeds."""
        return Cell.of([read(run) for run in self.runs])


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """The settings of runs that may be compared, in the order in which the runs come.

    A run that was killed half-way is not averaged with those that went on.
    """
    groups: dict[tuple[str, tuple[str, ...], int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.setting, run.stamps, len(run.tasks)), []).append(run)
    settings = []
    for (name, _, done), members in groups.items():
        label = name if members[0].finished else f"{name}, {done} of {len(members[0].task_classes)} tasks"
        settings.append(Setting(members[0].label if len(members) == 1 else label, tuple(members)))
    return settings


def means(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The mean of each place over rows of one length; undefined values are left out."""
    return [Cell.of(values).mean for values in zip(*rows, strict=True)]
