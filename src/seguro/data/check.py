"""Everything that is wrong with a folder of scans, found before anything is trained."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import joblib

from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_json, sha256_file, write_json
from seguro.core.stage import STAGE_FILE, Stage
from seguro.core.types import Case, Classes, Excluded, FileFact, Manifest
from seguro.data import manifest as manifests
from seguro.data.check_options import Options, command, remember, remembered
from seguro.data.classes import decide, known_values
from seguro.data.cohort import across, all_empty, group
from seguro.data.folds import SPLITS
from seguro.data.inspection import Inspection, inspect, unknown_values
from seguro.data.layouts import Listing, Problem, list_cases, some
from seguro.data.layouts.naming import (
    ANNOTATED_FILE,
    PATIENTS_FILE,
    Person,
    person,
    read_annotated,
    read_patients,
)
from seguro.data.leaks import find_leaks
from seguro.data.recommendation import Recommendation, recommend

SCHEMA = 1
PROBLEMS_FILE = "problems.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CheckReport:
    """What `check` found."""

    manifest: Manifest
    """The usable cases."""
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    recommendation: Recommendation
    quarantined: bool
    """Whether the errors were settled by leaving their cases out."""

    @property
    def ok(self) -> bool:
        """Whether training may go on."""
        return bool(self.manifest.cases) and (not self.errors or self.quarantined)


def check(
    folder: Path,
    out: Path,
    *,
    options: Options | None = None,
    progress: Progress | None = None,
    verify: bool = False,
    jobs: int = 2,
    write: bool = True,
) -> CheckReport:
    """Return everything that is wrong with the scans in `folder`; a bad file never ends the check.

    Writes `check/problems.json` into the workspace, and `check/manifest.json` when the data may be used.
    Does not read the files again when names, sizes, times and options are those of the last check.

    Args:
        folder: the data set.
        out: the workspace.
        options: what the user said about the data.
        progress: called with (cases done, cases).
        verify: read and hash every file again, and compare with the last check.
        jobs: cases read at once.
        write: False leaves the disk alone.

    Raises:
        DataError: the folder as a whole cannot be understood.
        ConfigError: options that do not fit the folder.
    """
    options = options or Options()
    listing = _split_as_told(list_cases(folder), options)
    target = out / "check"
    stage = Stage(target, "check", reads=_reads(listing, options), config=_config(options), schema=SCHEMA)
    if not verify and stage.done():
        return _reuse(target, folder, stage, write=write)
    inspections = _inspect_all(listing, options, progress, jobs)
    report = _report(listing, inspections, options, folder)
    if verify:
        report = _compare(report, target)
    if write:
        remember(out, options)
        _write(report, target, stage)
    return report


def ensure(
    folder: Path,
    workspace: Path,
    *,
    options: Options | None = None,
    progress: Progress | None = None,
    verify: bool = False,
    jobs: int = 2,
    say: Callable[[str], None] = lambda line: None,
    write: bool = True,
) -> Manifest:
    """Return the manifest of `folder`, checking it first when it was not checked or has changed.

    Images that stand twice among the training cases, under two patients, are left out once and said: a fold
    would otherwise validate on a training image. Every other error refuses the folder.

    Without `options` those of the last check in the workspace hold, so that what `seguro check`
    was told (quarantine, spacing, class names, ...) needs not be said again. `write` is that of `check`.

    Raises:
        DataError: something is wrong with the data; the first errors are listed.
    """
    options = options or remembered(workspace)
    how: dict[str, Any] = {"progress": progress, "verify": verify, "jobs": jobs, "write": write}
    report = check(folder, workspace, **how, options=options)
    if not report.ok and all(p.kind == "duplicate" for p in report.errors):
        for problem in report.errors:
            say(f"left out: {problem.line()}")
        options = replace(options, quarantine=True)
        report = check(folder, workspace, **how, options=options)
    if report.ok:
        return report.manifest
    lines = [f"  {p.line()}" for p in report.errors[:10]]
    more = f"\n  and {len(report.errors) - 10} more" if len(report.errors) > 10 else ""
    raise DataError(
        f"{folder}: {len(report.errors)} problems in the data:\n" + "\n".join(lines) + more + "\n"
        "mend them, or leave the bad cases out with: "
        + command(folder, workspace, replace(options, quarantine=True))
    )


def _config(options: Options) -> dict[str, Any]:
    return {k: v for k, v in asdict(options).items() if k != "patients"}


def _reads(listing: Listing, options: Options) -> dict[str, str]:
    """Return "size:mtime" of every file that the result depends on."""
    named = [p for f in listing.found for p in (*f.images, *f.labels) if p is not None]
    named += [*listing.sources, Path(PATIENTS_FILE), Path(ANNOTATED_FILE)]
    out = {p.as_posix(): _stamp(listing.root / p) for p in named}
    if options.patients is not None:
        out["--patients"] = _stamp(options.patients)
    out["listing"] = f"{len(listing.errors)} errors, {len(listing.warnings)} warnings"
    return out


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "missing"
    return f"{status.st_size}:{status.st_mtime_ns}"


def _finish(stage: Stage, manifest: Manifest, target: Path) -> None:
    """Finish the stage; the manifest stands by its content, since dates and folder change with every copy."""
    known = {manifests.FILE: manifests.content_hash(manifest)}
    stage.finish([target / manifests.FILE, target / PROBLEMS_FILE], known=known)


def _reuse(target: Path, folder: Path, stage: Stage, *, write: bool) -> CheckReport:
    """Return the report of the last check; a new place of the data and new splits go into the manifest."""
    path = target / manifests.FILE
    before = manifests.load(path)
    root = folder.resolve()
    manifest = before.model_copy(update={"root": str(root), "splits_sha256": _splits(root)})
    if write and manifest != before:
        manifests.save(manifest, path)
        _finish(stage, manifest, target)
    content = read_json(target / PROBLEMS_FILE)
    errors, warnings = (tuple(Problem(**p) for p in content[k]) for k in ("errors", "warnings"))
    return CheckReport(manifest, errors, warnings, recommend(manifest, str(folder)), bool(errors))


def _splits(root: Path) -> str | None:
    return sha256_file(root / SPLITS) if (root / SPLITS).exists() else None


def _write(report: CheckReport, target: Path, stage: Stage) -> None:
    content = {"errors": [asdict(p) for p in report.errors], "warnings": [asdict(p) for p in report.warnings]}
    (target / STAGE_FILE).unlink(missing_ok=True)
    write_json(target / PROBLEMS_FILE, content)
    if not report.ok:
        (target / manifests.FILE).unlink(missing_ok=True)  # of an earlier check, no longer true
        return
    manifests.save(report.manifest, target / manifests.FILE)
    _finish(stage, report.manifest, target)


def _compare(report: CheckReport, target: Path) -> CheckReport:
    """Return the report with an error for each file whose content changed though size and time did not."""
    path = target / manifests.FILE
    if not path.exists():
        return report
    before = {f.path: f for case in manifests.load(path).cases for f in manifests.facts(case)}
    errors = list(report.errors)
    for case in report.manifest.cases:
        for fact in manifests.facts(case):
            old = before.get(fact.path)
            if old and (old.size, old.mtime_ns) == (fact.size, fact.mtime_ns) and old.sha256 != fact.sha256:
                text = (
                    f"{fact.path}: content changed since the last check (SHA-256 {old.sha256[:12]}, now "
                    f"{fact.sha256[:12]}) though size and time did not; copy it again from its source"
                )
                errors.append(Problem("file", case.id, text))
    return CheckReport(
        report.manifest, tuple(errors), report.warnings, report.recommendation, report.quarantined
    )


def _inspect_all(
    listing: Listing, options: Options, progress: Progress | None, jobs: int
) -> list[Inspection]:
    if options.channels and listing.channels:
        raise ConfigError("--channels: dataset.json names the channels already; change them there")
    names = listing.channels or options.channels
    work = joblib.Parallel(n_jobs=jobs, prefer="threads", return_as="generator")(
        joblib.delayed(inspect)(
            found, listing, channels=len(names) or None, spacing=options.spacing, repair=options.repair
        )
        for found in listing.found
    )
    out = []
    for inspection in work:
        out.append(inspection)
        if progress:
            progress(len(out), len(listing.found))
    return out


def _report(listing: Listing, inspections: list[Inspection], options: Options, folder: Path) -> CheckReport:
    """Return errors, warnings and the manifest of the cases without errors."""
    warnings = list(listing.warnings)
    channels = _channels(listing, inspections, options)
    classes, more = decide(listing, [i for i in inspections if not i.errors], options.classes)
    warnings += more
    mask_names = (options.classes or listing.masks) if listing.masks else ()
    if classes is not None:
        _label_values(inspections, classes, mask_names)
    people = _people(listing, options, warnings)
    annotated = _annotated(listing, classes, warnings)
    by_id = {i.found.id: i for i in inspections}
    for leak in find_leaks(inspections, people):
        owner = by_id[leak.problem.case]
        (owner.errors if leak.severe else owner.warnings).append(leak.problem)
    good = [i for i in inspections if not i.errors]
    cases = tuple(_case(i, people[i.found.id], classes, mask_names, annotated.get(i.found.id)) for i in good)
    warnings += across(good, cases, classes, mask_names)
    errors = [*listing.errors, *(p for i in inspections for p in i.errors)]
    if classes is not None and (empty := all_empty(good, cases, classes, mask_names)):
        errors.append(Problem("label", "", empty))
    warnings += [p for i in inspections for p in i.warnings]
    grouped = group(warnings)
    manifest = Manifest(
        name=listing.root.resolve().name,
        root=str(listing.root.resolve()),
        layout=listing.layout,
        channels=channels,
        classes=classes,
        cases=cases,
        repair=options.repair,
        splits_sha256=_splits(listing.root),
        excluded=_excluded(errors),
        warnings=tuple(p.line() for p in grouped),
    )
    return CheckReport(
        manifest, tuple(errors), tuple(grouped), recommend(manifest, str(folder)), options.quarantine
    )


def _channels(listing: Listing, inspections: Sequence[Inspection], options: Options) -> tuple[str, ...]:
    """Return the channel names; cases with another number of channels get an error."""
    counts = Counter(i.n_channels for i in inspections if not i.errors)
    names = listing.channels or options.channels
    if not names:
        n = counts.most_common(1)[0][0] if counts else 1
        names = {1: ("grey",) if listing.layout == "raster" else ("image",), 3: ("R", "G", "B")}.get(
            n, tuple(f"channel {k}" for k in range(n))
        )
    for inspection in inspections:
        if not inspection.errors and inspection.n_channels != len(names):
            inspection.error(
                "file",
                f"{inspection.n_channels} channels where the data set has {len(names)} ({', '.join(names)}); "
                "convert the image to the same channels as the others",
            )
    return names


def _label_values(inspections: Sequence[Inspection], classes: Classes, mask_names: tuple[str, ...]) -> None:
    known = known_values(classes)
    for inspection in inspections:
        if mask_names:
            for name, values in zip(mask_names, inspection.mask_values, strict=False):
                if len([v for v in values if v != 0]) > 1:
                    inspection.error(
                        "label", f"mask {name} holds the values {list(values)}; a mask has 0 and one other"
                    )
        elif message := unknown_values(inspection.values, sorted(known)):
            inspection.error("label", message)


def _split_as_told(listing: Listing, options: Options) -> Listing:
    """Return the listing with the splits that the table of patients gives; "unlabelled" hides a label."""
    table = _table(listing, options)
    found = []
    for f in listing.found:
        split = (table[f.id].split if f.id in table else None) or f.split
        found.append(replace(f, split=split, labels=() if split == "unlabelled" else f.labels))
    return replace(listing, found=tuple(found))


def _table(listing: Listing, options: Options) -> dict[str, Person]:
    path = options.patients or listing.root / PATIENTS_FILE
    return read_patients(path) if options.patients is not None or path.exists() else {}


def _people(listing: Listing, options: Options, warnings: list[Problem]) -> dict[str, Person]:
    path = options.patients or listing.root / PATIENTS_FILE
    table = _table(listing, options)
    ids = {f.id for f in listing.found}
    if lost := sorted(set(table) - ids):
        warnings.append(
            Problem("patient", "", f"{path.name}: {len(lost)} ids are not in the folder: {some(lost)}")
        )
    if table and (lacking := sorted(ids - set(table))):
        text = (
            f"{path.name}: {len(lacking)} cases are not listed, their names tell the patient: {some(lacking)}"
        )
        warnings.append(Problem("patient", "", text))
    return {f.id: person(f.id, f.site, table) for f in listing.found}


def _annotated(
    listing: Listing, classes: Classes | None, warnings: list[Problem]
) -> dict[str, tuple[str, ...]]:
    path = listing.root / ANNOTATED_FILE
    if classes is None or not path.exists():
        return {}
    table = read_annotated(path, classes.foreground)
    if lost := sorted(set(table) - {f.id for f in listing.found}):
        text = f"{ANNOTATED_FILE}: {len(lost)} ids are not in the folder: {some(lost)}"
        warnings.append(Problem("annotation", "", text))
    return table


def _case(
    inspection: Inspection,
    who: Person,
    classes: Classes | None,
    mask_names: tuple[str, ...],
    annotated: tuple[str, ...] | None,
) -> Case:
    found = inspection.found
    first: FileFact | None = next((f for f in inspection.labels if f is not None), None)
    if first is None or classes is None:
        annotated = ()
    elif annotated is None:
        annotated = classes.foreground
        if mask_names:
            given = {n for n, f in zip(mask_names, inspection.labels, strict=True) if f is not None}
            annotated = tuple(n for n in classes.foreground if n in given)
    labelled = first is not None and classes is not None
    return Case(
        id=found.id,
        patient=who.patient,
        site=who.site,
        split="unlabelled" if found.split == "train" and not labelled else found.split,
        images=inspection.images,
        label=first if labelled else None,
        masks=inspection.labels if mask_names and labelled else (),
        annotated=annotated,
        shape=inspection.shape,
        spacing=inspection.spacing,
        unit=inspection.unit,
    )


def _excluded(errors: Iterable[Problem]) -> tuple[Excluded, ...]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for problem in errors:
        if problem.case:
            reasons[problem.case].append(problem.message)
    return tuple(Excluded(id=case, reason="; ".join(reasons[case])) for case in sorted(reasons))


__all__ = ["CheckReport", "Options", "check", "ensure", "remembered"]
