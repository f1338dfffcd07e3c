"""The lattice: counts in closed form, arithmetic as published, any size, fast parts equal to torch's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from seguro.core.errors import ConfigError
from seguro.networks import build, kernels
from seguro.networks.lattice import EDGES, Lattice, strides_of

HIPPOCAMPUS = [(1, 1, 1), (1, 1, 1), (2, 2, 2)]
BRAIN = [(1, 1, 1), (2, 2, 2), (2, 2, 2)]
NODES = {"L0": 20_352, "L1": 81_792, "L2": 311_040, "L3": 685_568}
LAST_NODES = {"L2d6": 178_944, "L1d7": 48_512, "L0d8": 14_016}


def on_meta(**options):
    with torch.device("meta"):
        return Lattice(**options)


def size(*modules):
    return sum(p.numel() for m in modules for p in m.parameters())


def small(strides=HIPPOCAMPUS, *, channels=1, classes=3, width=4, **options):
    torch.manual_seed(0)
    return Lattice(in_channels=channels, classes=classes, strides=strides, width=width, **options)


def per_node(net):
    """Parameters of each node with its outgoing edges."""
    out = {n: size(body) for n, body in net.nodes.items()}
    for name, edge in net.edges.items():
        out[name.split("-")[0]] += size(edge)
    out["L0d8"] += size(net.to_head)
    return out


@pytest.mark.parametrize(("m", "c"), [(1, 2), (1, 3), (2, 3), (4, 4)])
@pytest.mark.parametrize("strides", [HIPPOCAMPUS, BRAIN])
def test_parameters_as_published(m, c, strides):
    net = on_meta(in_channels=m, classes=c, strides=strides)
    assert size(net) == 2_596_192 + 59 * m + 32 * c
    assert size(net.stem1, net.stem2) == 59 * m + 7008
    found = per_node(net)
    assert len(found) == 14 and sum(found.values()) == 2_561_472
    # the published L3 count is that of a node with one edge up, which both have
    assert found == {n: LAST_NODES.get(n, NODES[n[:2]]) for n in found}


INPUTS = """
L1d1: L0d0; L0d2: L0d0 L1d1; L2d2: L1d1; L1d3: L1d1 L0d2 L2d2; L3d3: L2d2; L0d4: L0d2 L1d3;
L2d4: L2d2 L1d3 L3d3; L1d5: L1d3 L0d4 L2d4; L3d5: L3d3 L2d4; L0d6: L0d4 L1d5; L2d6: L2d4 L1d5 L3d5;
L1d7: L1d5 L0d6 L2d6; L0d8: L0d6 L1d7; head: L0d8
"""


def test_the_edges_are_those_of_the_published_table():
    """The outgoing edges are the data; the table's other column, the inputs, is written out here."""
    rows = [row.strip().split(": ") for row in INPUTS.replace("\n", " ").split(";")]
    inputs = {node: set(sources.split()) for node, sources in rows}
    targets = {t for ts in EDGES.values() for t in ts}
    assert {t: {n for n, ts in EDGES.items() if t in ts} for t in targets} == inputs
    order = list(EDGES)
    assert len(order) == 14 and all(
        order.index(n) < order.index(t) for n, ts in EDGES.items() for t in ts if t != "head"
    )


