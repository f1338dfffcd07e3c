"""What an attack may do: a largest change per sample and channel (L-infinity), in a box of valid values."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from seguro.core.errors import ConfigError, RunError
from seguro.data.plan import Plan

SLACK = 1e-6
"""Rounding by which a change may exceed epsilon, as a fraction of the box; at least that of the values."""
_TEXT = re.compile(r"^(?P<value>\d+(\.\d*)?([eE][-+]?\d+)?)\s*(?P<unit>/255|range|%|hu|sd)$", re.IGNORECASE)
UNITS = {"range": "255ths of each channel's range", "hu": "HU", "sd": "standard deviations"}
_FORMS = "8/255 or 3% or 0.03range (of each channel's range), 20HU (CT), 0.1sd (of the scaled image)"

Unit = Literal["range", "hu", "sd"]


@dataclass(frozen=True)
class Epsilon:
    """A largest change with its unit.

    range: fraction of each sample's and channel's own range. hu: Hounsfield units of CT channels. sd: the
    units of the scaled image that the network sees.
    """

    value: float
    unit: Unit

    @property
    def number(self) -> float:
        """The value as it stands in tables: 255ths of the range, Hounsfield units or standard deviations."""
        return round(self.value * 255, 6) if self.unit == "range" else self.value

    def __str__(self) -> str:
        if self.unit == "range":
            return f"{self.value * 255:g}/255"
        return f"{self.value:g}{'HU' if self.unit == 'hu' else 'sd'}"


def parse_epsilon(text: str) -> Epsilon:
    """Return the epsilon that a text like "8/255", "3%", "20HU" or "0.1sd" means.

    Raises:
        ConfigError: no unit, or a negative or unreadable number.

    Example:
        >>> parse_epsilon("8/255").unit, parse_epsilon("20HU")
        ('range', Epsilon(value=20.0, unit='hu'))
    """
    found = _TEXT.match(text.strip())
    if not found:
        raise ConfigError(f"epsilon {text!r} has no unit that is known: write {_FORMS}")
    value, unit = float(found["value"]), found["unit"].lower()
    divide = {"/255": 255.0, "%": 100.0}.get(unit, 1.0)
    kind: Unit = "hu" if unit == "hu" else "sd" if unit == "sd" else "range"
    if kind == "range" and value / divide > 1:
        raise ConfigError(f"epsilon {text!r} exceeds the whole range of the channel; expected at most 1range")
    return Epsilon(value / divide, kind)


def parse_epsilons(text: str) -> tuple[Epsilon, ...]:
    """Return the strengths in a list like "0,5,8,16" (255ths of the range) or "0,10HU,20HU", rising, 0 first.

    Whole numbers are 255ths, as the field writes them; everything else needs its unit.

    Raises:
        ConfigError: no unit, mixed units, or nothing above zero.

    Example:
        >>> [str(e) for e in parse_epsilons("5,16")]
        ['0/255', '5/255', '16/255']
    """
    parts = [p.strip() for p in text.split(",") if p.strip()]
    found = [parse_epsilon(f"{p}/255" if re.fullmatch(r"\d+", p) else p) for p in parts]
    units = {e.unit for e in found if e.value > 0}
    if len(units) != 1:
        told = "nothing above zero" if not units else f"several units ({', '.join(sorted(units))})"
        raise ConfigError(f"--eps {text!r}: {told}; write one list such as 0,5,8,16 or 0,10HU,20HU")
    unit = units.pop()
    return tuple(Epsilon(v, unit) for v in sorted({0.0, *(e.value for e in found)}))


@dataclass(frozen=True)
class Threat:
    """The L-infinity ball and the box of N samples.

    eps, low, high: (N, C) in the units of the image that the model sees.
    """

    eps: Tensor
    low: Tensor
    high: Tensor

    def spread(self, v: Tensor, like: Tensor) -> Tensor:
        """Return v (N, C) shaped so that it broadcasts over `like` (N, C, *size)."""
        return v.to(like).reshape(*v.shape, *[1] * (like.ndim - 2))

    def project(self, adversarial: Tensor, x: Tensor) -> Tensor:
        """Return `adversarial` (N, C, *size) moved into the ball around x and into the box."""
        eps, low, high = (self.spread(v, x) for v in (self.eps, self.low, self.high))
        return torch.minimum(
            torch.maximum(adversarial, torch.maximum(x - eps, low)), torch.minimum(x + eps, high)
        )

    def scaled(self, factor: float | Tensor) -> Threat:
        """Return the threat with epsilon times `factor`, a number or (N,)."""
        f = factor[:, None] if isinstance(factor, Tensor) else factor
        return replace(self, eps=self.eps * f)

    def select(self, index: Tensor) -> Threat:
        """Return the threat of the samples in `index`."""
        return Threat(self.eps[index], self.low[index], self.high[index])

    def check(self, x: Tensor) -> None:
        """Refuse images that lie outside the box or whose epsilon makes no sense.

        Raises:
            ConfigError: names the first sample and channel.
        """
        if self.eps.shape != x.shape[:2] or self.low.shape != x.shape[:2] or self.high.shape != x.shape[:2]:
            raise ConfigError(
                f"epsilon and box need shape {tuple(x.shape[:2])}, found {tuple(self.eps.shape)}"
            )
        if not bool(torch.isfinite(self.eps).all()) or bool((self.eps < 0).any()):
            raise ConfigError("epsilon must be a finite number, zero or more")
        flat = x.flatten(2)
        low, high = flat.min(2).values, flat.max(2).values
        slack = SLACK * (self.high - self.low).clamp(min=1e-12)
        outside = (low < self.low.to(x) - slack.to(x)) | (high > self.high.to(x) + slack.to(x)) | (low != low)
        if bool(outside.any()):
            n, c = (int(v) for v in outside.nonzero()[0])
            raise ConfigError(
                f"sample {n}, channel {c}: values from {float(low[n, c]):.4g} to {float(high[n, c]):.4g} lie "
                f"outside the box {float(self.low[n, c]):.4g} to {float(self.high[n, c]):.4g}; give the box "
                "of the image as the model sees it"
            )

    def verify(self, adversarial: Tensor, x: Tensor) -> None:
        """Assert that an attack kept to the ball and the box.

        Raises:
            RunError: it did not; a fault of the attack, never of the data.
        """
        width = self.spread((self.high - self.low).clamp(min=1e-12), x)
        eps, low, high = (self.spread(v, x) for v in (self.eps, self.low, self.high))
        # images far from zero are coarser than their range: x + eps is rounded to the next number there is
        rounding = 2 * torch.finfo(x.dtype).eps * torch.maximum(low.abs(), high.abs())
        change = ((adversarial - x).abs() - eps - rounding) / width
        beyond = torch.maximum(low - adversarial, adversarial - high) / width
        worst = float(torch.maximum(change, beyond).max())
        if not worst <= SLACK:  # also NaN
            raise RunError(
                f"an attack left its ball or box by {worst:.3g} of the range; expected at most {SLACK}"
            )


def range_box(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest value (N, C) of each sample and channel of x (N, C, *size)."""
    flat = x.flatten(2)
    return flat.min(2).values, flat.max(2).values


