"""Numbers made of samples, and how they are written."""

import math
import random
import statistics
from collections.abc import Sequence


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def percentile(samples: Sequence[float], part: float) -> float:
    """The smallest sample that at least ``part`` of them do not exceed."""
    ranked = sorted(samples)
    return ranked[max(0, math.ceil(len(ranked) * part) - 1)]


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of the medians, and the bounds that hold 95 % of it (bootstrap)."""
    chance = random.Random(1)

    def again(samples: Sequence[float]) -> float:
        return median(chance.choices(samples, k=len(samples)))

    drawn = sorted(again(above) / again(below) for _ in range(1000))
    return median(above) / median(below), drawn[25], drawn[974]


def ratio_text(above: Sequence[float], below: Sequence[float]) -> str:
    value, low, high = ratio(above, below)
    return f"{value:.2f} ({low:.2f}–{high:.2f})"


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}" if abs(seconds) >= 0.01 else f"{seconds * 1e3:.2f}"


def mib(size: float) -> str:
    return f"{size / (1 << 20):.2f}"
