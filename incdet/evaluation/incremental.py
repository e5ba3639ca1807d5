"""What a sequence of tasks did to the average precision: pure functions, one per published metric.

Notation: ``a[t][k]`` is the mean AP of the classes of task k after learning task t, a ragged lower triangular matrix
(row t has t + 1 entries); T is the number of tasks. AP is in 0..1. ``None`` stands for "unknown": an entry that was not
measured, or classes without a test object. Every function returns ``None`` where its value is undefined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PerClass = Mapping[str, float | None]
Matrix = Sequence[Sequence[float | None]]


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the known values."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def mean_ap(ap: PerClass, classes: Sequence[str]) -> float | None:
    """Mean AP of some classes; classes without a test object are left out."""
    return mean([ap.get(name) for name in classes])


def group_means(ap: PerClass, old: Sequence[str], new: Sequence[str]) -> dict[str, float | None]:
    """Mean AP over the old, the new and all seen classes; each class weighs the same, so ``seen`` favours neither."""
    return {"old": mean_ap(ap, old), "new": mean_ap(ap, new), "seen": mean_ap(ap, [*old, *new])}


def average_incremental(seen_by_task: Sequence[float | None]) -> float | None:
    """(1/T) sum_t mAP_t(classes seen at t) over the given tasks (Rebuffi et al., iCaRL, CVPR 2017, section 4)."""
    return mean(seen_by_task) if None not in seen_by_task else None


def average_accuracy(matrix: Matrix) -> float | None:
    """ACC: mean over k <= T of ``a[T][k]``, tasks weigh the same (Lopez-Paz and Ranzato, GEM, NeurIPS 2017, eq. 2)."""
    return mean(matrix[-1]) if None not in matrix[-1] else None


def forgetting(matrix: Matrix) -> float | None:
    """Mean over k < T of ``max_{l < T} a[l][k] - a[T][k]`` (Chaudhry et al., ECCV 2018, equation 3)."""
    drops = [_drop(matrix, task) for task in range(len(matrix) - 1)]
    return mean(drops) if None not in drops else None


def backward_transfer(matrix: Matrix) -> float | None:
    """BWT: mean over k < T of ``a[T][k] - a[k][k]`` (Lopez-Paz and Ranzato, GEM, NeurIPS 2017, equation 3)."""
    changes = [_difference(matrix[-1][task], matrix[task][task]) for task in range(len(matrix) - 1)]
    return mean(changes) if None not in changes else None


def forward_transfer(matrix: Matrix, alone: Sequence[float | None]) -> float | None:
    """FWT: mean over k > 1 of ``a[k][k] - b[k]`` (Wang et al., survey of continual learning, TPAMI 2024).

    ``alone`` is b: what a model reaches on task k that learned nothing else, from the initial weights. GEM's FWT, which
    reads task k before it was learned, is not defined for a head that grows: it has no rows for the task's classes yet.
    """
    gains = [_difference(row[-1], alone[task]) for task, row in enumerate(matrix) if task]
    return mean(gains) if None not in gains else None


def forgetting_percentage_points(matrix: Matrix) -> float | None:
    """FPP: ``a[1][1] - a[T][1]``, how far the first task's classes fell (Liu et al., CL-DETR, CVPR 2023).

    In 0..1 like every AP here; the papers print it times 100.
    """
    return _difference(matrix[0][0], matrix[-1][0]) if len(matrix) > 1 else None


def absolute_gap(joint: float | None, incremental: float | None) -> float | None:
    """AbsGap: joint mAP minus mAP after the last task, over all classes (Feng et al., ERD, CVPR 2022)."""
    return _difference(joint, incremental)


def relative_gap(joint: float | None, incremental: float | None) -> float | None:
    """RelGap: the absolute gap as a share of the joint mAP (Feng et al., ERD, CVPR 2022)."""
    return _ratio(absolute_gap(joint, incremental), joint)


def omega(incremental_by_task: Sequence[float | None], joint_by_task: Sequence[float | None]) -> float | None:
    """Omega: ``(1/T) sum_t a_t / J_t``, performance as a share of joint training's (Hayes et al., CVPRW 2018).

    Omega_all takes the seen classes at t, Omega_base the first task's, Omega_new those of task t. 1 is no loss.
    """
    shares = [_ratio(ours, joint) for ours, joint in zip(incremental_by_task, joint_by_task, strict=True)]
    return mean(shares) if None not in shares else None


def relative_deficit(joint: PerClass, incremental: PerClass, classes: Sequence[str]) -> float | None:
    """``100 / N sum_i (J_i - a_i) / J_i`` in percent; lower is better (Menezes et al., Neural Networks 2023).

    RSD (stability deficit) over the old classes, RPD (plasticity deficit) over the new ones. A class whose joint AP is
    0 or unknown has no relative value and is left out (ours).
    """
    deficit = mean([_ratio(_difference(joint.get(name), incremental.get(name)), joint.get(name)) for name in classes])
    return None if deficit is None else 100 * deficit


def harmonic_mean(old: float | None, new: float | None) -> float | None:
    """``2 old new / (old + new)``, near 0 when either group fails; 0 when both are."""
    if old is None or new is None:
        return None
    return 2 * old * new / (old + new) if old + new > 0 else 0.0


def group_average(old: float | None, new: float | None) -> float | None:
    """``(old + new) / 2``: the column "Avg" of Cermelli et al. (MMA, CVPRW 2022), which weighs groups, not classes."""
    return None if old is None or new is None else (old + new) / 2


def _drop(matrix: Matrix, task: int) -> float | None:
    """From the best a task's classes ever were before the last task, to what is left."""
    earlier = [row[task] for row in matrix[task:-1]]
    known = [value for value in earlier if value is not None]
    return _difference(max(known), matrix[-1][task]) if len(known) == len(earlier) else None


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _ratio(one: float | None, other: float | None) -> float | None:
    """None also for a denominator of zero."""
    return None if one is None or not other else one / other
