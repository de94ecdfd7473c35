"""The sentence that answers "which method should I use?", or says why there is no answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ftune.compare.differences import Difference, Measured, difference, holm

SIGNIFICANT = 0.05
Kind = Literal["trained", "prompted", "baseline"]


@dataclass(frozen=True)
class System:
    """A row of the comparison that has a figure.

    Args:
        name: of the row.
        kind: trained, the base model with or without demonstrations, or a baseline.
        measured: the metric, on the rows that are reported.
        cost: means over seeds, of `running.cost_of`; empty where nothing was trained.
        method: of a trained one.
        chosen_by: the metric on the rows by which a method's point of the grid is chosen; never test rows.
    """

    name: str
    kind: Kind
    measured: Measured
    cost: dict[str, Any] = field(default_factory=dict)
    method: str = ""
    chosen_by: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What follows.

    Args:
        recommended: name of a row, or None.
        sentence: for people.
        best: name of the row with the best figure among those that take part.
        against_best: by name of each other row that takes part: its difference from the best, and p after Holm.
        pareto: names of rows that no other beats in quality, time, memory and size at once.
        taking_part: one row of each method, and all that were not trained.
    """

    recommended: str | None
    sentence: str
    best: str
    against_best: dict[str, tuple[Difference, float | None]]
    pareto: tuple[str, ...]
    taking_part: tuple[str, ...]


def judge(systems: Sequence[System], metric: str, better: Literal["higher", "lower"]) -> Verdict:
    """Choose among systems, of which there is at least one.

    Of each method the point of the grid that was best on the rows for choosing takes part. Those rows that cannot be
    told from the best row are equals; of these the trained one that took the least time is recommended, if it is better
    than every row that needs no training.
    """
    sign = 1.0 if better == "higher" else -1.0
    taking_part = _one_of_each_method(systems, sign)
    best = max(taking_part, key=lambda system: sign * system.measured.value)
    others = [system for system in taking_part if system is not best]
    found = [difference(system.measured, best.measured) for system in others]
    tested = [(system, d) for system, d in zip(others, found, strict=True) if d.p is not None]
    adjusted = dict(zip((s.name for s, _ in tested), holm([d.p or 0.0 for _, d in tested]), strict=True))
    against = {system.name: (d, adjusted.get(system.name)) for system, d in zip(others, found, strict=True)}
    equals = [best, *(s for s in others if adjusted.get(s.name, 1.0) >= SIGNIFICANT)]
    recommended, sentence = _answer(best, equals, taking_part, metric, sign)
    return Verdict(
        recommended, sentence, best.name, against, _pareto(systems, sign), tuple(s.name for s in taking_part)
    )


def _one_of_each_method(systems: Sequence[System], sign: float) -> list[System]:
    chosen: dict[str, System] = {}
    for system in systems:
        key = system.method or system.name
        before = chosen.get(key)
        if before is None or sign * _choosing(system) > sign * _choosing(before):
            chosen[key] = system
    return list(chosen.values())


def _choosing(system: System) -> float:
    return system.measured.value if system.chosen_by is None else system.chosen_by


def _answer(
    best: System, equals: Sequence[System], every: Sequence[System], metric: str, sign: float
) -> tuple[str | None, str]:
    trained = [system for system in every if system.kind == "trained"]
    if not trained:
        return None, f"Nothing was trained, so there is nothing to choose. Best: {_figure(best, metric)}."
    if best.measured.spread is None or all(system.measured.spread is None for system in trained):
        return None, (
            f"{best.name} has the best figure: {_figure(best, metric)}. With one seed nothing is known of how far "
            "seeds spread, so no method is declared better than another. Train more: --seeds 3."
        )
    untrained = [system for system in equals if system.kind != "trained"]
    if best.kind != "trained":
        return None, (
            f"No tuned method is needed: {_figure(best, metric)} is the best figure, without any training. "
            f"The best tuned one: {_figure(max(trained, key=lambda s: sign * s.measured.value), metric)}."
        )
    if untrained:
        names = " and ".join(_figure(system, metric) for system in untrained)
        shown = f"{_figure(best, metric)} is not shown to be better than {names}"
        return None, f"No tuned method is shown to be better than what needs no training: {shown}."
    known = [system for system in equals if system.measured.spread is not None]
    quickest = min(known, key=lambda s: s.cost.get("train_seconds", 0.0))
    once = ", ".join(system.name for system in equals if system not in known)
    return quickest.name, _praise(quickest, best, known, metric) + (
        f" Of {once} one seed is finished, so nothing is said about it." if once else ""
    )


def _praise(chosen: System, best: System, equals: Sequence[System], metric: str) -> str:
    if len(equals) == 1:
        return f"Use {chosen.name}: {_figure(chosen, metric)}, significantly better than every other row."
    names = ", ".join(system.name for system in equals)
    if chosen is best:
        same = f"No significant difference between {names}; it is also the quickest of them"
        return f"Use {chosen.name}: {_figure(chosen, metric)}, the best figure. {same}."
    ratio = chosen.cost.get("train_seconds", 0.0) / max(best.cost.get("train_seconds", 0.0), 1e-9)
    return (
        f"Use {chosen.name}: {_figure(chosen, metric)}. No significant difference between {names}; of these it is the "
        f"quickest, with {ratio:.0%} of the time of {best.name} ({best.measured.value:.4f})."
    )


def _figure(system: System, metric: str) -> str:
    interval = system.measured.ci95()
    within = "" if interval is None else f" ({interval[0]:.4f} to {interval[1]:.4f})"
    return f"{system.name} with {metric} {system.measured.value:.4f}{within}"


COSTS = ("train_seconds", "peak_memory_bytes", "artefact_bytes")


def _pareto(systems: Sequence[System], sign: float) -> tuple[str, ...]:
    """Trained rows that no other trained row equals or beats in everything, and beats in something."""
    points = {
        s.name: (-sign * s.measured.value, *(s.cost.get(name, 0.0) for name in COSTS))
        for s in systems
        if s.kind == "trained"
    }

    def beaten(point: tuple[float, ...]) -> bool:
        return any(
            all(a <= b for a, b in zip(other, point, strict=True)) and other != point for other in points.values()
        )

    return tuple(name for name, point in points.items() if not beaten(point))