def test_arithmetic_of_the_largest_task():
    net = on_meta(in_channels=4, classes=4, strides=BRAIN)
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 4, 96, 96, 96, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(79.3, abs=0.1)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_training_and_evaluation_agree_and_every_parameter_learns(checkpointed):
    net = small([(1, 1, 1), (1, 2, 2), (2, 2, 2)], channels=2, checkpointed=checkpointed)
    x = torch.randn(2, 2, 16, 32, 32)
    logits = net(x)
    F.cross_entropy(logits, torch.randint(0, 3, (2, 16, 32, 32))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    with torch.no_grad():
        assert torch.allclose(net.eval()(x), logits, atol=1e-6)
        assert torch.allclose(net(x[1:]), logits[1:], atol=1e-5)  # a case does not depend on its batch
    if checkpointed:
        plain = small([(1, 1, 1), (1, 2, 2), (2, 2, 2)], channels=2)
        assert torch.allclose(plain(x), logits, atol=1e-6)


@pytest.mark.parametrize(
    ("strides", "shape"),
    [
        (HIPPOCAMPUS, (8, 8, 8)),  # one voxel on the coarsest level
        (HIPPOCAMPUS, (7, 9, 17)),
        ([(2, 1, 1), (2, 2, 1), (2, 2, 2)], (33, 20, 9)),
        ([(1, 1), (2, 2), (2, 2)], (16, 32)),
        ([(2, 1), (2, 2), (2, 2)], (30, 5)),
    ],
)
def test_any_size_comes_back(strides, shape):
    net = small(strides)
    x = torch.randn(1, 1, *shape, requires_grad=True)
    out = net(x)
    assert out.shape == (1, 3, *shape) and out.isfinite().all()
    out[..., -1].square().sum().backward()
    assert x.grad.isfinite().all() and x.grad[..., -1].abs().sum() > 0


@pytest.mark.parametrize("strides", [HIPPOCAMPUS, [(1, 2), (1, 1), (2, 2)]])
def test_a_hook_sees_every_name_in_order_and_its_answer_counts(strides):
    net = small(strides)
    x = torch.randn(1, 1, *(16,) * len(strides[0]))
    seen = []
    plain = net(x)
    assert torch.equal(plain, net(x, lambda name, a: (seen.append(name), a)[1]))
    assert tuple(n for n in seen if n not in net.passing) == net.names and net.names[3:-1] == tuple(EDGES)
    assert set(net.passing) == set(seen) - set(net.names)
    for name in net.names:
        changed = net(x, lambda n, a, name=name: torch.rand_like(a) if n == name else a)
        assert not torch.equal(plain, changed), name


@pytest.mark.parametrize("strides", [HIPPOCAMPUS, [(2, 1, 1), (1, 2, 2), (2, 2, 1)]])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_fast_formulation_equals_plain_layers(strides, batch, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    plain = sys.modules.get("lattice_plain") or __import__("lattice_plain")
    fast = small(strides, channels=2).double()
    slow = plain.plain(fast)
    total = fast.multiple
    results = []
    for net in (fast, slow):
        x = torch.randn(
            batch, 2, *(2 * n for n in total), generator=torch.Generator().manual_seed(1), dtype=torch.double
        ).requires_grad_()
        out = net(x)
        (out * torch.linspace(-1, 1, out.numel(), dtype=torch.double).view_as(out)).sum().backward()
        results.append([out, x.grad, *(p.grad for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-8 * (b.detach().abs().max().item() + 1))  # double precision


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 2), (1, 2, 2), (3, 2, 1)])
@pytest.mark.parametrize(("cin", "cout", "groups"), [(4, 4, 4), (3, 5, 1), (1, 1, 1)])
def test_convolution_gradients_against_finite_differences(stride, cin, cout, groups):
    torch.manual_seed(0)
    conv = nn.Conv3d(cin, cout, 3, stride=stride, padding=1, groups=groups, bias=False).double()
    x = torch.randn(2, cin, 3, 4, 2, dtype=torch.double, requires_grad=True)
    assert torch.allclose(kernels.convolve(x, conv), conv(x), atol=1e-12)
    apply = kernels.Convolve3d.apply
    assert torch.autograd.gradcheck(lambda x, w: apply(x, w, conv.stride, groups), (x, conv.weight))


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 2), (3, 2, 1)])
@pytest.mark.parametrize(("cin", "cout", "groups"), [(16, 16, 16), (8, 5, 1), (1, 1, 1)])
def test_convolution_in_single_precision_against_the_layer(stride, cin, cout, groups):
    torch.manual_seed(0)
    conv = nn.Conv3d(cin, cout, 3, stride=stride, padding=1, groups=groups, bias=False)
    x = torch.randn(2, cin, 7, 8, 9, requires_grad=True)
    results = []
    for convolve in (kernels.convolve, lambda x, conv: conv(x)):
        out = convolve(x, conv)
        found = torch.autograd.grad(out.sin().sum(), (x, conv.weight))
        results.append((out, *found))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-4)  # float32, sums of 1000 products


@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 2, 3, 2), (2, 3, 4, 3)])
def test_norm_and_swish_against_finite_differences_and_layers(shape, swish, monkeypatch):
    torch.manual_seed(0)
    layer = (nn.InstanceNorm3d if len(shape) == 5 else nn.InstanceNorm2d)(3, affine=True).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = (5 + torch.randn(shape, dtype=torch.double)).requires_grad_()
    expected = F.silu(layer(x)) if swish else layer(x)
    monkeypatch.setattr(kernels, "CHUNK", 8)  # several chunks
    assert torch.allclose(kernels.norm(x, layer, swish=swish), expected, atol=1e-12)
    apply = kernels.NormSwish.apply
    assert torch.autograd.gradcheck(
        lambda x, w, b: apply(x, w, b, layer.eps, swish), (x, layer.weight, layer.bias)
    )


def test_under_autocast_the_layers_run_as_torch_has_them():
    net = small()
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(x)
    assert half.dtype == torch.bfloat16
    full = net(x)
    assert (half.float() - full).abs().mean() < 0.1 * full.std()  # 8 bits through 40 layers
    half.float().mean().backward()


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        ([(2, 2, 2)] * 3, HIPPOCAMPUS),
        ([(2, 2, 2)] * 4, BRAIN),
        ([(2, 1, 1), (2, 2, 1), *[(2, 2, 2)] * 3], [(2, 1, 1), (2, 2, 1), (2, 2, 2)]),
        ([(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)], [(1, 1, 1), (1, 2, 2), (1, 2, 2)]),
        ([(2, 2)] * 6, [(2, 2)] * 3),
        ([(1, 2)], [(1, 1)] * 3),
    ],
)
def test_strides_of_a_plan(strides, expected):
    class Known:
        multiple = tuple(int(torch.tensor(s).prod()) for s in zip(*strides, strict=True))

    assert list(strides_of(Known)) == expected


def test_by_name_from_a_plan_and_wrong_options(tmp_path, phantom_folder):
    from seguro import api
    from seguro.data.planner import PlanOptions

    _, _, plan = api.plan(phantom_folder, out=tmp_path, options=PlanOptions(memory_gib=0.02))
    net = build("lattice", in_channels=2, classes=3, plan=plan, width=4)
    assert net(torch.randn(1, 2, *plan.patch)).shape == (1, 3, *plan.patch)
    given = build("lattice", in_channels=2, classes=3, plan=plan, width=4, strides=BRAIN)
    assert given.multiple == (16, 16, 16)
    for options in ({"width": 5}, {"strides": [(1, 1)] * 3}, {"strides": [(2, 2, 2)]}, {"depth": 3}):
        with pytest.raises(ConfigError, match="lattice"):
            build("lattice", in_channels=2, classes=3, plan=plan, **options)
