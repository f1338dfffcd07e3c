"""The top of the page: the headline, its one sentence, and the caveats that must not be overlooked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seguro.core.types import ScoreRow
from seguro.report.page import Headline, Score, StageFact

FEW_PATIENTS = 8
"""Below this, bootstrap intervals over patients are only a hint."""
MAKES = "This run makes images and segments none; seguro adapt starts from it."
"""In place of scores."""


def headline(
    dataset: str,
    config: Mapping[str, Any],
    model: Mapping[str, Any],
    name: str,
    rows: Sequence[ScoreRow],
    lines: Sequence[Score],
    *,
    segments: bool = True,
) -> Headline:
    """Return the first lines of the page.

    The mean is the summary's own over classes, else the mean of its classes.
    """
    dice = [s for s in lines if s.metric == "dice" and s.site == "all"]
    overall = next((s for s in dice if s.cls == "all"), None)
    classes = [s for s in dice if s.cls != "all" and s.mean is not None]
    mean = overall.mean if overall else _mean([s.mean for s in classes if s.mean is not None])
    n_cases, n_patients = len({r.case for r in rows}), len({r.patient for r in rows})
    network = _find("network", config, model)
    if isinstance(network, Mapping):
        network = network.get("name", "")
    method = str(_find("method", config, model) or "method not recorded")
    low, high = (overall.low, overall.high) if overall else (None, None)
    if overall is None and len(classes) == 1:
        low, high = classes[0].low, classes[0].high
    return Headline(
        dataset=dataset,
        method=method,
        network=str(network or ""),
        split=f"{name} set" if name and not name.endswith("set") else name,
        n_cases=n_cases,
        n_patients=n_patients,
        mean=mean,
        low=low,
        high=high,
        summary=_sentence(n_cases, n_patients, name, mean, classes) if segments else MAKES,
    )


def _sentence(n_cases: int, n_patients: int, name: str, mean: float | None, classes: Sequence[Score]) -> str:
    if mean is None:
        return "This run has no scores yet; the page shows what is there so far."
    what = f"{n_cases} {name + ' ' if name else ''}case{'s' if n_cases != 1 else ''}"
    who = f" of {n_patients} patient{'s' if n_patients != 1 else ''}" if n_patients != n_cases else ""
    text = f"On {what}{who}, prediction and reference overlap with a mean Dice of {mean:.3f}"
    if len(classes) > 1:
        worst, best = (f(classes, key=lambda s: s.mean or 0.0) for f in (min, max))
        text += f", from {worst.mean:.3f} for {worst.cls} to {best.mean:.3f} for {best.cls}"
    failures = sum(s.failures for s in classes)
    if failures:
        return f"{text}; {failures} time{'s' if failures != 1 else ''} a class was missed altogether."
    return f"{text}; no class was missed in any case."


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _find(key: str, *places: Mapping[str, Any]) -> Any:
    """The first value called `key`, at the top of a mapping or one level below it."""
    for place in places:
        if key in place:
            return place[key]
        for inner in place.values():
            if isinstance(inner, Mapping) and key in inner:
                return inner[key]
    return None


def found_caveats(
    unit: str,
    name: str,
    headline: Headline,
    rows: Sequence[ScoreRow],
    notes: Sequence[str],
    stages: Sequence[StageFact],
    *,
    trained: bool,
    edited: bool,
) -> list[str]:
    """Return what a reader must know before the numbers, one sentence each, worst first."""
    out = [f"{n[:1].upper()}{n[1:]}." for n in notes if "budget" in n.lower() and "stopped" in n.lower()]
    if trained and "train" not in {s.name for s in stages}:
        out.append("Training has not finished; these are numbers on the way.")
    unpredicted = {r.case for r in rows if r.note == "no prediction"}
    if unpredicted:
        out.append(
            f"{plural(len(unpredicted), 'case has', 'cases have')} no prediction and count as failures."
        )
    if name.startswith("val"):
        out.append("These validation cases also selected the model: expect less on new cases.")
    if unit == "nominal mm":
        out.append(
            "Spacing is nominal: the files do not prove their voxel size, distances and volumes may be off."
        )
    if unit == "px":
        out.append("The images carry no physical size: distances are in pixels.")
    if 0 < headline.n_patients < FEW_PATIENTS:
        out.append(f"Only {plural(headline.n_patients, 'patient', 'patients')}: the intervals are rough.")
    if edited:
        out.append("plan.json was edited by hand after it was made.")
    return out


def plural(n: int, one: str, many: str) -> str:
    """Return the number with the word that fits it."""
    return f"{n} {one if n == 1 else many}"
