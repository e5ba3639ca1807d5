"""The numbers of a report in plain language, for readers who have never heard of forgetting."""

from __future__ import annotations

from collections.abc import Sequence

from incdet.report.runs import Run
from incdet.report.settings import Setting
from incdet.report.table import metric_name

STAMP_MEANING = {
    "oracle": "it was given knowledge that no detector has in use, so its numbers are a bound and not a result",
    "old_by_agreement": (
        "no labels of the old kinds were given, so on them it was compared with what the old detector itself found "
        "with confidence; its numbers on the old kinds measure agreement with that detector and not accuracy"
    ),
}


def narrate(runs: Sequence[Run], metric: str = "voc_area_50") -> list[str]:
    """Sentences on what was learned, what was forgotten and what each method kept.

    The runs are those of one group (split, protocol and data).
    """
    return [_setting(runs, metric), *tell(runs, metric), *_cautions(runs), _reading(metric)]


def tell(runs: Sequence[Run], metric: str) -> list[str]:
    """A sentence on each run."""
    return [_told(run, metric) for run in runs]


def narrate_many(settings: Sequence[Setting], metric: str = "voc_area_50") -> list[str]:
    """What many settings have in common, and which of them keep most and least; each is told by ``narrate``."""
    runs, count = settings[0].runs, sum(len(setting.runs) for setting in settings)
    told = [one for one in (_kept(setting, metric) for setting in settings) if one is not None]
    sentences = [_setting(runs, metric), f"Here are {count} runs of {len(settings)} settings."]
    if len(told) > 1:
        order = sorted(told, key=lambda one: one[0])
        (least, worst), (most, best) = order[0], order[-1]
        sentences.append(
            f"{_called(best)} keeps {100 * most:.0f} % of its skill on the old kinds: the most here. "
            f"{_called(worst)} keeps {100 * least:.0f} %: the least."
        )
    bounds = [setting for setting in settings if setting.runs[0].methods == ("joint",)]
    for setting in bounds:
        reached = setting.cell(lambda run: run.score(metric, "all")).mean
        if reached is not None:
            sentences.append(
                f"{setting.title}, trained on the labels of all classes at once, reaches {100 * reached:.1f} on all "
                "kinds: the ceiling for the others."
            )
    examples = [setting.relabelled[0] for setting in settings]
    return [*sentences, *_cautions(examples), _reading(metric)]


def _kept(setting: Setting, metric: str) -> tuple[float, Run] | None:
    """The share of the old kinds' scores that is left, and the setting as a run; None where it says nothing."""
    pairs = [pair for pair in (run.old_before_and_now(metric) for run in setting.runs) if pair is not None]
    before, now = (sum(values) for values in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
    return None if before <= 0 or setting.runs[0].methods == ("joint",) else (now / before, setting.relabelled[0])


def _setting(runs: Sequence[Run], metric: str) -> str:
    sizes = [len(classes) for classes in runs[0].task_classes]
    if len(sizes) < 2:
        return f"A detector learned {_kinds(len(runs[0].classes))}."
    later = f"{sizes[1]} more" if len(sizes) == 2 else f"more in {len(sizes) - 1} steps ({_listed(sizes[1:])})"
    if metric.startswith("top1"):
        return (
            f"A classifier that knew {_kinds(sizes[0])} was taught {later}, from images of the new kinds alone. "
            "Trained on without a remedy, a classifier forgets: nothing reminds it of the old ones."
        )
    if metric == "multi_label_ap":
        return (
            f"A classifier that could name {_kinds(sizes[0])} was taught {later}, from images in which only the new "
            "kinds are labelled. Trained on without a remedy, a classifier forgets: nothing reminds it of the old ones."
        )
    return (
        f"A detector that could find {_kinds(sizes[0])} was taught {later}, from images in which only the new kinds "
        "are labelled. Trained on without a remedy, a detector forgets: the old objects are in those images too, "
        "unlabelled, and it learns to treat them as background."
    )


def _told(run: Run, metric: str) -> str:
    """What became of a run, in its own metric where it has not that of the others: heads that know the task."""
    if metric == "top1" and run.metrics[0] == "top1_task":
        return f"{_outcome(run, 'top1_task')} It is told which task an image belongs to."
    return _outcome(run, metric)


def _outcome(run: Run, metric: str) -> str:
    label = _called(run)
    new = run.score(metric, "new")
    reached = "an unknown value" if new is None else f"{100 * new:.1f}"
    old = run.old_before_and_now(metric)
    if old is None:
        return f"{label} has learned {_kinds(len(run.learned))} so far, to {reached}."
    before, now = (100 * value for value in old)
    if run.methods == ("joint",):
        return (
            f"{label}, trained on the labels of all classes at once, reaches {now:.1f} on the old kinds and {reached} "
            "on the new: the ceiling for the others."
        )
    if run.methods == ("independent",):
        return f"{label}, which starts anew with every task, reaches {reached} on the last one: what is learned afresh."
    skill = "agreement with the old detector" if "old_by_agreement" in run.stamps else "skill"
    kept = f"keeps {100 * now / before:.0f} % of its {skill} on" if before > 0 else f"had no {skill} to keep on"
    return f"{label} {kept} the old kinds (from {before:.1f} to {now:.1f}) and reaches {reached} on the new."


def _called(run: Run) -> str:
    """Nobody has to know that "finetune" is the name for doing nothing."""
    return f"Plain fine-tuning ({run.title})" if run.methods == ("finetune",) else run.title


def _cautions(runs: Sequence[Run]) -> list[str]:
    cautions = [
        f"{run.title} was stopped after {len(run.tasks)} of {len(run.task_classes)} tasks; its numbers are of then."
        for run in runs
        if not run.finished
    ]
    for run in runs:
        for stamp in run.stamps:
            meaning = STAMP_MEANING.get(stamp, "read its documentation before you compare it")
            cautions.append(f"What the stamp on {run.title} means: {meaning}.")
    return cautions


def _reading(metric: str) -> str:
    if metric.startswith("top1"):
        return f"The numbers are {metric_name(metric)} accuracy in percent: 100 means that every image is recognised."
    if metric == "multi_label_ap":
        return (
            f"The numbers are {metric_name(metric)}, the mean average precision in percent: 100 means that every image "
            "that shows a kind has a higher score for it than any that does not."
        )
    return (
        f"The numbers are {metric_name(metric)}, the average precision in percent: 100 means that every object was "
        "found, in its place, and nothing else was."
    )


def _kinds(count: int) -> str:
    return "1 kind of object" if count == 1 else f"{count} kinds of object"


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(str(size) for size in sizes)
