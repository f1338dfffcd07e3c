"""Training: images alone, without the network, from scratch or from a file; its options do what they say."""

from __future__ import annotations

import shutil
import socket
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seguro import api
from seguro.api.job import resolve
from seguro.core.errors import ConfigError
from seguro.core.seeds import derive, generator
from seguro.core.settings import read_yaml
from seguro.data import phantom
from seguro.data.planner import PlanOptions
from seguro.engine.limits import Limits
from seguro.engine.loop import Loop
from seguro.engine.model import load_model
from seguro.engine.runtime import Runtime
from seguro.methods import get
from seguro.methods.alpnet.config import PRESETS, AlpnetConfig
from seguro.methods.alpnet.method import Alpnet
from seguro.networks import build
from seguro.networks.encoders import ResNet


def trained(stacks, cases, folder, config: AlpnetConfig, *, updates: int = 3, seed: int = 0) -> Loop:
    torch.manual_seed(derive(seed, "init"))
    method = Alpnet(config, stacks[2], build)
    loop = Loop(method, cases, folder, Runtime("cpu"), Limits(updates=updates, validations=1), 2, seed)
    loop.fit()
    return loop


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return loop.method.modules.state_dict()


def equal(one: Loop, two: Loop) -> bool:
    a, b = weights(one), weights(two)
    return all(torch.equal(a[k], b[k]) for k in a)


OPENED: list[str] | None = None
"""While a list, the files that this process opens; a hook cannot be taken back."""


@pytest.fixture
def opened():
    global OPENED
    if not any(getattr(h, "__name__", "") == "watch" for h in _HOOKS):

        def watch(event, args):
            if OPENED is not None and event == "open" and isinstance(args[0], str | bytes):
                OPENED.append(str(args[0]))

        sys.addaudithook(watch)
        _HOOKS.append(watch)
    OPENED = []
    yield OPENED
    OPENED = None


_HOOKS: list = []


def test_labels_make_no_difference_and_are_never_opened(stacks, cases_of, config, tmp_path, opened):
    """Acceptance 10: without a single label file the weights are the same to the bit."""
    store = tmp_path / "store"
    shutil.copytree(stacks[0], store)
    opened.clear()
    with_labels = trained(stacks, cases_of(config), tmp_path / "with", config)
    assert not [p for p in opened if ".label." in p or ".locations." in p or "labelsTr" in p]
    assert [p for p in opened if p.endswith(".image.npy")]
    gone = [*store.glob("*.label.npy"), *store.glob("*.locations.npy")]
    assert len(gone) == 2 * len(stacks[1].of("train"))
    for path in gone:
        path.unlink()
    without = trained(stacks, cases_of(config, store), tmp_path / "without", config)
    assert equal(with_labels, without)
    assert not equal(with_labels, trained(stacks, cases_of(config), tmp_path / "other", config, seed=1))


@pytest.mark.parametrize("batch", [2, None], ids=["batch 2", "the planned batch"])
def test_train_without_labels_gives_the_same_weights(tmp_path, batch):
    """Acceptance 10 through the whole command: plan, folds, store and batch come of images alone too."""
    pytest.importorskip("skimage")
    found = []
    for what in ("with", "without"):
        data = phantom.write_folder(
            tmp_path / what / "data", n_labelled=4, shape=(3, 32, 40), spacing=(8.0, 1.0, 1.0), n_classes=3
        )
        if what == "without":
            shutil.rmtree(data / "labels")
        options = api.TrainOptions(
            method="alpnet", preset="tiny", updates=2, batch=batch, validations=1, fold="0"
        )
        run = api.train(
            data, options, out=tmp_path / what / "w", plan_options=PlanOptions(dims=2, memory_gib=0.02)
        )
        model = load_model(run)
        assert len(model.plan.classes.foreground) == (3 if what == "with" else 0)
        config = read_yaml(run / "config.yaml")
        found.append((config["batch"], model.predictor.state_dict()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][k], v) for k, v in found[1][1].items())


def test_data_that_nobody_labelled_train_a_model_that_a_support_puts_to_use(tmp_path, monkeypatch):
    """Acceptance 11: through the whole command, with every socket refused."""

    def refuse(*args, **kwargs):
        raise OSError("no network here")

    pytest.importorskip("skimage")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    data = tmp_path / "data"
    for i in range(4):
        image, _ = phantom.volume(generator(i, "scan"), (4, 32, 40), 2)
        phantom.write_nifti(data / "images" / f"scan_{i}.nii.gz", image[0], spacing=(8, 1, 1))
    run = api.train(
        data,
        api.TrainOptions(method="alpnet", preset="tiny", updates=2, batch=2, validations=1, fold="all"),
        out=tmp_path / "w",
        plan_options=PlanOptions(dims=2, memory_gib=0.01),
    )
    model = load_model(run)
    assert model.plan.classes.foreground == ()
    with pytest.raises(ConfigError, match="--support"):
        model.predictor(torch.zeros(1, 1, 2, 32, 40))


def method(stacks, **changes) -> Alpnet:
    config = AlpnetConfig.model_validate({**PRESETS["tiny"], **changes})
    return Alpnet(config, stacks[2], build)


