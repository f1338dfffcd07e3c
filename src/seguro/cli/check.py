"""Find what is wrong with a folder of scans, and say which method fits.

Reads every file to its end, compares images with labels, looks for leaks between splits, and writes nothing
into the folder. Exit code 2 when there are errors, 0 with --quarantine (the bad cases are left out and
listed).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seguro.cli.terminal import AsJson, DryRun, console, finish

if TYPE_CHECKING:
    from rich.console import Console

    from seguro.data.check import CheckReport

SHOWN = 6
"""Problems of one kind that are printed; all of them are in problems.json."""
HEADINGS = {
    "file": "Files that cannot be used",
    "geometry": "Geometry",
    "intensity": "Intensities",
    "label": "Labels",
    "pair": "Images and labels that do not pair",
    "leak": "Leaks",
    "duplicate": "Duplicates",
    "layout": "Folder",
    "spacing": "Voxel size",
    "patient": "Patients and sites",
    "annotation": "Annotated classes",
}


def check(
    data: Annotated[Path, typer.Argument(help="Folder with the scans.")],
    out: Annotated[Path | None, typer.Option(help="Workspace; default ./<folder>.seguro")] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Voxel size z,y,x in mm for files that state none (and for pictures).")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Class names, 'liver,spleen' or '1=liver,2=spleen', if no file names them."),
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Channel names, 'FLAIR,T1', if no file names them.")
    ] = None,
    patients: Annotated[
        Path | None, typer.Option(help="CSV file with the columns id,patient and perhaps site.")
    ] = None,
    quarantine: Annotated[
        bool | None, typer.Option("--quarantine/--no-quarantine", help="Leave bad cases out and go on.")
    ] = None,
    repair: Annotated[str | None, typer.Option(help="nan=min: replace NaN and infinite voxels.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read and hash every file again.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Files read at once.")] = 2,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Check the folder and print what was found; see the module's text."""
    from rich.markup import escape

    from seguro.api import is_workspace, workspace_of
    from seguro.cli.progress import counting
    from seguro.data.check import check as run
    from seguro.data.check_options import FILE as OPTIONS
    from seguro.data.check_options import Options, command, remembered
    from seguro.data.layouts import list_cases
    from seguro.data.manifest import load

    given = _given(spacing, classes, channels, patients, quarantine=quarantine, repair=repair)
    text = console(as_json)
    workspace = workspace_of(data, out)
    last = remembered(workspace)
    options = replace(last, **given)
    if kept := {k: v for k, v in last.said().items() if k not in given}:
        words = " ".join(Options(**kept).arguments())
        text.print(escape(f"as in the last check here: {words} ({workspace / 'check' / OPTIONS} keeps them)"))
    if out is None and is_workspace(data):
        data = Path(load(data).root)
    if dry_run:
        listing = list_cases(data)
        n = len(listing.found)
        text.print(f"{data}: {listing.layout} layout, {n} cases would be read")
        text.print(f"would write {workspace / 'check'}")
        finish(
            text, result={"layout": listing.layout, "cases": n}, as_json=as_json, then=f"seguro check {data}"
        )
        return
    with counting(text, "reading files") as progress:
        report = run(data, workspace, options=options, progress=progress, verify=verify, jobs=jobs)
    _show(text, report, workspace)
    # bad cases can be left out only where good ones are left
    rest = replace(options, quarantine=any(c.label for c in report.manifest.cases))
    then = _next(report, out) if report.ok else command(data, workspace, rest)
    finish(text, result=_result(report, workspace), as_json=as_json, then=then)
    if not report.ok:
        raise typer.Exit(2)


