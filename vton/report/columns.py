"""Metrics as columns of a table: their order, their digits, their scale, which way is better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vton.errors import UserError
from vton.metrics.results import Row

HIGHER_IS_BETTER = (
    "ssim",
    "psnr",
    "iou",
    "cami_u",
    "cami_s",
    "image_reward",
    "m_dino",
    "m_clip_i",
    "vton_iqa",
)
DIGITS = {  # after the point; columns stand in this order
    "ssim": 4,
    "psnr": 2,
    "lpips": 4,
    "dists": 4,
    "fid": 2,
    "kid": 2,
    "iou": 3,
    "cami_u": 3,
    "cami_s": 3,
    "mp_lpips": 4,
    "image_reward": 3,
    "fd_dinov2": 2,
    "cmmd": 3,
    "m_dino": 4,
    "m_clip_i": 4,
    "vton_iqa": 4,
    "place_error": 4,
}
ORDER = tuple(DIGITS)
KID_SCALE = 1000  # results hold KID as computed; tables multiply it by this, as papers do


def base(metric: str, known: Iterable[str] = DIGITS) -> str:
    """The known metric behind a name with its own backbone, weights or masks, or the name itself.

    `lpips` is the base of `lpips_squeeze_random`.
    """
    bases = [name for name in known if f"{metric}_".startswith(f"{name}_")]
    return max(bases, key=len, default=metric)


def is_higher_better(metric: str) -> bool:
    return base(metric) in HIGHER_IS_BETTER


def metric_scale(metric: str) -> int:
    """The factor between a stored value and the one that tables show."""
    return KID_SCALE if base(metric) == "kid" else 1


def metric_columns(rows: Sequence[Row]) -> list[str]:
    """Names of all metrics of the rows, in the order of DIGITS. Raises UserError for others."""
    names: set[str] = set()
    for row in rows:
        for metric in row.metrics:
            if base(metric) not in DIGITS:
                raise UserError(
                    f"{row.model} ({row.order}, {row.region}): no table knows the metric {metric}, "
                    f"nor which way it is better; known are {', '.join(DIGITS)} and their forms. "
                    "Take it out of the rows, or read them with the version that wrote them."
                )
            names.add(metric)
    return sorted(names, key=lambda metric: (ORDER.index(base(metric)), metric))


def metric_heading(metric: str) -> str:
    """A metric's name, its scale, and an arrow towards better."""
    scale = metric_scale(metric)
    times = f" x{scale}" if scale != 1 else ""
    arrow = "↑" if is_higher_better(metric) else "↓"
    return f"{metric}{times} {arrow}"


def shown(metric: str, value: float) -> str:
    """A value of a metric with the digits and on the scale of tables."""
    return f"{value * metric_scale(metric):.{DIGITS[base(metric)]}f}"


def metric_cell(row: Row, metric: str) -> str:
    """A metric as tables print it, with its spread over seeds; "-" where it is absent."""
    if metric not in row.metrics:
        return "-"
    cell = shown(metric, row.metrics[metric])
    spread = row.provenance.get("spread", {}).get(metric)
    if spread is not None:
        cell += f" ± {shown(metric, spread)}"
    return cell


def interval_cell(interval: tuple[float, float] | None, metric: str) -> str:
    """An interval as it stands behind its metric in tables; "" where it is not known."""
    if interval is None:
        return ""
    low, high = interval
    return f" [{shown(metric, low)}, {shown(metric, high)}]"
