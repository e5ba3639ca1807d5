"""Score thresholds that follow a detector's own scores, where one number does not fit all classes."""

from __future__ import annotations

import math

import numpy as np

FEWEST = 30  # different scores from which a mixture of two says anything (ours)


def mixture_threshold(scores: np.ndarray, fallback: float) -> float:
    """Where the upper of two Gaussians takes over: from there on, a detection is rather of the better kind.

    Both have one variance, as in GDA-IOD's release (ICCV 2025), so their weighted densities cross exactly once, at
    ``(m_0 + m_1) / 2 + s^2 ln(w_0 / w_1) / (m_1 - m_0)``.

    Args:
        scores: (n,) of a class's detections.
        fallback: the threshold where two kinds cannot be told apart (ours): there are fewer than ``FEWEST`` different
            scores, the means are within two deviations (the scores have one hump), or one kind is the likelier at both
            means.
    """
    if len(np.unique(scores)) < FEWEST:
        return fallback
    from sklearn.mixture import GaussianMixture  # here, because it takes a second and only this rule needs it

    mixture = GaussianMixture(2, covariance_type="tied", random_state=0).fit(np.asarray(scores, np.float64)[:, None])
    order = np.argsort(mixture.means_[:, 0])
    low, high = mixture.means_[order, 0]
    low_share, high_share = mixture.weights_[order]
    variance = mixture.covariances_[0, 0]
    crossing = (low + high) / 2 + variance * math.log(low_share / high_share) / (high - low)
    told_apart = high - low > 2 * math.sqrt(variance) and low < crossing < high
    return float(crossing) if told_apart else fallback
