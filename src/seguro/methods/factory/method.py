"""The data factory (phase 1 of RobustMedSeg): a conditional StyleGAN2 trained on images alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from seguro.core.errors import ConfigError, DataError
from seguro.data.frame import frame_of, z_bin
from seguro.data.plan import Plan
from seguro.data.store import Cases
from seguro.methods.contract import Batch, Build, Needs, Optim, Predictor, Run
from seguro.methods.factory import losses
from seguro.methods.factory.augment import Adaptive
from seguro.methods.factory.config import PRESETS, FactoryConfig
from seguro.methods.generators import generator_of
from seguro.networks.augmentation import apply, draw
from seguro.networks.clip import clip_from
from seguro.networks.descriptor import LENGTH, descriptor
from seguro.networks.discriminator import Discriminator

GIVEN = 0.5
"""Probability that the networks are given an embedding in a turn."""
MADE_BATCH = 16
"""Slices that are made at a time: at 512 pixels the activations of one take about 0.2 GiB."""


@dataclass(frozen=True)
class Slice:
    """One real slice; stacked along a first axis it is the batch."""

    image: NDArray[np.float32]
    """(C, size, size) in [-1, 1]."""
    domain: NDArray[np.int64]
    """() number of the site."""
    z_bin: NDArray[np.int64]
    """() position along the slice axis."""


@dataclass(frozen=True)
class Asked:
    """What made images are to show."""

    condition: Tensor
    """(N, domains + z_bins)."""
    embedding: Tensor | None
    """(N, length) of their domains' real images; zeros where there are none yet."""

    def every_second(self) -> Asked:
        """Return what every second image is to show."""
        return Asked(self.condition[::2], None if self.embedding is None else self.embedding[::2])


