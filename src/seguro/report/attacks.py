"""What the attacks on a run left in its folder, read for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from seguro.core.errors import DataError
from seguro.core.files import read_object
from seguro.report.perturbed import pictures, read_example
from seguro.report.privacy import scrub
from seguro.report.robustness import (
    Area,
    Attacked,
    CaseLine,
    Curve,
    Example,
    Guard,
    Minimum,
    Point,
    Stratum,
    Weighted,
)

T = TypeVar("T")
N_EXAMPLES = 6
SETTINGS = {
    "suite": "Attack suite",
    "where": "Attacked",
    "iterations": "Iterations",
    "restarts": "Restarts",
    "queries": "Queries",
    "set": "Set by hand",
    "box": "Valid box",
    "threshold": "Broken below Dice",
    "seed": "Seed",
}
WORDS = {"patch": "one patch a case", "volume": "whole volume", "own": "each channel's own range"}
COSTS = {
    "attack_s_per_case": "Attack, s a case",
    "predict_s_per_case": "Prediction, s a case",
    "forwards": "Forward passes",
    "backwards": "Backward passes",
}


def attacks(run: Path, roots: Sequence[str] = ()) -> tuple[Attacked, ...]:
    """Return every finished attack on a run (`run/attacks/*/summary.json`) by name, corruptions last.

    Args:
        run: the run's folder.
        roots: folders that must not be on the page.

    Raises:
        DataError: a summary.json or curves.json that is damaged. Examples that are, are said in their place.
    """
    folders = sorted(p.parent for p in run.glob("attacks/*/summary.json"))
    out = []
    for folder in folders:
        try:
            out.append(_attacked(folder, roots))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder / 'summary.json'} or curves.json: not as this version writes it ({error!r}); "
                "run seguro attack again"
            ) from error
    return tuple(sorted(out, key=lambda a: a.corrupted))


def caveats(attacked: Sequence[Attacked]) -> list[str]:
    """Return the sentences for the top of the page: attacks whose guards failed."""
    return [
        f"The robustness evaluation {a.name} is not reliable: {', '.join(g.name for g in a.failed)} failed."
        for a in attacked
        if a.failed
    ]


def _attacked(folder: Path, roots: Sequence[str]) -> Attacked:
    facts = read_object(folder / "summary.json")
    numbers = read_object(folder / "curves.json")
    setting, eps = facts.get("setting", {}), tuple(float(e) for e in facts.get("eps", ()))
    threshold = setting.get("threshold")
    corrupted = setting.get("suite") == "corruptions" or str(setting.get("eps_unit", "")).startswith(
        "severity"
    )
    missing = () if numbers else ("The curves (curves.json): run the same attack again, it goes on.",)

    def parts(name: str, make: Callable[[Any], Iterable[T]]) -> tuple[T, ...]:
        return tuple(make(numbers.get(name, ())))

    return Attacked(
        name=scrub(folder.name, roots),
        eps=eps,
        corrupted=corrupted,
        eps_unit=scrub(str(setting.get("eps_unit", Attacked.eps_unit)), roots),
        n_cases=int(facts.get("cases") or 0),
        unit=str(setting.get("unit", "mm")),
        threshold=float(threshold) if isinstance(threshold, int | float) else None,
        facts=tuple(_facts(setting, roots)),
        cost=tuple(
            (name, _number(facts.get("cost", {})[key]))
            for key, name in COSTS.items()
            if isinstance(facts.get("cost", {}).get(key), int | float)
        ),
        native=tuple(_native(facts.get("native_eps", {}), eps)),
        guards=tuple(
            Guard(
                scrub(str(g.get("name", "")), roots), g.get("passed"), scrub(str(g.get("detail", "")), roots)
            )
            for g in facts.get("guards", ())
        ),
        curves=parts("curves", _curves),
        areas=parts("areas", _areas),
        strata=() if corrupted else parts("by_size", _strata),
        minimums=parts("minimum", _minimums),
        cases=parts("cases", lambda rows: (CaseLine(r["case"], tuple(r["dice"])) for r in rows)),
        weighted=parts("weighted", _weighted),
        examples=tuple(_examples(folder / "examples", roots)),
        missing=missing,
    )


def _curves(rows: Sequence[Mapping[str, Any]]) -> Iterator[Curve]:
    for (attack, cls), group in groupby(rows, key=lambda r: (r["attack"], r["class"])):
        yield Curve(attack, cls, tuple(_points(group)))


def _points(rows: Iterator[Mapping[str, Any]]) -> Iterator[Point]:
    for r in rows:
        n = r["n_cases"], r["n_patients"], r.get("failures", 0)
        yield Point(float(r["eps"]), float(r["mean"]), r["low"], r["high"], *n)


def _areas(rows: Sequence[Mapping[str, Any]]) -> Iterator[Area]:
    for r in rows:
        yield Area(r["attack"], r["class"], float(r["mean"]), r["low"], r["high"], r["n_cases"])


def _strata(rows: Sequence[Mapping[str, Any]]) -> Iterator[Stratum]:
    attacks = {r["attack"] for r in rows}
    shown = "worst" if "worst" in attacks else next(iter(sorted(attacks)), "")
    own = [r for r in rows if r["attack"] == shown]
    for (cls, name), group in groupby(own, key=lambda r: (r["class"], r["stratum"])):
        part = list(group)
        ends = float(part[0]["size_low"]), float(part[0]["size_high"])
        yield Stratum(cls, name, *ends, tuple(_points(iter(part))))


def _minimums(rows: Sequence[Mapping[str, Any]]) -> Iterator[Minimum]:
    for r in rows:
        found = tuple(float(e) for e in r["found"])
        yield Minimum(
            r["attack"], int(r["n_cases"]), int(r["censored"]), r["q1"], r["median"], r["q3"], found
        )


def _weighted(rows: Sequence[Mapping[str, Any]]) -> Iterator[Weighted]:
    for r in rows:
        score = float(r["clean"]), float(r["mean"]), r["low"], r["high"], float(r["degradation"])
        yield Weighted(r["attack"], r["class"], *score)


def _facts(setting: Mapping[str, Any], roots: Sequence[str]) -> Iterator[tuple[str, str]]:
    for key, name in SETTINGS.items():
        value = setting.get(key)
        if value is None or value == "":
            continue
        text = f"{value:.3g}" if isinstance(value, float) else WORDS.get(str(value), str(value))
        yield name, scrub(text, roots)


def _native(
    native: Mapping[str, Mapping[str, Any]], eps: Sequence[float]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each channel with the text of every epsilon in its own units, whatever way its key is written."""
    for channel, sizes in native.items():
        by_eps = {f"{float(e):g}": v for e, v in sizes.items()}
        yield (
            channel,
            tuple(
                f"{v:.3g}" if v is not None else "\N{EN DASH}" for v in (by_eps.get(f"{e:g}") for e in eps)
            ),
        )


def _examples(folder: Path, roots: Sequence[str]) -> Iterator[Example]:
    found = sorted(folder.glob("*.json"), key=lambda p: (len(p.stem), p.stem))  # 2 before 10
    for path in found[:N_EXAMPLES]:
        facts = read_object(path)
        shown: tuple[Any, ...] = ()
        why = ""
        try:
            arrays = read_example(path.with_suffix(".npz"))
            row, column = (float(s) for s in facts.get("spacing", (1.0, 1.0)))
            shown = pictures(
                arrays, (row, column), axis=int(facts.get("axis", 0)) if facts.get("oriented") else None
            )
        except (DataError, ValueError) as error:
            why = scrub(str(error), roots)
        yield Example(
            scrub(str(facts.get("case", path.stem)), roots),
            str(facts.get("attack", "")),
            float(facts.get("eps", 0.0)),
            facts.get("dice_clean"),
            facts.get("dice_attacked"),
            str(facts.get("channel", "")),
            shown,
            why,
        )


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.3g}"
