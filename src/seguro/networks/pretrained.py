"""Public weights for a ResNet encoder: from a local file, or downloaded where that is asked for by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from seguro.core.errors import ConfigError, DataError
from seguro.networks.encoders import DEPTHS, ResNet
from seguro.networks.weights import tensors_from

ONLINE, TIMM = "online", "timm"
PREFIX = "backbone."
"""Of the trunk's names in the files of segmentation networks."""
HEADS = ("fc.", "classifier.", "aux_classifier.")
"""Of what a weight file holds beside the trunk, and is left out."""


def start_from(encoder: ResNet, weights: str) -> list[str]:
    """Load the trunk's weights into `encoder`, its last 1 x 1 convolution left as it is; return their names.

    Args:
        encoder: whose parts are named as in torchvision.
        weights: a .safetensors file, "online" for those of DeepLabV3-ResNet101 on COCO (torchvision),
            "timm" for the default ones of this network on ImageNet (timm).

    Raises:
        DataError: no such file, or names or shapes that do not agree; nothing is loaded in part.
        ConfigError: a file of another kind, another network than "online" has, no package or no network.
    """
    download = {ONLINE: _online, TIMM: _timm}.get(weights)
    also = f", {ONLINE!r} or {TIMM!r}"
    found = download(encoder) if download else tensors_from(Path(weights), "weights", also=also)
    found = {k.removeprefix(PREFIX): v for k, v in found.items()}
    found = {k: v for k, v in found.items() if not k.startswith(HEADS)}
    own = encoder.state_dict()
    trunk = {k for k in own if not k.startswith("reduce.")}
    counts = {k for k in trunk if k.endswith("num_batches_tracked")}  # not in every file, and of no effect
    missing = sorted(trunk - set(found) - counts)
    unknown = sorted(set(found) - trunk)
    shapes = sorted(k for k in trunk & set(found) if found[k].shape != own[k].shape)
    if missing or unknown or shapes:
        raise DataError(
            f"weights {weights} do not fit this encoder: {len(missing)} names missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}, {len(shapes)} of another shape {shapes[:3]}; "
            "give the file of this network, or weights=null to train from scratch"
        )
    encoder.load_state_dict({**own, **{k: found[k] for k in trunk & set(found)}})
    return sorted(trunk & set(found))


def _online(encoder: ResNet) -> Mapping[str, Tensor]:
    if len(encoder.layer3) != 23:  # type: ignore[arg-type]  # a Sequential
        raise ConfigError("weights online are those of resnet101: set encoder=resnet101, or give a file")
    try:
        from torchvision.models.segmentation import DeepLabV3_ResNet101_Weights as Public
    except ImportError as error:
        raise ConfigError(
            "weights online needs the package 'torchvision': pip install torchvision, or give a local "
            ".safetensors file"
        ) from error
    try:
        found: Mapping[str, Tensor] = Public.COCO_WITH_VOC_LABELS_V1.get_state_dict(progress=False)
    except OSError as error:
        raise ConfigError(
            f"weights online cannot be downloaded ({error}): give a local .safetensors file, or weights=null "
            "to train from scratch"
        ) from error
    return found


def _timm(encoder: ResNet) -> Mapping[str, Tensor]:
    """Return the weights that timm keeps for this network; its names are those of torchvision."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            "weights timm needs the package 'timm', which is not installed: pip install timm, or give a "
            "local .safetensors file"
        ) from error
    names = {depths[2]: name for name, depths in DEPTHS.items()}
    name = names.get(len(encoder.layer3), "resnet101")  # type: ignore[arg-type]  # a Sequential
    try:
        found: Mapping[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"weights timm cannot be downloaded ({error}): give a local .safetensors file, or weights=null "
            "to train from scratch"
        ) from error
    return found
