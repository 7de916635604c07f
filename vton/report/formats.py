"""How notebooks write metrics and their values."""

from __future__ import annotations

import math
from collections.abc import Iterable

from vton.report.columns import DIGITS, ORDER, base, metric_scale

UNKNOWN_DIGITS = 4  # of a metric that only papers print


def metric_name(metric: str) -> str:
    """The metric with the factor that its values are shown times."""
    scale = metric_scale(metric)
    return metric if scale == 1 else f"{metric} x{scale}"


def number(metric: str, value: float) -> str:
    digits = DIGITS.get(base(metric), UNKNOWN_DIGITS)
    return f"{value * metric_scale(metric):.{digits}f}"


def mean_and_spread(metric: str, mean: float, deviation: float) -> str:
    """The mean, and its standard deviation where there are several runs."""
    if math.isnan(deviation):
        return number(metric, mean)
    return f"{number(metric, mean)} ± {number(metric, deviation)}"


def metric_place(metric: str) -> tuple[int, str]:
    """Sorts metrics as in tables, those of papers behind ours."""
    name = base(metric)
    return ORDER.index(name) if name in ORDER else len(ORDER), metric


def in_order(metrics: Iterable[str]) -> list[str]:
    return sorted(metrics, key=metric_place)
