"""Two streams: the slot decides which, a labelled sample is the supervised one, an unlabelled has none."""

from __future__ import annotations

import numpy as np
import pytest

from seguro import api
from seguro.core.seeds import generator
from seguro.core.types import IGNORE
from seguro.data.augment import Augment
from seguro.data.planner import PlanOptions
from seguro.data.store import Cases, prepare
from seguro.methods.patches import labelled_patch
from seguro.methods.streams import NO_AUGMENT, is_labelled, two_stream


@pytest.fixture(scope="module")
def data(phantom_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("streams")
    workspace, manifest, plan = api.plan(phantom_folder, out=out, options=PlanOptions(memory_gib=0.02))
    cases = (*manifest.of("train"), *manifest.of("unlabelled"))
    return Cases(prepare(workspace, manifest, plan), cases, plan.classes), plan


@pytest.mark.parametrize(
    ("share", "pattern"), [(0.5, "10101010"), (1.0, "11111111"), (0.25, "10001000"), (0.75, "11101110")]
)
def test_the_slot_alone_says_which_stream(share, pattern):
    assert "".join(str(int(is_labelled(slot, share))) for slot in range(8)) == pattern


def test_a_labelled_sample_is_the_supervised_patch(data):
    cases, plan = data
    augment = Augment(p_spatial=0.5, p_noise=0.5, p_blur=0.5, p_intensity=0.5)
    for key in range(4):
        rng = generator(key, "draw")
        case = cases[int(rng.choice(cases.labelled))]
        wanted = labelled_patch(case, plan, augment, rng, p_foreground=0.5)
        got = two_stream(cases, 0, generator(key, "draw"), plan, augment, p_foreground=0.5)
        np.testing.assert_array_equal(got.image, wanted.image)
        np.testing.assert_array_equal(got.label, wanted.label)
        assert got.labelled == 1 and got.views.shape == (0, *got.image.shape)


def test_an_unlabelled_sample_has_no_label_and_views_of_the_same_geometry(data):
    cases, plan = data
    turned = NO_AUGMENT.model_copy(update={"p_spatial": 1.0, "mirror": True})
    strong = NO_AUGMENT.model_copy(update={"p_intensity": 1.0})
    for key in range(4):
        sample = two_stream(
            cases, 1, generator(key, "draw"), plan, turned, p_foreground=1.0, views=2, strong=strong
        )
        assert sample.labelled == 0 and (sample.label == IGNORE).all() and not sample.annotated.any()
        one, two = sample.views
        assert not np.array_equal(one, two) and not np.array_equal(one, sample.image)
        order = np.argsort(sample.image, axis=None, kind="stable")
        for view in (one, two):  # brightness, contrast and gamma keep the order of the intensities
            assert (np.diff(view.ravel()[order]) >= -1e-4).all()
    drawn = {two_stream(cases, 1, generator(k), plan, turned, p_foreground=0).image.tobytes() for k in (0, 1)}
    assert len(drawn) == 2


def test_views_without_intensity_are_the_image(data):
    cases, plan = data
    sample = two_stream(cases, 1, generator(0), plan, NO_AUGMENT, p_foreground=0.0, views=3)
    np.testing.assert_array_equal(sample.views, np.broadcast_to(sample.image, sample.views.shape))


def test_without_unlabelled_cases_every_slot_is_labelled(data):
    cases, plan = data
    only = Cases(cases.folder, [cases._cases[i] for i in cases.labelled], plan.classes)
    assert two_stream(only, 1, generator(0), plan, NO_AUGMENT, p_foreground=0.0).labelled == 1


def test_unlabelled_slots_read_unlabelled_cases_only(data):
    cases, plan = data
    view = cases.view()
    for slot in range(1, 20, 2):
        two_stream(view, slot, generator(slot), plan, NO_AUGMENT, p_foreground=1.0)
    assert set(view.touched) <= {cases._cases[i].id for i in cases.unlabelled}


def test_without_labelled_cases_no_slot_is_labelled(data):
    cases, plan = data
    bare = Cases(cases.folder, cases.facts, plan.classes, hide_labels=True)
    for slot in range(4):
        got = two_stream(bare, slot, generator(0, "draw"), plan, NO_AUGMENT, p_foreground=1.0)
        assert got.labelled == 0 and (got.label == IGNORE).all()