def _given(
    spacing: str | None,
    classes: str | None,
    channels: str | None,
    patients: Path | None,
    *,
    quarantine: bool | None,
    repair: str | None,
) -> dict[str, Any]:
    """Return the options that were given, as typed values; ConfigError for what cannot be."""
    from seguro.core.errors import ConfigError
    from seguro.data.manifest import parse_spacing

    if repair not in (None, "nan=min"):
        raise ConfigError(f"--repair {repair}: only nan=min is known")
    values = {
        "spacing": parse_spacing(spacing) if spacing else None,
        "classes": _names(classes) if classes is not None else None,
        "channels": _names(channels) if channels is not None else None,
        "patients": patients,
        "quarantine": quarantine,
        "repair": repair,
    }
    return {name: value for name, value in values.items() if value is not None}


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _show(out: Console, report: CheckReport, workspace: Path) -> None:
    """Print what is there, what is wrong and what to do."""
    from rich.markup import escape

    for line in _summary(report):
        out.print(escape(line))
    for name, problems, style in (("error", report.errors, "red"), ("warning", report.warnings, "yellow")):
        if not problems:
            continue
        settled = ", their cases are left out" if name == "error" and report.ok else ""
        out.print(f"[bold {style}]{len(problems)} {name}{'s' if len(problems) > 1 else ''}[/]{settled}")
        for kind, heading in HEADINGS.items():
            mine = [p for p in problems if p.kind == kind]
            if not mine:
                continue
            out.print(f"  [{style}]{heading}[/]")
            for problem in mine[:SHOWN]:
                out.print("    - " + escape(problem.line().replace("\n", "\n      ")))
            if len(mine) > SHOWN:
                out.print(
                    f"    and {len(mine) - SHOWN} more, see "
                    f"{escape(str(workspace / 'check' / 'problems.json'))}"
                )
    if report.ok:
        out.print(f"[bold green]usable[/]; recommended: [bold]{report.recommendation.method}[/]")
        out.print(f"  {escape(report.recommendation.why)}")
    else:
        out.print(
            "[bold red]not usable as it is[/]: mend the errors, or leave their cases out with --quarantine"
        )


def _summary(report: CheckReport) -> list[str]:
    """Return a few lines on the usable cases."""
    m = report.manifest
    parts = [f"{len(m.of(s))} {s}" for s in ("train", "test", "unlabelled") if m.of(s)] or ["no usable case"]
    if m.excluded:
        parts.append(f"{len(m.excluded)} left out")
    labelled = sum(1 for c in m.cases if c.label is not None)
    lines = [
        f"{m.name}: {m.layout} layout, {', '.join(parts)}; {labelled} with label; channels "
        f"{', '.join(m.channels)}"
    ]
    if m.cases:
        shapes = sorted((c.shape for c in m.cases), key=lambda s: s[0] * s[1] * s[2])
        spacings = [c.spacing for c in m.cases]
        low, high = (" x ".join(str(n) for n in s) for s in (shapes[0], shapes[-1]))
        size = low if low == high else f"{low} to {high}"
        steps = " x ".join(_span(sorted(s[axis] for s in spacings)) for axis in range(3))
        lines.append(f"  size {size}, voxels {steps} {m.cases[0].unit} (z, y, x)")
        patients, sites = len({c.patient for c in m.cases}), sorted({c.site for c in m.cases})
        lines.append(f"  {patients} patients, {len(sites)} site{'s' if len(sites) > 1 else ''}")
    if m.classes is not None:
        kind = "overlapping regions" if m.classes.regions else "classes"
        lines.append(f"  {kind}: {', '.join(m.classes.foreground)}")
        if m.classes.pairs:
            lines.append("  left and right: " + ", ".join(f"{a} / {b}" for a, b in m.classes.pairs))
    return lines


def _span(values: list[float]) -> str:
    low, high = f"{values[0]:.3g}", f"{values[-1]:.3g}"
    return low if low == high else f"{low}-{high}"


def _next(report: CheckReport, out: Path | None) -> str:
    """Return the command that goes on with usable data."""
    import shlex

    return report.recommendation.command + (f" --out {shlex.quote(str(out))}" if out is not None else "")


def _result(report: CheckReport, workspace: Path) -> dict[str, Any]:
    m = report.manifest
    return {
        "ok": report.ok,
        "manifest": str(workspace / "check" / "manifest.json") if report.ok else None,
        "problems": str(workspace / "check" / "problems.json"),
        "layout": m.layout,
        "cases": {s: len(m.of(s)) for s in ("train", "test", "unlabelled")},
        "classes": list(m.classes.names) if m.classes else [],
        "errors": [asdict(p) for p in report.errors],
        "recommendation": asdict(report.recommendation),
    }
