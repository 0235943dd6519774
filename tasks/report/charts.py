"""Coordinates of a chart's ticks, lines and bars; plot.svg.j2 draws them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 420, 236
LEFT, RIGHT, TOP, BOTTOM = 50, 406, 12, 196  # frame of the plot; ticks and labels are outside
POINTS = 600
"""Most points of a line. Longer ones keep minimum and maximum of each part, so that no spike is lost."""
SMOOTHED_FROM = 20
"""From this number of steps on, a line of means is drawn too."""
BINS = 24


@dataclass(frozen=True)
class Mark:
    """A circle, a bar or a line across the plot, with its tooltip."""

    x: float
    y: float
    width: float = 0.0
    height: float = 0.0
    text: str = ""


@dataclass
class Chart:
    """One plot; coordinates are those of a WIDTH × HEIGHT picture."""

    title: str
    x_label: str
    description: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    line: str = ""
    smooth: str = ""
    window: int = 0
    beyond: str = ""
    """A note if values are outside the plot."""
    dots: list[Mark] = field(default_factory=list)
    second: str = ""
    second_dots: list[Mark] = field(default_factory=list)
    """A second, sparser series on the same axes."""
    bars: list[Mark] = field(default_factory=list)
    across: Mark | None = None
    upright: Mark | None = None


class Scale:
    """Maps values to pixels; its ends are round numbers."""

    def __init__(
        self, low: float, high: float, start: float, end: float, whole: bool = False, snap: bool = True
    ) -> None:
        if high <= low:
            pad = 1.0 if whole else abs(low) * 0.1 or 1.0
            low, high = (max(0.0, low - pad) if low >= 0 else low - pad), high + pad
        self.step = _round_step((high - low) / 4, whole)
        if snap:
            low, high = math.floor(low / self.step + 1e-9) * self.step, math.ceil(high / self.step - 1e-9) * self.step
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        values = [n * self.step for n in range(first, last + 1)]
        return [(self(value), tick_label(value, self.step)) for value in values]


def _round_step(raw: float, whole: bool) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `raw`."""
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    return float(max(1, math.ceil(step))) if whole else step


def tick_label(value: float, step: float) -> str:
    """With the decimals that the distance between ticks needs: 0.25, 3, 12k, 2.5e-4."""
    if abs(value) < step / 2:
        return "0"
    if step >= 1000:
        unit, name = (1e6, "M") if step >= 1e5 else (1e3, "k")
        return f"{value / unit:,.10g}{name}"
    if step < 1e-3:
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    decimals = next(d for d in range(6) if abs(step * 10**d - round(step * 10**d)) < 1e-6)
    return f"{value:,.{decimals}f}".replace("-", "−")


def curve(
    title: str,
    steps: Sequence[int],
    values: Sequence[float],
    zero: bool = False,
    smooth: bool = True,
    limit: float | None = None,
    second: Sequence[float | None] = (),
) -> Chart | None:
    """A line over optimizer steps, or a circle for a single step; None if no value is finite.

    Args:
        zero: the value axis starts at 0.
        smooth: from SMOOTHED_FROM steps on, draw a centred mean over a twentieth of the steps too.
        limit: value of a dashed line across the plot; not drawn if it is far above the values.
        second: a second series; None for steps without a value.
    """
    points, others = _finite(steps, values), _finite(steps, second) if second else []
    if not points:
        return None
    ys = [y for _, y in points]
    shown = [v for _, v in others] + ([0.0] if zero else [])
    if limit is not None and limit <= 2 * max(ys):
        shown.append(limit)
    x = Scale(points[0][0], points[-1][0], LEFT, RIGHT, whole=True, snap=False)
    y = Scale(min(ys + shown), max([ceiling(ys), *shown]), BOTTOM, TOP)
    beyond = [v for v in ys if v > y.high]
    thin = thinned(points)
    window = len(points) // 20 | 1 if smooth and len(points) >= SMOOTHED_FROM else 0
    means = [(points[i][0], m) for i, m in enumerate(centred_means(ys, max(3, window)))] if window else []
    return Chart(
        title=title,
        x_label="step",
        description=f"{title} over {len(points):,} steps: first {ys[0]:.4g}, last {ys[-1]:.4g}, "
        f"lowest {min(ys):.4g}, highest {max(ys):.4g}",
        x_ticks=x.ticks(),
        y_ticks=y.ticks(),
        line=_path(thin, x, y) if len(points) > 1 else "",
        smooth=_path(thinned(means), x, y) if means else "",
        window=max(3, window) if window else 0,
        beyond=f" · {len(beyond):,} beyond the axis, up to {max(beyond):.4g}" if beyond else "",
        dots=_dots(points, x, y) if len(points) <= 200 else [],
        second=_path(thinned(others), x, y),
        second_dots=_dots(others, x, y),
        across=Mark(LEFT, y(limit), text=f"clipped above {limit:g}") if limit in shown and limit is not None else None,
    )


