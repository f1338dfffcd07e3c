"""One plan for all sites: near the plan of the pooled data, from counts and quantiles alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from seguro import api
from seguro.core.errors import ConfigError, DataError
from seguro.core.types import Classes
from seguro.data import phantom
from seguro.data.planner import PlanOptions
from seguro.data.preprocess import encode_label
from seguro.federated.facts import KEYS, at, checked
from seguro.federated.message import Refusal
from seguro.federated.plan import at_site, merged, merged_classes, plan_hash
from seguro.federated.site import Site
from seguro.networks.unet import training_bytes

OPTIONS = PlanOptions(memory_gib=0.01, batch=2)


def classes(*names, values=None, **more) -> Classes:
    names = ("background", *names)
    return Classes(names=names, values=values or tuple((i,) for i in range(len(names))), **more)


@pytest.fixture(scope="module")
def facts(folders, workspaces):
    return {n: Site(n, folders[n], workspaces[n]).facts() for n in folders}


def test_sites_with_the_same_kind_of_cases_get_the_plan_of_the_pooled_ones(tmp_path):
    pooled = phantom.write_msd(tmp_path / "all", n_labelled=6, n_test=0, seed=1)
    _, manifest, wanted = api.plan(pooled, out=tmp_path / "w", options=OPTIONS)
    told = {}
    for k in range(2):
        part = manifest.model_copy(update={"cases": manifest.cases[k::2]})
        from seguro.data.fingerprint import measure_all
        from seguro.federated.facts import facts_of

        told[f"site{k}"] = facts_of(part, measure_all(part, part.of("train")))
    plan = merged(wanted.name, told, OPTIONS, training_bytes)
    same = (
        "dims",
        "spacing",
        "unit",
        "classes",
        "patch",
        "strides",
        "kernels",
        "batch",
        "mirror",
        "slice_axis",
    )
    assert {k: getattr(plan, k) for k in same} == {k: getattr(wanted, k) for k in same}
    assert plan.fingerprint.n_cases == 6 and plan.fingerprint.present == wanted.fingerprint.present
    assert plan.folds == ()


def test_ct_is_clipped_about_as_for_the_pooled_data():
    levels = [-90.0, -80.0, -20.0, 20.0, 50.0, 80.0, 120.0, 190.0, 200.0]
    from seguro.federated.facts import VOXEL_LEVELS

    stand_ins = at(levels, 1000, of=VOXEL_LEVELS)
    assert np.percentile(stand_ins, VOXEL_LEVELS) == pytest.approx(levels, abs=1.0)


def test_the_order_of_sites_does_not_matter(facts):
    hashes = {
        plan_hash(merged("r", {n: facts[n] for n in order}, OPTIONS, training_bytes))
        for order in ("abc", "cba")
    }
    assert len(hashes) == 1


def test_one_site_with_one_case_is_enough(tmp_path):
    one = Site("one", phantom.write_msd(tmp_path / "one", n_labelled=1, n_test=0), tmp_path / "w")
    plan = merged("r", {"one": one.facts()}, OPTIONS, training_bytes)
    assert plan.fingerprint.n_cases == 1
    train, validation = one.cases()
    assert len(train) == len(validation) == 1


def test_a_site_without_labels_counts_and_gets_the_others_classes(facts, tmp_path):
    from seguro.data import manifest as manifests

    source = Site("u", phantom.write_msd(tmp_path / "u", n_labelled=2, n_test=0), tmp_path / "w")
    cases = [
        c.model_copy(update={"label": None, "annotated": (), "split": "unlabelled"})
        for c in source.manifest().cases
    ]
    bare = source.manifest().model_copy(update={"cases": tuple(cases), "classes": None})
    manifests.save(bare, tmp_path / "bare" / "check" / "manifest.json")
    site = Site("u", tmp_path / "bare", tmp_path / "bare")
    plan = merged("r", {"a": facts["a"], "u": site.facts()}, OPTIONS, training_bytes)
    assert plan.classes.foreground == ("organ1", "organ2")
    assert (plan.fingerprint.n_cases, plan.fingerprint.n_labelled) == (5, 3)
    assert at_site(plan, site.manifest()) == plan


def test_facts_are_the_listed_keys_and_name_no_case(facts, folders, workspaces):
    for name, told in facts.items():
        assert set(told) == set(KEYS)
        text = json.dumps(told)
        site = Site(name, folders[name], workspaces[name])
        secrets = [str(folders[name]), *(c.id for c in site.manifest().cases)]
        secrets += [c.patient for c in site.manifest().cases]
        secrets += [f.path for c in site.manifest().cases for f in c.images]
        assert not [s for s in secrets if s in text]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"patients": ["Doe"]}, "patients"),
        ({"n_cases": 0}, "another form"),
        ({"n_cases": "many"}, "another form"),
        ({"spacing": [[1.0]]}, "another form"),
        ({"lowest": []}, "another form"),
        ({"spacing": [[0.0] * 7] * 3}, "not a positive number"),
        ({"extent": [[float("nan")] * 7] * 3}, "not a positive number"),
    ],
    ids=["further", "no-case", "text", "short", "no-channel", "zero", "nan"],
)
def test_facts_that_cannot_be_are_refused_and_the_site_named(facts, change, word):
    with pytest.raises(DataError, match=f"site north.*{word}"):
        checked("north", {**facts["a"], **change})


@pytest.mark.parametrize("key", ["channels", "unit"])
def test_other_channels_and_units_are_refused(facts, key):
    other = {**facts["b"], key: ["CT"] if key == "channels" else "px"}
    with pytest.raises(DataError, match=f"site b has {key}"):
        merged("r", {"a": facts["a"], "b": other}, OPTIONS, training_bytes)


def test_a_recipe_that_measures_voxels_is_refused(facts):
    with pytest.raises(ConfigError, match="rog"):
        merged("r", facts, PlanOptions(recipe="rog"), training_bytes)


def test_classes_are_joined_by_name():
    found = {
        "a": classes("liver", "spleen", pairs=()),
        "b": classes("spleen", "kidney", values=((0,), (7,), (9,))),
        "c": None,
    }
    joined = merged_classes(found)
    assert joined is not None and joined.foreground == ("liver", "spleen", "kidney")
    assert joined.values == ((0,), (1,), (2,), (3,))
    assert merged_classes({"c": None}) is None


def test_regions_must_be_the_same_everywhere():
    regions = Classes(names=("whole", "core"), values=((1, 2), (2,)), regions=True, paint=(1, 2))
    other = Classes(names=("whole", "core"), values=((1, 3), (3,)), regions=True, paint=(1, 3))
    assert merged_classes({"a": regions, "b": regions}) == regions
    for pair in ((regions, other), (regions, classes("whole"))):
        with pytest.raises(DataError, match="a and b"):
            merged_classes(dict(zip("ab", pair, strict=True)))


def test_a_site_keeps_its_own_label_values_and_the_names_of_all(facts, folders, workspaces):
    plan = merged("r", facts, OPTIONS, training_bytes)
    manifest = Site("a", folders["a"], workspaces["a"]).manifest()
    own = manifest.model_copy(update={"classes": classes("organ2", values=((0,), (5,)))})
    here = at_site(plan, own)
    assert here.classes.names == plan.classes.names
    stored = encode_label(np.array([[[0, 5]]]), here.classes)
    assert stored.tolist() == [[[0, here.classes.names.index("organ2")]]]
    with pytest.raises(DataError):
        encode_label(np.array([[[1]]]), here.classes)  # organ1 has no value in these files


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"channels": ("CT",)}, "channels"),
        ({"classes": classes("organ1", "tumor")}, "tumor"),
        ({"classes": Classes(names=("organ1",), values=((1,),), regions=True, paint=(1,))}, "regions"),
    ],
    ids=["channels", "class", "regions"],
)
def test_a_site_refuses_a_plan_that_is_not_of_its_data(facts, folders, workspaces, change, word):
    plan = merged("r", facts, OPTIONS, training_bytes)
    manifest = Site("a", folders["a"], workspaces["a"]).manifest().model_copy(update=change)
    with pytest.raises(Refusal, match=word):
        at_site(plan, manifest)
