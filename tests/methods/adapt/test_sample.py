"""Who is source and who is target, and what each slot shows."""

from __future__ import annotations

import numpy as np
import pytest

from seguro.core.errors import ConfigError
from seguro.core.types import IGNORE
from seguro.data.sampling import middle_slice
from seguro.methods.painter import SOURCE, TARGET, sides
from seguro.methods.streams import NO_AUGMENT


def names(sites, indices):
    return {sites.cases.facts[i].site for i in indices}


def who(sites, config):
    return sides([c.site for c in sites.cases.facts], sites.cases.labelled, config)


@pytest.mark.parametrize(
    ("source", "target", "found"),
    [
        pytest.param("site1", "site2", ({"site1"}, {"site2"}), id="both"),
        pytest.param("site1", None, ({"site1"}, {"site2", "site3"}), id="source"),
        pytest.param(None, "site3", ({"site1"}, {"site3"}), id="target"),
        pytest.param(None, None, ({"site1", "site3"}, {"site2", "site3"}), id="labels"),
    ],
)
def test_sites_or_labels_say_who_is_who(sites, source, target, found):
    config = sites.config(domains=("site1", "site2"), source=None, target=None)
    config = config.model_copy(update={"source": source, "target": target})
    ours, theirs = who(sites, config)
    assert (names(sites, ours), names(sites, theirs)) == found
    assert set(ours) <= set(sites.cases.labelled) and not set(ours) & set(theirs)


def test_slots_alternate_and_hidden_labels_stay_hidden(sites, drawn):
    method = sites.method()
    for slot in range(6):
        sample = drawn(method, slot)
        assert sample.domain == (TARGET if slot % 2 else SOURCE)
        assert sample.image.shape == (1, 32, 32) and np.abs(sample.image).max() <= 1
        shown = (sample.label != IGNORE).any()
        assert shown == (slot % 2 == 0) and sample.annotated.any() == shown


def test_every_second_target_slot_shows_the_few_labels(sites, drawn):
    method = sites.method(target="site3")
    shown = [bool((drawn(method, slot, seed).label != IGNORE).any()) for seed in range(3) for slot in (1, 3)]
    assert shown == [True, False] * 3


def test_only_the_middle_slice_of_the_target_shows_its_label(sites, drawn):
    method = sites.method(target="site3", target_slices="middle")
    case = next(sites.cases[i] for i in sites.cases.labelled if sites.cases.facts[i].site == "site3")
    axis = method.frame.axis
    expected = method.frame.middle(case, middle_slice(case, axis))[0]
    seen = {drawn(method, 1, seed).image.tobytes() for seed in range(8)}
    assert seen == {expected.tobytes()}
    all_slices = sites.method(target="site3")
    assert len({drawn(all_slices, 1, seed).image.tobytes() for seed in range(8)}) > 1


def test_the_source_stage_draws_nothing_else(sites, drawn):
    method = sites.method(stage="source")
    assert {int(drawn(method, slot).domain) for slot in range(4)} == {SOURCE}


def test_without_a_source_or_a_target_it_says_what_there_is(sites):
    with pytest.raises(ConfigError, match=r"no labelled case of the source.*site1, site2, site3"):
        who(sites, sites.config(source="site2", target="site1"))
    with pytest.raises(ConfigError, match="no case of the target"):
        who(sites, sites.config(domains=(), target="elsewhere"))


def test_a_view_is_the_image_in_other_intensities(sites, drawn):
    view = NO_AUGMENT.model_copy(update={"p_curve": 1.0, "falling": 1.0})
    for slot in range(2):
        plain, seen = (drawn(sites.method(view=v.model_dump()), slot) for v in (NO_AUGMENT, view))
        assert np.array_equal(plain.view, plain.image)
        assert np.array_equal(seen.image, plain.image) and np.array_equal(seen.label, plain.label)
        assert np.corrcoef(seen.view.ravel(), seen.image.ravel())[0, 1] < -0.2  # dark for bright