def _finite(steps: Sequence[int], values: Sequence[float | None]) -> list[tuple[float, float]]:
    pairs = zip(steps, values, strict=True)
    return [(float(s), float(v)) for s, v in pairs if v is not None and math.isfinite(v)]


def ceiling(values: Sequence[float]) -> float:
    """End of the axis: the highest value, or less if a few outliers would flatten all other values."""
    ordered = sorted(values)
    highest, most, middle = ordered[-1], ordered[int(0.99 * (len(ordered) - 1))], ordered[len(ordered) // 2]
    if len(ordered) < 100 or highest <= middle + 5 * (most - middle) or most <= middle:
        return highest
    return middle + 2 * (most - middle)


def thinned(points: list[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """About `most` points at most: both ends, and minimum and maximum of each of equal parts, in order."""
    if len(points) <= most:
        return points
    stretches = most // 2
    kept = {0, len(points) - 1}
    for n in range(stretches):
        inside = range(n * len(points) // stretches, (n + 1) * len(points) // stretches)
        kept |= {min(inside, key=lambda i: points[i][1]), max(inside, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def centred_means(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and its neighbours; near the ends the window is smaller, and still symmetric."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    means = []
    for i in range(len(values)):
        reach = min(window // 2, i, len(values) - 1 - i)
        means.append((sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1))
    return means


def _path(points: list[tuple[float, float]], x: Scale, y: Scale) -> str:
    return " ".join(f"{x(a):g},{y(min(b, y.high)):g}" for a, b in points)


def _dots(points: list[tuple[float, float]], x: Scale, y: Scale) -> list[Mark]:
    return [Mark(x(s), y(min(v, y.high)), text=f"step {s:,.0f}: {v:.4g}") for s, v in points]


def histogram(title: str, lengths: Counter[int], longest: int, limit: int | None) -> Chart:
    """Rows by length. `longest` sets the axis, so that splits can be compared.

    Args:
        limit: position of an upright line; not drawn if it is far beyond the longest row.
    """
    near = limit is not None and limit <= 1.5 * longest
    x = Scale(0, max(longest, limit or 0) if near else longest, LEFT, RIGHT, whole=True)
    width = _round_step(x.high / BINS, whole=True)
    bins = Counter[int]()
    for length, rows in lengths.items():
        bins[int(min(length, x.high - 1) // width)] += rows
    y = Scale(0, max(bins.values(), default=1), BOTTOM, TOP, whole=True)
    bars = []
    for n, rows in sorted(bins.items()):
        left, right, top = x(n * width), min(x((n + 1) * width), RIGHT), y(rows)
        text = f"{n * width:,.0f} to {(n + 1) * width - 1:,.0f} tokens: {rows:,} rows"
        bars.append(Mark(left + 0.75, top, round(max(right - left - 1.5, 0.5), 1), round(BOTTOM - top, 1), text))
    total = sum(lengths.values())
    return Chart(
        title=title,
        x_label="tokens in a row",
        description=f"Token lengths of {total:,} rows" + (f", {min(lengths)} to {max(lengths)}" if total else ""),
        x_ticks=x.ticks(),
        y_ticks=y.ticks(),
        bars=bars,
        upright=Mark(x(limit), TOP, text=f"limit {limit:,}") if near and limit else None,
    )


def sorted_bars(title: str, x_label: str, values: Sequence[float]) -> Chart:
    """One bar a row, from the lowest value to the highest; an even selection if there are too many rows."""
    ordered = sorted(values)
    last = len(ordered) - 1
    shown = ordered if last < 150 else [ordered[round(n * last / 149)] for n in range(150)]
    y = Scale(min(0.0, ordered[0]), max(0.0, ordered[-1]), BOTTOM, TOP)
    slot, zero = (RIGHT - LEFT) / len(shown), y(0)
    gap = min(1.0, slot / 4)
    bars = [
        Mark(
            round(LEFT + n * slot + gap / 2, 2),
            min(y(value), zero),
            round(min(slot - gap, 28), 2),
            round(max(abs(y(value) - zero), 0.6), 1),
            f"{value:+.3f}",
        )
        for n, value in enumerate(shown)
    ]
    better, worse = sum(v > 0 for v in ordered), sum(v < 0 for v in ordered)
    description = f"{title}: {better:,} above 0, {worse:,} below"
    return Chart(title, x_label, description, [], y.ticks(), bars=bars, across=Mark(LEFT, zero))


def on_one_axis(lines: Sequence[Sequence[float]], width: int) -> tuple[list[list[float]], list[tuple[float, str]]]:
    """Positions of each line's values on one axis that includes 0, and the ticks of the axis."""
    values = [value for line in lines for value in line]
    scale = Scale(min(0.0, *values), max(0.0, *values), 14, width - 14)
    return [[scale(value) for value in line] for line in lines], scale.ticks()
