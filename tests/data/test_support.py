"""The support artefact: content names it, nothing is overwritten, undo is the entry before."""

import json

import numpy as np
import pytest

from seguro.core.errors import ConfigError, DataError
from seguro.core.types import IGNORE, Classes, Grid
from seguro.data import support

CLASSES = Classes(names=("background", "organ"), values=((0,), (1,)))


def shot(seed: int = 0, annotated=(0, 1, 2, 3)) -> support.Shot:
    rng = np.random.default_rng(seed)
    label = np.full((4, 5, 6), IGNORE, np.uint8)
    label[list(annotated)] = rng.integers(0, 2, (len(annotated), 5, 6))
    return support.Shot(rng.normal(size=(1, 4, 5, 6)).astype(np.float32), label, Grid((4, 5, 6), np.eye(4)))


def test_what_is_added_comes_back(tmp_path):
    one = shot()
    key = support.add(tmp_path, one, CLASSES)
    bank = support.load(tmp_path, key)
    np.testing.assert_array_equal(bank.shots[0].image, one.image)
    np.testing.assert_array_equal(bank.shots[0].label, one.label)
    assert (bank.hash, bank.parent, bank.classes) == (key, None, CLASSES)
    assert bank.shots[0].grid.shape == (4, 5, 6)


def test_the_name_is_the_content(tmp_path):
    keys = {support.add(tmp_path / str(i), shot(), CLASSES) for i in range(2)}
    assert len(keys) == 1
    other = CLASSES.model_copy(update={"names": ("background", "other")})
    keys |= {support.add(tmp_path, shot(1), CLASSES), support.add(tmp_path, shot(), other)}
    keys.add(support.add(tmp_path, shot(), CLASSES, parent=support.add(tmp_path, shot(1), CLASSES)))
    assert len(keys) == 4


def test_undo_is_exact_and_nothing_is_overwritten(tmp_path):
    first = support.add(tmp_path, shot(annotated=(1,)), CLASSES)
    before = {p: p.read_bytes() for p in (tmp_path / "support").rglob("*.*")}
    second = support.add(tmp_path, shot(1), CLASSES, parent=first)
    bank = support.load(tmp_path, second)
    assert (bank.chain, bank.parent, len(bank.shots)) == ((first, second), first, 2)
    assert all(p.read_bytes() == data for p, data in before.items())
    np.testing.assert_array_equal(support.load(tmp_path, first).shots[0].label, shot(annotated=(1,)).label)


def test_annotations_of_one_image_are_joined_the_later_over_the_earlier(tmp_path):
    base = shot()
    parts = []
    for slices, value in (((0, 1), 0), ((1, 3), 1)):
        label = np.full((4, 5, 6), IGNORE, np.uint8)
        label[list(slices)] = value
        parts.append(support.Shot(base.image, label, base.grid))
    first = support.add(tmp_path, parts[0], CLASSES)
    bank = support.load(tmp_path, support.add(tmp_path, parts[1], CLASSES, parent=first))
    assert len(bank.shots) == 1
    assert [int(bank.shots[0].label[z, 0, 0]) for z in range(4)] == [0, 1, IGNORE, 1]
    assert support.annotated_slices(bank.shots[0].label, 0) == [0, 1, 3]
    assert len(list((tmp_path / "support" / "images").iterdir())) == 1


def test_in_memory_it_is_the_same(tmp_path):
    shots = [shot(), shot(1), shot(annotated=(2,))]
    parent, bank = None, None
    for one in shots:
        parent, before, bank = (
            support.add(tmp_path, one, CLASSES, parent=parent),
            bank,
            support.extended(bank, one, CLASSES),
        )
    stored = support.load(tmp_path, parent)
    assert (bank.hash, bank.chain, bank.parent) == (stored.hash, stored.chain, before.hash)
    for a, b in zip(bank.shots, stored.shots, strict=True):
        np.testing.assert_array_equal(a.label, b.label)
        np.testing.assert_array_equal(a.image, b.image)


def test_other_classes_do_not_join_a_chain(tmp_path):
    first = support.add(tmp_path, shot(), CLASSES)
    other = CLASSES.model_copy(update={"names": ("background", "other")})
    with pytest.raises(ConfigError, match=r"annotates organ, the new example other"):
        support.add(tmp_path, shot(1), other, parent=first)


@pytest.mark.parametrize("file", ["label.npy", "support.json", "image"])
def test_a_changed_file_is_found(tmp_path, file):
    key = support.add(tmp_path, shot(), CLASSES)
    folder = tmp_path / "support"
    if file == "support.json":
        path = folder / key / file
        facts = json.loads(path.read_text())
        facts["classes"]["names"][1] = "liver"
        path.write_text(json.dumps(facts))
    else:
        path = next((folder / "images").iterdir()) if file == "image" else folder / key / file
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with pytest.raises(DataError, match=r"restore it"):
        support.load(tmp_path, key)


def test_find_takes_a_prefix_that_names_one(tmp_path):
    key = support.add(tmp_path, shot(), CLASSES)
    assert support.find(tmp_path, key[:8]) == key
    for prefix in (key[:3], "0" * 64 if key[0] != "0" else "1" * 64):
        with pytest.raises(DataError, match="no support named"):
            support.find(tmp_path, prefix)
