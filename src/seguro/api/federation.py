"""Federated training on this machine: options settled, sites found or made of one data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from pydantic import ValidationError

from seguro.api.configuration import TrainOptions, configure, plan_fields
from seguro.api.workspace import Say, is_workspace, manifest_of, named, quiet, workspace_of
from seguro.core.errors import ConfigError, DataError
from seguro.core.files import read_json, write_json, write_text
from seguro.core.seeds import generator
from seguro.core.settings import read_yaml
from seguro.core.stage import locked
from seguro.core.types import Case, Manifest
from seguro.federated.keeper import EVERY_S

if TYPE_CHECKING:
    from seguro.federated.cost import Foretold
    from seguro.federated.site import Site
    from seguro.federated.strategies import Federation


@dataclass(frozen=True)
class FederateOptions:
    """What a federated run is made of, besides the data."""

    method: str = "supervised"
    preset: str = "auto"
    network: str | None = None
    settings: Mapping[str, Any] | None = None
    rounds: int = 20
    updates: int = 50
    """Local updates of a site in a round."""
    batch: int | None = None
    seed: int = 0
    strategy: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `federated.strategies.Strategy`."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the plan's options that are not left to the data."""
    name: str | None = None
    device: str = "cpu"
    processes: bool = False
    """Each site in a process of its own."""
    save_every_s: float = EVERY_S
    """Seconds from one saved state of a simulation to the next; 0 saves every round, as processes do."""


OF_MACHINE = ("device", "processes", "save_every_s")
"""Options that are of this machine, not of the run: no file has them."""


def federation(options: FederateOptions, sites: Sequence[str]) -> Federation:
    """Return the federation of `options` over `sites`, the method's config resolved.

    Raises:
        ConfigError: fields that are unknown or out of range; each is listed.
    """
    from seguro.federated.strategies import Federation
    from seguro.methods import get

    if begins := get(options.method).needs.begins:
        raise ConfigError(
            f"method {options.method} starts from the {', '.join(begins)} of another run, which a federation "
            "does not give its sites: train that together (seguro federate, method factory), then adapt at "
            "each site (seguro adapt)"
        )
    wanted = TrainOptions(
        method=options.method, preset=options.preset, network=options.network, settings=options.settings
    )
    preset, config = configure(wanted, gpu=options.device.startswith("cuda"), sites=sites)
    noisy = bool(options.strategy.get("privacy"))
    try:
        return Federation.model_validate(
            {
                "run": named(options.name or f"federated-{options.method}"),
                "method": options.method,
                "preset": preset,
                "config": config.model_dump(mode="json"),
                "rounds": options.rounds,
                "updates": options.updates,
                "batch": options.batch,
                "seed": options.seed,
                "noise_seed": options.seed if noisy else None,
                "sites": sorted(sites),
                "plan": {**plan_fields(options.method), **options.plan},
                "strategy": dict(options.strategy),
            }
        )
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError("options of the federation:\n  " + "\n  ".join(lines)) from error


def options_in(path: Path) -> tuple[FederateOptions, tuple[str, ...] | None]:
    """Return the options in a YAML file, and the sites that it names, None where it names none.

    Raises:
        ConfigError: a field that is not one of `FederateOptions`, or `sites`.
    """
    found = read_yaml(path)
    sites = found.pop("sites", None)
    known = [f.name for f in fields(FederateOptions) if f.name not in OF_MACHINE]
    if unknown := sorted(set(found) - set(known)):
        raise ConfigError(f"{path}: unknown {', '.join(unknown)}; its keys are sites, {', '.join(known)}")
    for name in ("settings", "strategy", "plan"):
        if not isinstance(found.get(name, {}), dict):
            raise ConfigError(f"{path}: {name} is {found[name]!r}, expected fields with values")
    return FederateOptions(**found), None if sites is None else tuple(map(str, sites))


def run_folder(data: Sequence[Path], options: FederateOptions, out: Path | None = None) -> Path:
    """Return the run's folder: in the workspace of one data set, or in `out` for several folders."""
    name = named(options.name or f"federated-{options.method}")
    if len(data) == 1:
        return workspace_of(data[0], out) / "runs" / name
    return (out or Path()) / name


def sites_of(
    data: Sequence[Path],
    folder: Path,
    options: FederateOptions,
    *,
    sites: str | None = None,
    say: Say = quiet,
) -> dict[str, Site]:
    """Return the sites on this machine by name: one per folder, or parts of one data set.

    Args:
        data: folders of data, each a site named as its folder; or one folder that `sites` divides.
        folder: the run's, under which the sites write, each in `sites/<name>`.
        options: give the seed of the dealing, and the device.
        sites: of one folder: a number (its patients are dealt out), or None for those its cases name.
        say: takes lines for people.

    Raises:
        ConfigError: one site only, or two of one name.
        DataError: a data set that cannot be divided so.
    """
    from seguro.federated.site import Site

    def made(name: str, source: Path) -> Site:
        return Site(
            name,
            source,
            folder / "sites" / name,
            device=options.device,
            say=lambda line: say(f"{name}: {line}"),
        )

    if len(data) > 1:
        if sites is not None:
            raise ConfigError(f"--sites {sites} divides one data set; here are {len(data)} folders")
        names = [named(d.resolve().name) for d in data]
        if len(set(names)) < len(names):
            raise ConfigError(f"two site folders have one name: {', '.join(sorted(names))}")
        return {name: made(name, Path(d)) for name, d in zip(names, data, strict=True)}
    from seguro.data import manifest as manifests

    workspace = data[0] if is_workspace(data[0]) else folder.parent.parent
    manifest = manifest_of(data[0], workspace)
    parts = _parts(manifest, sites, options.seed)
    for name, cases in parts.items():
        own = manifest.model_copy(update={"cases": cases, "name": name, "splits_sha256": None})
        manifests.save(own, folder / "sites" / name / "check" / manifests.FILE)
    return {name: made(name, folder / "sites" / name) for name in sorted(parts)}