class Factory:
    """Method `factory`: learns to make slices of every site from their images, without any label.

    One update is one turn of the discriminator (even updates) or of the generator (odd ones). A site only
    ever asks for slices of its own domain; the others are learned through the averaged weights.
    """

    Config: ClassVar[type[FactoryConfig]] = FactoryConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    needs: ClassVar[Needs] = Needs(dims=(2,), labels="none", segments=False, monitor=None, group=4)

    def __init__(self, config: FactoryConfig, plan: Plan, build: Build) -> None:
        self.config = config
        self.plan = plan
        self.needs = replace(type(self).needs, group=config.group)  # type: ignore[misc]  # of this run
        c, channels = config, len(plan.channels)
        self.frame = frame_of(plan, c.size, side=c.side, limits=c.limits)
        length = {"none": 0, "descriptor": LENGTH}.get(c.embedding, c.embedding_length)
        generator = generator_of(c, channels, embedding=length)
        judge = Discriminator(
            c.size,
            channels,
            generator.domains,
            c.z_bins,
            c.latent,
            c.width,
            full=c.full,
            embedding=length,
            group=c.group,
        )
        self.modules = nn.ModuleDict({"generator": generator, "discriminator": judge})
        self._adaptive = Adaptive(c.augment_target, c.augment_every, c.augment_images)
        self._path = torch.zeros(())
        """Running mean of the path length."""
        self._embeddings = torch.zeros(generator.domains if length else 0, length + 1)
        """Sum of the embeddings of the real images of each domain that were seen here, and how many."""
        self._embed: Callable[[Tensor], Tensor] = descriptor
        """Unit vectors of images (N, C, size, size)."""

    def optimisers(self) -> dict[str, Optim]:
        """Return one Adam each, its rate and memory shortened for the turns that regularize (appendix B).

        Weights of CLIP, where the config names a file, are read here, as training begins.
        """
        c = self.config
        if c.embedding not in ("none", "descriptor"):
            clip = clip_from(Path(c.embedding)).to(next(self.modules.parameters()).device)
            if clip.length != c.embedding_length:
                raise ConfigError(
                    f"embedding={c.embedding}: it gives {clip.length} numbers and embedding_length is "
                    f"{c.embedding_length}: set embedding_length={clip.length}"
                )
            self._embed = clip
        made: dict[str, Optim] = {}
        for name, module, every, average in (
            ("g", "generator", c.path_every, {"generator": c.average}),
            ("d", "discriminator", c.r1_every, {}),
        ):
            ratio = every / (every + 1)
            parameters = [p for p in self.modules[module].parameters() if p.requires_grad]
            adam = torch.optim.Adam(parameters, c.learning_rate * ratio, betas=(0.0, 0.99**ratio))
            made[name] = Optim(adam, average=average)
        return made

    def draw(self, cases: Cases, slot: int, rng: np.random.Generator) -> Slice:
        """Return one slice of a random case, its site and its position; no label is looked at."""
        index = int(rng.integers(len(cases)))
        case = cases[index]
        image, _, at = self.frame.cut(case, rng)
        where = z_bin(at, case.shape[self.frame.axis], self.config.z_bins)
        site = cases.facts[index].site
        return Slice(image, np.asarray(self.domain(site, case.id)), np.asarray(where))

    def domain(self, site: str, case: str = "") -> int:
        """Return the number of `site`; DataError where it is none of the domains."""
        names = self.config.domains
        if not names:
            return 0
        if site not in names:
            raise DataError(
                f"case {case or '?'} is of site {site!r}, the factory's domains are {', '.join(names)}: "
                "give every site its place with --set domains=[...]"
            )
        return names.index(site)

    def update(self, batch: Batch, run: Run) -> dict[str, Tensor]:
        """Do one turn: of the discriminator at even updates, of the generator at odd ones."""
        turn, player = divmod(run.update, 2)
        generator: Any = self.modules["generator"]
        y = generator.conditions(batch.domain, batch.z_bin)
        if self.config.embedding != "none":
            self._embeddings = self._embeddings.to(y.device)
            if player == 0:
                self._observe(batch, run)
        asked = Asked(y, self._embedding(batch.domain, run))
        if player == 0:
            return self._turn_of_discriminator(batch.image, asked, turn, run)
        return self._turn_of_generator(asked, turn, run)

    def _observe(self, batch: Batch, run: Run) -> None:
        """Take real images into the mean embeddings of their domains, the same on every rank."""
        with torch.no_grad():
            rows = F.pad(self._embed(batch.image), (0, 1), value=1.0)
        new = torch.zeros_like(self._embeddings).index_add_(0, batch.domain, rows)
        self._embeddings = self._embeddings + run.mean(new) * run.world

    def _embedding(self, domain: Tensor, run: Run) -> Tensor | None:
        """Return the mean embedding of each image's domain, in a random half of the turns."""
        if self.config.embedding == "none":
            return None
        rng = run.rng("embedding")
        if float(torch.rand((), generator=rng, device=rng.device)) < GIVEN:
            return F.normalize(self._embeddings[domain, :-1], dim=1)
        return None

    def _turn_of_discriminator(self, image: Tensor, y: Asked, turn: int, run: Run) -> dict[str, Tensor]:
        c = self.config
        logged: dict[str, Tensor] = {}
        regularizes = turn % c.r1_every == 0 and c.r1 > 0
        if regularizes:
            real = image.detach().requires_grad_(True)
            penalty = losses.r1(self._scores(real, y, run, "r1"), real, _gradient(run))
            run.backward(c.r1 * c.r1_every * penalty)
            logged["r1"] = penalty.detach()
        if not regularizes or c.regularize == "beside":
            with torch.no_grad(), run.autocast():
                made = self._made(y, run, run.slots)
            with run.autocast():
                real, false = self._scores(image, y, run, "real"), self._scores(made, y, run, "made")
            loss = losses.tell_apart(real.float(), false.float())
            run.backward(loss)
            logged |= {"loss": loss.detach(), "d": loss.detach(), "sign": real.detach().sign().mean()}
            if c.augment:
                self._adaptive.observe(run.mean(logged["sign"]), len(image) * run.world)
        run.step("d")
        return logged | ({"augment": self._adaptive.p} if c.augment else {})

    def _turn_of_generator(self, y: Asked, turn: int, run: Run) -> dict[str, Tensor]:
        c = self.config
        logged: dict[str, Tensor] = {}
        regularizes = turn % c.path_every == 0 and c.path > 0
        if regularizes:
            lengths = self._path_lengths(y.every_second(), run)  # half of the slots, whatever the ranks
            self._path = losses.followed(
                self._path.to(lengths.device), run.mean(lengths.mean()), c.path_decay
            )
            penalty = losses.path_penalty(lengths, self._path)
            run.backward(c.path * c.path_every * penalty)
            logged |= {"path": penalty.detach(), "path_mean": self._path}
        if not regularizes or c.regularize == "beside":
            with frozen(self.modules["discriminator"]), run.autocast():
                made = self._made(y, run, run.slots)
                loss = losses.deceive(self._scores(made, y, run, "made").float())
            logged |= {"loss": loss.detach(), "g": loss.detach()}
            refines = run.update >= (1 - c.guide_share) * run.updates
            if refines and y.embedding is not None:
                logged["guide"] = guide = losses.angle(self._embed(made), y.embedding)
                loss = loss + c.guide * guide
            run.backward(loss)
        run.step("g")
        return logged

    def _path_lengths(self, y: Asked, run: Run) -> Tensor:
        generator: Any = self.modules["generator"]
        rngs = [run.rng("path", slot) for slot in run.slots[::2]]
        codes = self._codes(y, rngs)
        image = generator.synthesize(codes, rng=rngs)
        noise = torch.stack([torch.randn(image.shape[1:], generator=r, device=image.device) for r in rngs])
        return losses.path_lengths(image, codes, noise, _gradient(run))

    def _made(self, y: Asked, run: Run, slots: Sequence[int]) -> Tensor:
        """Return made images under conditions y, from random numbers of each slot's own."""
        generator: Any = self.modules["generator"]
        rngs = [run.rng("style", slot) for slot in slots]
        made: Tensor = generator.synthesize(self._codes(y, rngs), rng=rngs)
        return made

    def _codes(self, y: Asked, rngs: Sequence[torch.Generator]) -> Tensor:
        """Return codes of random styles, two of them in an image with the probability `mixing`."""
        generator: Any = self.modules["generator"]
        first, second = (self._styles(rngs) for _ in range(2))
        u = torch.stack([torch.rand(2, generator=r, device=r.device) for r in rngs])
        layers = generator.n_latent
        crossover = 1 + (u[:, 1] * (layers - 1)).long()
        crossover = torch.where(u[:, 0] < self.config.mixing, crossover, layers)
        one, two = (generator.codes(z, y.condition, y.embedding) for z in (first, second))
        w: Tensor = generator.mixed(one, two, crossover)
        return w

    def _styles(self, rngs: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([torch.randn(self.config.latent, generator=r, device=r.device) for r in rngs])

    def _scores(self, image: Tensor, y: Asked, run: Run, kind: str) -> Tensor:
        """Return the discriminator's scores of images, augmented where that is on."""
        if self.config.augment:
            rngs = [run.rng("augment", kind, slot) for slot in run.slots]
            image = apply(image, draw(float(self._adaptive.p), rngs, self.config.size))
        scores: Tensor = self.modules["discriminator"](image, y.condition, y.embedding)
        return scores

    def state(self) -> dict[str, Tensor]:
        """Return the mean path length, the state of the augmentation, and the embeddings of the domains."""
        known = {} if self.config.embedding == "none" else {"embeddings": self._embeddings}
        return {"path_mean": self._path, **known, **self._adaptive.state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        if "path_mean" in state:
            self._path = state["path_mean"].clone()
            self._embeddings = state.get("embeddings", self._embeddings).clone()
            self._adaptive.load_state(state)

    def predictor(self, modules: nn.ModuleDict) -> Predictor:
        """It segments nothing."""
        raise DataError("method factory makes images and segments none; train `adapt` from it (--init)")

    def shared(self) -> list[str]:
        """Return the generator, and the discriminator unless it stays."""
        local = self.config.discriminator == "local"
        return [k for k in self.modules.state_dict() if not (local and k.startswith("discriminator."))]

    def deployed(self, modules: nn.ModuleDict) -> nn.ModuleDict:
        """Return the generator: the discriminator saw real slices, and makes none."""
        return nn.ModuleDict({"generator": modules["generator"]})

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of what it can be asked for."""
        return self.config.domains or ("any",)

    @torch.no_grad()
    def made(self, modules: nn.ModuleDict, domain: int, n: int, rng: torch.Generator) -> Tensor:
        """Return n slices (n, C, size, size) in [-1, 1] of a domain, the positions in turn."""
        generator: Any = modules["generator"]
        z = torch.randn(n, self.config.latent, generator=rng, device=rng.device)
        bins = torch.arange(n, device=rng.device) * self.config.z_bins // n
        w = generator.codes(z, generator.conditions(torch.full_like(bins, domain), bins))
        parts = torch.split(generator.spread(w), MADE_BATCH)
        return torch.cat([generator.synthesize(part, rng=rng).clamp(-1, 1) for part in parts])

    def seen(self, cases: Cases, domain: int, most: int) -> NDArray[np.float32]:
        """Return up to `most` real frames (n, C, size, size) of a domain, evenly over its cases."""
        here = [i for i, c in enumerate(cases.facts) if self.domain(c.site, c.id) == domain]
        return self.frame.some(cases, here, most)


def _gradient(run: Run) -> losses.Gradient:
    return lambda y, x: run.grad(y, x, create_graph=True)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Compute no gradients of the module's parameters inside."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
