"""The image half of CLIP (Radford et al., ICML 2021), from a local file: a frozen embedding of images.

Nothing is downloaded: whoever has the weights of a vision transformer of CLIP gives them as a .safetensors
file with OpenAI's names, of the whole model (`visual.` in front) or of its image half alone. Its sizes are
read from the tensors; ViT-L/14, as published, has 24 blocks of width 1024 and gives 768 numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seguro.core.errors import DataError
from seguro.networks.weights import tensors_from

PREFIX = "visual."
HEAD = 64
"""Width of an attention head, in all of CLIP's vision transformers but the largest."""
MEAN, SD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
"""Of the images that the network was trained on, in [0, 1]."""


class Clip(nn.Module):
    """Unit vectors of what images show.

    Args:
        weights: by name, see above; other names are not looked at.

    Shape: (N, C, Y, X) in [-1, 1] -> (N, length); channels are averaged and shown as gray, the image is
        scaled to the size that the network knows.

    Raises:
        DataError: names that are missing, or tensors of shapes that do not go together.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        whole = any(k.startswith(PREFIX) for k in weights)  # its other half has some of the same names
        given = {k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX) or not whole}
        ends = ("conv1.weight", "class_embedding", "positional_embedding", "proj")
        if lacking := [name for name in ends if name not in given]:
            raise DataError(f"weights of CLIP: no {lacking[0]}; give those of a vision transformer")
        width, _, self.patch, _ = given["conv1.weight"].shape
        places, _ = given["positional_embedding"].shape
        self.side = round((places - 1) ** 0.5)
        """Patches across."""
        self.length = given["proj"].shape[1]
        self.heads = width // HEAD
        self.depth = sum(name.endswith(".attn.in_proj_weight") for name in given)
        wanted: dict[str, tuple[int, ...]] = {
            "conv1.weight": (width, 3, self.patch, self.patch),
            "class_embedding": (width,),
            "positional_embedding": (self.side**2 + 1, width),
            "proj": (width, self.length),
        }
        norms = ["ln_pre", "ln_post"]
        for block in range(self.depth):
            at = f"transformer.resblocks.{block}"
            norms += [f"{at}.ln_1", f"{at}.ln_2"]
            for name, (cin, cout) in _linears(width).items():
                kind = "_" if name == "attn.in_proj" else "."
                wanted |= {f"{at}.{name}{kind}weight": (cout, cin), f"{at}.{name}{kind}bias": (cout,)}
        wanted |= {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}
        wrong = sorted(n for n, s in wanted.items() if n not in given or given[n].shape != s)
        if wrong or not self.heads or not self.depth:
            raise DataError(
                f"weights of CLIP: {len(wrong)} of {len(wanted)} tensors are missing or of another shape"
                + (f", such as {wrong[0]} {wanted[wrong[0]]}" if wrong else f" (width {width})")
                + "; give those of a vision transformer with heads of 64"
            )
        self._names = {name: name.replace(".", "__") for name in wanted}
        for name, own in self._names.items():
            self.register_buffer(own, given[name].float().clone(), persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("sd", torch.tensor(SD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, length) of unit length; gradients reach the images."""
        x = images.float().mean(1, keepdim=True).expand(-1, 3, -1, -1)
        size = (self.side * self.patch,) * 2
        x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        x = ((x + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("sd")
        x = F.conv2d(x, self._of("conv1.weight"), stride=self.patch).flatten(2).mT
        x = torch.cat([self._of("class_embedding").expand(len(x), 1, -1), x], dim=1)
        x = self._norm(x + self._of("positional_embedding"), "ln_pre")
        for block in range(self.depth):
            at = f"transformer.resblocks.{block}"
            x = x + self._attention(self._norm(x, f"{at}.ln_1"), f"{at}.attn")
            y = self._linear(self._norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc.")
            x = x + self._linear(y * torch.sigmoid(1.702 * y), f"{at}.mlp.c_proj.")
        return F.normalize(self._norm(x[:, 0], "ln_post") @ self._of("proj"), dim=1)

    def _attention(self, x: Tensor, at: str) -> Tensor:
        n, length, width = x.shape
        parts = self._linear(x, f"{at}.in_proj_").view(n, length, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        return self._linear(y, f"{at}.out_proj.")

    def _linear(self, x: Tensor, at: str) -> Tensor:
        return F.linear(x, self._of(f"{at}weight"), self._of(f"{at}bias"))

    def _norm(self, x: Tensor, at: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._of(f"{at}.weight"), self._of(f"{at}.bias"))

    def _of(self, name: str) -> Tensor:
        return self.get_buffer(self._names[name])


def _linears(width: int) -> dict[str, tuple[int, int]]:
    return {
        "attn.in_proj": (width, 3 * width),
        "attn.out_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }


def clip_from(path: Path) -> Clip:
    """Return the embedding whose weights lie in a file.

    Raises:
        ConfigError: another kind of file.
        DataError: no such file, or it has other tensors.
    """
    return Clip(tensors_from(path, "embedding"))