def _parts(manifest: Manifest, sites: str | None, seed: int) -> dict[str, tuple[Case, ...]]:
    """Return the training cases of each site; all scans of a patient are at one site."""
    cases = (*manifest.of("train"), *manifest.of("unlabelled"))
    if sites is None:
        names = sorted({c.site for c in cases})
        if len(names) < 2:
            raise ConfigError(f"{manifest.name} names one site only; say how many to make of it: --sites 4")
        return {n: tuple(c for c in cases if c.site == n) for n in names}
    if not sites.isdigit() or int(sites) < 2:
        raise ConfigError(f"--sites {sites}: expected a number from 2 up")
    n = int(sites)
    labelled = sorted({c.patient for c in cases if c.label is not None})
    others = sorted({c.patient for c in cases} - set(labelled))
    rng = generator(seed, "sites")
    dealt = [str(p) for group in (labelled, others) for p in rng.permutation(np.array(group, dtype=str))]
    if len(dealt) < n:
        raise DataError(f"{manifest.name}: {len(dealt)} patients cannot be dealt to {n} sites")
    site_of = {patient: f"site{i % n + 1}" for i, patient in enumerate(dealt)}
    return {f"site{k + 1}": tuple(c for c in cases if site_of[c.patient] == f"site{k + 1}") for k in range(n)}


def simulate(
    data: Sequence[Path],
    options: FederateOptions,
    *,
    out: Path | None = None,
    sites: str | None = None,
    say: Say = quiet,
) -> Path:
    """Train over sites on this machine and return the run's folder; the same call goes on where it stopped.

    Args:
        data: one folder per site, or one folder to divide.
        options: of the run.
        out: workspace of one data set; folder for the run of several.
        sites: how one folder is divided, see `sites_of`.
        say: takes lines for people.

    Raises:
        DataError: data of a site that cannot be used; over a network the others would wait for it.
    """
    from seguro.federated.simulate import simulate as run

    folder = run_folder(data, options, out)
    found = sites_of(data, folder, options, sites=sites, say=say)
    settled = federation(options, list(found))
    with locked(folder):
        for site in found.values():
            site.manifest()
        run(settled, found, folder, processes=options.processes, save_every_s=options.save_every_s, say=say)
        told(folder, settled, found)
    return folder


def told(folder: Path, settled: Federation, sites: Mapping[str, Site]) -> None:
    """Write what other commands read of a run: its options, and the cases that were held out anywhere."""
    facts = settled.model_dump(mode="json")
    write_text(folder / "config.yaml", yaml.safe_dump(facts, sort_keys=False))
    split = [site.cases() for site in sites.values()]
    sides = {
        "train": sorted(c.id for train, _ in split for c in train),
        "validation": sorted(c.id for _, held_out in split for c in held_out),
    }
    write_json(folder / "cases.json", sides)


def foretell(
    data: Sequence[Path],
    options: FederateOptions,
    *,
    out: Path | None = None,
    sites: str | None = None,
    say: Say = quiet,
) -> Foretold:
    """Check every site's data, make the plan, time a few updates; what is written is removed again.

    Raises:
        DataError: a site whose data cannot be used, or sites that do not fit together.
    """
    import tempfile

    from seguro.federated.cost import foretold

    with tempfile.TemporaryDirectory() as temporary:
        name = named(options.name or f"federated-{options.method}")
        found = sites_of(data, Path(temporary) / "runs" / name, options, sites=sites, say=say)
        facts = {name: site.facts() for name, site in found.items()}
        return foretold(federation(options, list(found)), facts, found, Path(temporary) / "store")


def foretell_here(path: Path, site: Site) -> Foretold:
    """Return what the run in a server's file would take at one site, as if it was alone.

    Args:
        path: YAML file of the federation.
        site: with its data and its device.

    Raises:
        ConfigError: the file names other sites only.
    """
    import tempfile

    from seguro.federated.cost import foretold

    options, names = options_in(path)
    if names is not None and site.name not in names:
        raise ConfigError(f"{path}: its sites are {', '.join(names)}; {site.name} is not among them")
    if names is None:  # how many there are is not known here, and what counts them does nothing to one site
        trimmed = options.strategy.get("aggregate") == "trimmed"
        counted = {"quorum", "trim"} | ({"aggregate"} if trimmed else set())
        options = replace(options, strategy={k: v for k, v in options.strategy.items() if k not in counted})
    with tempfile.TemporaryDirectory() as temporary:
        settled = federation(options, names or [site.name])
        return foretold(settled, {site.name: site.facts()}, {site.name: site}, Path(temporary))


def foretell_from(settled: Federation, files: Mapping[str, Path]) -> Foretold:
    """Return what a run would take, by the facts that its sites have sent; the hours are not among it.

    Args:
        settled: the run.
        files: `federated/facts.json` out of the workspaces of sites, by site.

    Raises:
        ConfigError: a site that is not of the run.
        DataError: a file that holds no facts, or sites that do not fit together.
    """
    from seguro.federated.cost import foretold
    from seguro.federated.facts import checked

    if strangers := sorted(set(files) - set(settled.sites)):
        raise ConfigError(f"facts of {', '.join(strangers)}; the run's sites are {', '.join(settled.sites)}")
    facts = {site: checked(site, read_json(path)) for site, path in sorted(files.items())}
    return foretold(settled, facts, {}, Path())


__all__ = [
    "FederateOptions",
    "federation",
    "foretell",
    "foretell_from",
    "foretell_here",
    "options_in",
    "run_folder",
    "simulate",
    "sites_of",
    "told",
]