def test_options_reach_optimiser_schedule_and_needs(stacks):
    made = method(stacks, optimiser="sgd", momentum=0.8, learning_rate=0.01, clip=None, schedule="step",
                  step_every=7, step_factor=0.5, warmup=0.2, weight_decay=0.1)  # fmt: skip
    optim = made.optimisers()["main"]
    group = optim.optimiser.param_groups[0]
    assert isinstance(optim.optimiser, torch.optim.SGD)
    assert (group["momentum"], group["lr"], group["weight_decay"], optim.clip) == (0.8, 0.01, 0.1, None)
    schedule = optim.schedule
    assert (schedule.kind, schedule.every, schedule.factor, schedule.warmup) == ("step", 7, 0.5, 0.2)
    assert made.needs.regions == made.config.superpixels != get("alpnet").needs.regions
    assert isinstance(method(stacks).optimisers()["main"].optimiser, torch.optim.AdamW)


def test_the_paper_preset_has_the_published_constants(stacks):
    config = AlpnetConfig.model_validate(PRESETS["paper"])
    assert (config.superpixels.min_size, config.superpixels.unit, config.superpixels.sigma) == (400, "px", 1)
    assert (config.train_window, config.test_window, config.gate, config.size) == (4, 2, 4, 256)
    assert (config.background_weight, config.align, config.learning_rate) == (0.05, 1.0, 1e-3)
    assert (config.optimiser, config.momentum, config.weight_decay) == ("sgd", 0.9, 5e-4)
    assert (config.schedule, config.step_every, config.step_factor) == ("step", 1000, 0.95)
    small = {**PRESETS["paper"], "size": 16, "width": 2, "features": 4}
    made = Alpnet(AlpnetConfig.model_validate(small), stacks[2], build)
    assert isinstance(made.encoder, ResNet) and made.encoder.stride == 8


def test_public_weights_are_read_as_training_begins_and_not_with_the_model(stacks, tmp_path):
    options = {"encoder": "resnet50", "width": 2, "features": 4}
    torch.manual_seed(7)
    source = {k: v for k, v in method(stacks, **options).encoder.state_dict().items() if "reduce" not in k}
    path = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in source.items()}, path)
    torch.manual_seed(8)
    made = method(stacks, **options, weights=str(path))
    assert not torch.equal(made.encoder.conv1.weight, source["conv1.weight"])
    made.optimisers()
    assert all(torch.equal(made.encoder.state_dict()[k], v) for k, v in source.items())
    path.unlink()
    method(stacks, **options, weights=str(path))  # a model is made again without the file
    with pytest.raises(ValueError, match="weights are for a resnet"):
        AlpnetConfig(weights=str(path))


def test_the_weights_that_training_starts_from_are_part_of_its_key(phantom_folder, few_shot_run, tmp_path):
    workspace, path = tmp_path / "w", tmp_path / "weights.safetensors"
    _, manifest, plan = api.plan(
        phantom_folder, out=workspace, options=PlanOptions(dims=2, memory_gib=0.01, batch=2)
    )
    settings = {"encoder": "resnet50", "width": 2, "weights": str(path)}
    options = api.TrainOptions(method="alpnet", preset="tiny", updates=1, settings=settings)

    def key(options):
        return resolve(workspace, manifest, plan, options, gpu=False, precision="32").stage.key

    keys = [key(options)]
    for content in (b"one", b"two", b"one"):
        path.write_bytes(content)
        keys.append(key(options))
    assert keys[1] == keys[3] and len(set(keys)) == 3
    with pytest.raises(ConfigError, match="both say what training starts from"):
        key(replace(options, init=few_shot_run))


@pytest.mark.parametrize(
    "changes",
    [{"foreground": "global"}, {"background": "global"}, {"test_window": 4.0}, {"gate": 8.0}, {"nearest": 1},
     {"position_weight": 1.0}, {"prior": "none"}, {"prior": "fraction", "margin": 0.5}, {"size": 48}],
    ids=lambda c: "-".join(c),
)  # fmt: skip
def test_every_option_of_the_prediction_changes_it(stacks, changes):
    from seguro.core.types import Classes
    from seguro.methods.contract import Support

    g = torch.Generator().manual_seed(0)
    label = torch.zeros(6, 40, 48, dtype=torch.uint8)
    label[2:5, 4:36, 4:36] = 1
    image = torch.randn(1, 6, 40, 48, generator=g) + label
    support = Support((image,), (label,), Classes(names=("background", "a"), values=((0,), (1,))))
    query = torch.randn(1, 1, 5, 40, 48, generator=g)
    found = []
    for more in ({}, changes):
        torch.manual_seed(0)
        made = method(stacks, **more)
        predictor = made.predictor(made.modules).eval()
        with torch.inference_mode():
            found.append(predictor(query, support))
    assert not np.allclose(found[0], found[1], atol=1e-3)


def test_excluded_slices_of_a_case_that_is_not_there_are_refused(stacks, config):
    plan = stacks[2]
    known = plan.folds[0].train[0]
    held_out = plan.folds[0].validation[0]
    Alpnet(config.model_copy(update={"excluded": {known: (0,), held_out: (1,)}}), plan, build)
    mistyped = config.model_copy(update={"excluded": {known: (0,), "case_9999": (1,)}})
    with pytest.raises(ConfigError, match=r"case_9999 \(1 of 2\).*such as"):
        Alpnet(mistyped, plan, build)
    Alpnet(mistyped, plan.model_copy(update={"folds": ()}), build)  # as deployed: the plan knows no cases