def refuse_other_units(epsilon: Epsilon, plan: Plan, *, box: Literal["own", "window"] = "own") -> None:
    """Refuse an epsilon or a box that the channels of `plan` do not have; needs no image.

    Raises:
        ConfigError: Hounsfield units or a window where a channel is not CT.
    """
    for channel in plan.channels:
        if box == "window" and (channel.low is None or channel.high is None):
            raise ConfigError(
                f"channel {channel.name} is scaled case by case and has no fixed window; use --box own"
            )
        if epsilon.unit == "hu" and channel.scheme != "ct":
            raise ConfigError(
                f"epsilon {epsilon}: channel {channel.name} is not in Hounsfield units; write 8/255 or 3%"
            )


def threat_of(x: Tensor, epsilon: Epsilon, plan: Plan, *, box: Literal["own", "window"] = "own") -> Threat:
    """Return the threat to images in the planned grid.

    Args:
        x: (N, C, *size) as the model sees them.
        epsilon: with its unit.
        plan: how the channels were scaled.
        box: "own": each sample's and channel's lowest to highest value. "window": the plan's clipping window,
            the same for every case; only where all channels have one (CT).

    Raises:
        ConfigError: Hounsfield units or a window where a channel is not CT.
    """
    refuse_other_units(epsilon, plan, box=box)
    low, high = range_box(x)
    if box == "window":
        low = x.new_tensor([[((c.low or 0) - c.mean) / c.sd for c in plan.channels]]).expand_as(low).clone()
        high = (
            x.new_tensor([[((c.high or 0) - c.mean) / c.sd for c in plan.channels]]).expand_as(high).clone()
        )
        low, high = (
            torch.minimum(low, range_box(x)[0]),
            torch.maximum(high, range_box(x)[1]),
        )  # resampling rings
    if epsilon.unit == "range":
        eps = (high - low) * epsilon.value
    elif epsilon.unit == "sd":
        eps = torch.full_like(low, epsilon.value)
    else:
        eps = low.new_tensor([[epsilon.value / c.sd for c in plan.channels]]).expand_as(low).clone()
    return Threat(eps, low, high)
