"""Coded changes: closed forms, error feedback loses nothing, and what is malformed is refused."""

import zlib

import numpy as np
import pytest

from seguro.core.errors import ConfigError, DataError, RunError
from seguro.federated import compression
from seguro.federated.compression import CODECS, decode, encode, largest_bytes
from seguro.federated.message import payload_bytes


def model(seed: int = 0, scale: float = 0.01) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "conv.weight": (scale * rng.standard_normal((16, 8, 3, 3, 3))).astype(np.float32),
        "conv.bias": (scale * rng.standard_normal(16)).astype(np.float32),
        "norm.count": np.array(7, np.int64),
        "augment.p": np.array(scale * rng.standard_normal(), np.float32),
    }


def test_eight_bits_are_multiples_of_the_largest_change():
    step = {"a": np.array([-1.27, 0.004, 0.006, 0.5], np.float32)}
    coded = encode(step, "int8")
    np.testing.assert_allclose(decode(coded.arrays, "int8", step)["a"], [-1.27, 0.0, 0.01, 0.5], atol=1e-6)
    np.testing.assert_allclose(coded.residual["a"], [0.0, 0.004, -0.004, 0.0], atol=1e-6)


@pytest.mark.parametrize("coding", CODECS)
def test_decoding_gives_names_shapes_and_dtypes_of_the_model(coding):
    step = model()
    back = decode(encode(step, coding).arrays, coding, step)
    assert {k: (v.shape, v.dtype) for k, v in back.items()} == {
        k: (v.shape, v.dtype) for k, v in step.items()
    }
    assert back["norm.count"] == 7  # a counter is exact


@pytest.mark.parametrize("coding", CODECS)
def test_what_arrives_and_what_is_kept_are_the_change(coding):
    step = model(1)
    coded = encode(step, coding)
    back = decode(coded.arrays, coding, step)
    for name, lost in coded.residual.items():
        np.testing.assert_array_equal(back[name] + lost, step[name])
    again = encode(step, coding, coded.residual)
    for array in (*again.arrays.values(), *again.residual.values()):
        assert isinstance(array, np.ndarray)  # also of shape (), which arithmetic turns into a scalar


@pytest.mark.parametrize("coding", CODECS)
def test_error_feedback_delivers_small_changes_in_the_end(coding):
    small = {"a": np.array([1.0, 3e-4, -2e-5], np.float32)}
    arrived, plain, residual = np.zeros(3), np.zeros(3), None
    for _ in range(1000):
        coded = encode(small, coding, residual)
        residual = coded.residual
        arrived += decode(coded.arrays, coding, small)["a"]
        plain += decode(encode(small, coding).arrays, coding, small)["a"]
    error = np.abs(arrived - 1000 * small["a"].astype(np.float64))
    # what has not arrived is one round's rounding, however many rounds there were
    assert (error <= (1.0 if coding == "fp16" else 1.01) / 127 / 2).all()
    if coding == "int8":
        assert plain[1] == 0 and plain[2] == 0  # without feedback they never arrive


def test_bytes_fall_to_a_half_and_below_a_quarter():
    step = model(4)
    plain = payload_bytes(step)
    for coding, share in (("fp16", 0.502), ("int8", 0.25)):
        sent = payload_bytes(encode(step, coding).arrays)
        assert sent <= share * plain
        assert sent <= largest_bytes(step, coding)
    assert largest_bytes(step, "none") == plain


def test_the_bound_on_bytes_holds_for_what_does_not_deflate():
    rng = np.random.default_rng(0)
    step = {"a": rng.uniform(-1, 1, 40_000).astype(np.float32)}
    assert payload_bytes(encode(step, "int8").arrays) <= largest_bytes(step, "int8")


def test_nothing_is_coded_as_nothing():
    step = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((0, 3), np.float32)}
    for coding in CODECS:
        back = decode(encode(step, coding).arrays, coding, step)
        assert not back["a"].any() and back["b"].shape == (0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_change_that_is_not_finite_is_refused_by_name(bad):
    with pytest.raises(RunError, match=r"array w: .*not finite"):
        encode({"w": np.array([bad], np.float32)}, "int8")


def test_a_change_beyond_float16_is_refused():
    with pytest.raises(RunError, match="float16"):
        encode({"w": np.array([1e6], np.float32)}, "fp16")


def test_unknown_codings_are_refused():
    for call in (lambda: encode({}, "zip"), lambda: decode({}, "zip", {}), lambda: largest_bytes({}, "zip")):
        with pytest.raises(ConfigError, match="fp16, int8"):
            call()


def bomb(n: int) -> np.ndarray:
    return np.frombuffer(np.float32(1).tobytes() + zlib.compress(bytes(n)), np.uint8)


@pytest.mark.parametrize(
    ("coding", "value"),
    [
        ("fp16", np.zeros((2, 2), np.float16)),
        ("fp16", np.zeros(3, np.float32)),
        ("int8", np.zeros(3, np.float32)),
        ("int8", np.zeros(2, np.uint8)),
        ("int8", np.frombuffer(b"\0\0\0\0garbage", np.uint8)),
        ("int8", bomb(2)),
        ("int8", bomb(1 << 20)),
        ("int8", np.frombuffer(np.float32(np.inf).tobytes() + zlib.compress(bytes(3)), np.uint8)),
        ("none", np.zeros(4, np.float32)),
    ],
    ids=["shape", "dtype", "not bytes", "short", "damaged", "few", "bomb", "step", "plain shape"],
)
def test_malformed_arrays_are_refused_by_name(coding, value):
    with pytest.raises(DataError, match="array w"):
        decode({"w": value}, coding, {"w": np.zeros(3, np.float32)})


def test_a_bomb_is_not_inflated(monkeypatch):
    asked = []
    real = zlib.decompressobj

    class Counting:
        def __init__(self):
            self.inner = real()

        def decompress(self, data, limit):
            asked.append(limit)
            return self.inner.decompress(data, limit)

        @property
        def eof(self):
            return self.inner.eof

    monkeypatch.setattr(compression.zlib, "decompressobj", Counting)
    with pytest.raises(DataError):
        decode({"w": bomb(1 << 24)}, "int8", {"w": np.zeros(3, np.float32)})
    assert asked == [4]


def test_other_names_are_refused():
    like = {"w": np.zeros(3, np.float32)}
    with pytest.raises(DataError, match="extra"):
        decode({"w": np.zeros(3, np.float16), "extra": np.zeros(3, np.float16)}, "fp16", like)
