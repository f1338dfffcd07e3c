"""Options as written: times, nested settings, YAML that cannot blow up."""

from __future__ import annotations

import pytest

from seguro.core.errors import ConfigError, DataError
from seguro.core.settings import merge, read_yaml, seconds, settings_from


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", 90),
        ("45m", 2700),
        ("45", 2700),
        ("2h", 7200),
        ("1h30m", 5400),
        ("0.5h", 1800),
        ("1h1m1s", 3661),
    ],
)
def test_times(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "0", "-5m", "1d", "h"])
def test_times_that_are_none(text):
    with pytest.raises(ConfigError, match="budget"):
        seconds(text)


def test_nested_settings_are_read_as_yaml_and_merged():
    found = settings_from(["augment.p_noise=0.2", "augment.mirror=false", "network=unet", "clip=null"])
    assert found == {"augment": {"p_noise": 0.2, "mirror": False}, "network": "unet", "clip": None}
    assert merge({"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}}) == {"a": {"x": 1, "y": 3}, "b": 1}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: &x [1, 2]\nb: [*x, *x]", "aliases"),
        ("- 1\n- 2", "mapping"),
        ("a: [1", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_yaml_that_is_refused(tmp_path, text, word):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=word):
        read_yaml(path)


def test_a_yaml_file_of_absurd_size_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: " + "x" * (2 << 20))
    with pytest.raises(DataError, match="limit"):
        read_yaml(path)
