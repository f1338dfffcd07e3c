"""Makes hospitals of one data set: patients dealt to sites, whose images and labels are changed as told."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from seguro.core.files import read_json, write_json, write_text
from seguro.data import manifest as manifests
from seguro.data.layouts.naming import read_patients


class Place(NamedTuple):
    """Where a patient is."""

    site: str
    test: bool


def dealt(patients: Iterable[str], sites: Sequence[str], test_every: int) -> dict[str, Place]:
    """Return where each patient is: blocks of so many, by id, go to the sites in turn; the last is a test."""
    return {
        p: Place(sites[i // test_every % len(sites)], i % test_every == test_every - 1)
        for i, p in enumerate(sorted(set(patients)))
    }


def patients_of(cases: Sequence[str], table: Path | None) -> dict[str, str]:
    """Return the patient of each case: as the CSV file `table` (id,patient) says, or each its own."""
    if table is None:
        return {case: case for case in cases}
    known = read_patients(table)
    if unknown := sorted(set(cases) - set(known)):
        sys.exit(f"{table}: no patient for case {unknown[0]!r} ({len(unknown)} cases are not in it)")
    return {case: known[case].patient for case in cases}


def recontrasted(image: Any, *, invert: bool = False, gamma: float = 1.0) -> Any:
    """Return the image with x -> x^gamma, or (1 - x)^gamma, of its own range."""
    values = np.asarray(image.dataobj, np.float32)
    low, width = float(values.min()), float(np.ptp(values)) or 1.0
    x = (values - low) / width
    return nib.Nifti1Image(low + width * (1 - x if invert else x) ** gamma, image.affine)


def write(
    source: Path,
    folder: Path,
    sites: Mapping[str, Any],
    *,
    test_every: int,
    patients: Path | None = None,
    limit: int | None = None,
) -> Path:
    """Write the data folder of a world, once, and return it.

    Args:
        source: a data set as the Medical Segmentation Decathlon lays it out.
        folder: where the world goes; beside it FOLDER.json says what it was made of.
        sites: what is different at each, see federated.py.
        test_every: see `dealt`.
        patients: CSV file (id,patient); None: each case is a patient.
        limit: only so many patients, by id.
    """
    dataset = read_json(source / "dataset.json")
    entries = {_case(e): e for e in sorted(dataset["training"], key=lambda e: e["image"])}
    patient = patients_of(list(entries), patients)
    chosen = sorted(set(patient.values()))[:limit]
    made_of = {"sites": dict(sites), "test_every": test_every, "patients": chosen}
    noted = folder.with_name(f"{folder.name}.json")
    if (folder / "dataset.json").exists():
        if read_json(noted) != made_of:
            sys.exit(f"{folder}: was made with other sites or patients; use another --work, or remove it")
        return folder
    places = dealt(chosen, list(sites), test_every)
    entries = {case: e for case, e in entries.items() if patient[case] in places}
    values = {name: int(value) for value, name in dataset["labels"].items()}
    people, annotated = [], {}
    for case, entry in entries.items():
        site, test = places[patient[case]]
        wanted = sites[site]
        image, label = (nib.load(source / entry[k]) for k in ("image", "label"))
        if "contrast" in wanted:
            image = recontrasted(image, **wanted["contrast"])
        if "classes" in wanted and not test:
            label = _only(label, [values[n] for n in wanted["classes"]])
            annotated[case] = list(wanted["classes"])
        split = "test" if test else "unlabelled" if wanted.get("labels") == "none" else "train"
        people.append([case, patient[case], site, split])
        for kind, what in (("image", image), ("label", label)):
            path = folder / entry[kind]
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(what, path)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["id", "patient", "site", "split"], *people])
    write_text(folder / "patients.csv", text.getvalue())
    if annotated:
        write_json(folder / "annotated.json", annotated)
    write_json(noted, made_of)
    training = list(entries.values())
    write_json(folder / "dataset.json", {**dataset, "training": training, "numTraining": len(training)})
    return folder


def alone(workspace: Path, site: str) -> Path:
    """Return the workspace with the training cases of one site and the test cases of all."""
    out = of_site(workspace, site)
    manifest = manifests.load(workspace / "check" / manifests.FILE)
    cases = tuple(c for c in manifest.cases if c.split == "test" or c.site == site)
    own = manifest.model_copy(update={"cases": cases, "name": out.stem, "splits_sha256": None})
    manifests.save(own, out / "check" / manifests.FILE)
    return out


def of_site(workspace: Path, site: str) -> Path:
    """Return where the workspace of one site of a world lies."""
    return workspace.with_name(f"{workspace.stem}-{site}.seguro")


def _case(entry: Mapping[str, str]) -> str:
    return Path(entry["image"]).name.removesuffix(".nii.gz")


def _only(label: Any, keep: Sequence[int]) -> Any:
    """Return the label with other values wiped out."""
    values = np.asarray(label.dataobj)
    return nib.Nifti1Image(np.where(np.isin(values, keep), values, 0).astype(np.uint8), label.affine)
