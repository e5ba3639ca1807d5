"""The outlines of the twenty classes of ``shapes``.

Each is a list of closed contours about the origin, y downwards, filled by the even-odd rule: a contour within another
is a hole. Scale does not matter here, an object is fitted to the size drawn for it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Contours = list[np.ndarray]  # each (points, 2)


def _polar(radii: np.ndarray) -> np.ndarray:
    """Points at the given radii and equal angles, the first straight up."""
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def _disc(radius: float) -> np.ndarray:
    return _polar(np.full(72, radius))


def _arc(degrees_from: float, degrees_to: float, radius: float = 1.0, centre_x: float = 0.0) -> np.ndarray:
    angles = np.radians(np.linspace(degrees_from, degrees_to, 60))
    return np.stack([centre_x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _corners(*coordinates: float) -> np.ndarray:
    return np.array(coordinates, dtype=float).reshape(-1, 2)


def _band(line: np.ndarray, width: float) -> np.ndarray:
    """The outline of a stroke along a line."""
    along = np.gradient(line, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    return np.concatenate([line + normal * width / 2, (line - normal * width / 2)[::-1]])


def _cross() -> Contours:
    quarter = _corners(-0.3, -0.3, -0.3, -1, 0.3, -1)
    turn = np.array([[0, 1], [-1, 0]])
    return [np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])]


def _crescent() -> Contours:
    tip = np.radians(45)
    centre_x = 0.55
    bite = np.hypot(np.cos(tip) - centre_x, np.sin(tip))
    reach = np.degrees(np.arctan2(np.sin(tip), np.cos(tip) - centre_x))
    return [np.concatenate([_arc(45, 315), _arc(360 - reach, reach, bite, centre_x)])]


def _droplet() -> Contours:
    # From the lower part of the circle straight along its two tangents to the tip.
    return [np.concatenate([_arc(-30, 210, 0.6), _corners(0, -1.2)])]


def _flower() -> Contours:
    angles = 2 * np.pi * np.arange(120) / 120
    return [_polar(0.7 + 0.3 * np.cos(5 * angles)), _disc(0.2)]


def _gear() -> Contours:
    return [_polar(np.where(np.arange(32) // 2 % 2 == 0, 1.0, 0.74)), _disc(0.34)]


def _heart() -> Contours:
    t = 2 * np.pi * np.arange(80) / 80
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([16 * np.sin(t) ** 3, -y], axis=1)]


def _key() -> Contours:
    head = _disc(0.5) + (-0.7, 0.0)
    shaft = _corners(-0.25, -0.14, 1.2, -0.14, 1.2, 0.45, 0.95, 0.45, 0.95, 0.14, 0.75, 0.14, 0.75, 0.35)
    return [head, _disc(0.22) + (-0.7, 0.0), np.concatenate([shaft, _corners(0.52, 0.35, 0.52, 0.14, -0.25, 0.14)])]


def _leaf() -> Contours:
    # The lens that two equal circles share.
    upper, lower = _arc(220, 320), _arc(40, 140)
    return [np.concatenate([upper - (0, upper[0, 1]), lower - (0, lower[0, 1])])]


def _spiral() -> Contours:
    angles = np.linspace(0.5 * np.pi, 4.5 * np.pi, 160)
    radius = angles / angles[-1]
    return [_band(np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1), 0.2)]


def _wave() -> Contours:
    x = np.linspace(-1, 1, 80)
    return [_band(np.stack([x, 0.4 * np.sin(2 * np.pi * x)], axis=1), 0.26)]


# In alphabetical order, which is also the order in which a split counts them: a 10+10 stream starts with the first ten.
OUTLINES: dict[str, Callable[[], Contours]] = {
    "arrow": lambda: [_corners(-1, -0.22, 0.1, -0.22, 0.1, -0.65, 1, 0, 0.1, 0.65, 0.1, 0.22, -1, 0.22)],
    "bolt": lambda: [_corners(0.25, -1, -0.6, 0.15, -0.08, 0.15, -0.3, 1, 0.6, -0.25, 0.08, -0.25)],
    "circle": lambda: [_disc(1)],
    "crescent": _crescent,
    "cross": _cross,
    "droplet": _droplet,
    "flower": _flower,
    "gear": _gear,
    "heart": _heart,
    "hexagon": lambda: [_polar(np.ones(6))],
    "hourglass": lambda: [_corners(-0.75, -1, 0.75, -1, 0.1, 0, 0.75, 1, -0.75, 1, -0.1, 0)],
    "key": _key,
    "leaf": _leaf,
    "ring": lambda: [_disc(1), _disc(0.55)],
    "semicircle": lambda: [_arc(180, 360)],
    "spiral": _spiral,
    "square": lambda: [_corners(-1, -1, 1, -1, 1, 1, -1, 1)],
    "star": lambda: [_polar(np.where(np.arange(10) % 2 == 0, 1.0, 0.42))],
    "triangle": lambda: [_polar(np.ones(3))],
    "wave": _wave,
}
