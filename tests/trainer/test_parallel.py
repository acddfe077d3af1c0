"""Columns, data and hybrid are one network: losses, gradients, steps and states of one process."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.loader import Batch
from tests.trainer.conftest import make_batch
from tests.trainer.ranks import run_ranks
from trainer.link import (
    GRADIENTS,
    HOST_MEMORY,
    NETWORK,
    NVLINK,
    PCI_EXPRESS,
    PROCESSORS,
    Link,
)
from trainer.loop import Trainer
from trainer.model import AlexNet
from trainer.optimizer import momentum_state
from trainer.override import override
from trainer.parallel import ALONE, EQUAL_BATCH, MODES, Layout, build_layout, choose_mode
from trainer.preset import Preset
from trainer.presets import KRIZ2012, MODERN, PAPER

BATCH, CLASSES, WIDTH, STEPS = 4, 5, 1 / 16, 2
PRESETS = {"paper": PAPER, "kriz2012": KRIZ2012, "modern": MODERN}
CPU = torch.device("cpu")
# They differ in where columns meet.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": ("paper", {}),
    "kriz2012": ("kriz2012", {}),
    "conv6": ("kriz2012", {"conv6": 256}),
    "no-conv3": ("paper", {"removed": ("conv3",)}),
    "apart": ("paper", {"exchange": False}),
}


def small(name: str, **changes: Any) -> Preset:
    return override(PRESETS[name], {"learning_rate": 0.01, **changes})


def build(preset: Preset, layout: Layout, device: torch.device = CPU) -> AlexNet:
    model = AlexNet(preset, CLASSES, WIDTH, layout)
    model.initialise(0)
    model.normalise.fill(torch.full(model.normalise.mean.shape, 128.0), torch.full((3,), 60.0))
    return model.double().place(device).train()


def part_of(batch: Batch, layout: Layout, device: torch.device) -> Batch:
    """What this rank decodes of a batch, its images in float64."""
    mine = layout.ranks.part(BATCH)
    images, labels, crop = (
        whole[mine].to(device) for whole in (batch.images.double(), batch.labels, batch.crop)
    )
    return Batch(images=images, labels=labels, ids=batch.ids[mine], crop=crop)


def train(
    preset: Preset, layout: Layout, device: torch.device = CPU, num_steps: int = STEPS
) -> dict[str, Any]:
    """Some steps of the trainer; the losses, what was sent in the last one, and the whole
    network's gradients, momentum and state."""
    model = build(preset, layout, device)
    trainer = Trainer(
        model=model, preset=preset, steps_per_epoch=100, seed=7, precision="fp32"
    )
    losses, sent = [], 0
    for step in range(num_steps):
        batch = part_of(make_batch(BATCH, CLASSES, step), layout, device)
        before = layout.bytes_sent
        loss = trainer.train_step(batch)
        sent = layout.bytes_sent - before
        losses.append(float(layout.unit_copies.total(loss)))
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {
        "losses": losses,
        "gradients": {n: g.clone() for n, g in layout.whole_state(gradients).items()},
        "momentum": layout.whole_state(momentum_state(model, trainer.optimizer)),
        "state": layout.whole_state(model.state_dict()),
        "sent": sent,
    }


Case = tuple[str, str, dict[str, Any]]  # mode, preset, changes


def train_all(cases: list[Case], num_steps: int) -> list[dict[str, Any]]:
    return [
        train(small(name, **changes), build_layout(mode, CPU), CPU, num_steps)
        for mode, name, changes in cases
    ]


def assert_equal_to_one_process(num_ranks: int, cases: list[Case], num_steps: int) -> None:
    """Losses, gradients, momentum and state, and the bytes that were sent."""
    alone: dict[str, dict[str, Any]] = {}
    for results in run_ranks(num_ranks, train_all, cases, num_steps):
        for (mode, name, changes), found in zip(cases, results, strict=True):
            key = f"{name} {changes}"
            if key not in alone:
                alone[key] = train(small(name, **changes), ALONE, CPU, num_steps)
            for part, value in alone[key].items():
                if part != "sent":
                    torch.testing.assert_close(
                        found[part], value, rtol=0, atol=1e-12, msg=f"{mode}, {key}, {part}"
                    )
            assert found["sent"] == bytes_of(mode, small(name, **changes), num_ranks)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_every_mode_and_variant_is_the_single_process(num_ranks: int) -> None:
    variants = VARIANTS if num_ranks == 2 else {"kriz2012": VARIANTS["kriz2012"]}
    cases = [
        (mode, *variant)
        for mode in MODES
        for name, variant in variants.items()
        if (mode, name) != ("hybrid", "apart")  # refused, see below
    ]
    assert_equal_to_one_process(num_ranks, cases, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ten_steps_of_every_mode_are_those_of_the_single_process(num_ranks: int) -> None:
    cases = [(mode, name, VARIANTS[name][1]) for mode in MODES for name in ("paper", "kriz2012")]
    assert_equal_to_one_process(num_ranks, cases, 10)


def bytes_of(mode: str, preset: Preset, num_ranks: int) -> int:
    """What a rank sends in a step, in float64, by the formulas of docs/training.md."""
    whole = {n: p.numel() for n, p in AlexNet(preset, CLASSES, WIDTH).named_parameters()}
    net = AlexNet(preset, CLASSES, WIDTH)
    units = sum(size for name, size in whole.items() if name.startswith("fc"))
    kernels = sum(whole.values()) - units
    if mode == "data":
        return sent_by_ring(8 * kernels, num_ranks) + sent_by_ring(8 * units, num_ranks)
    pool5 = net.fc6.in_features
    if mode == "hybrid":
        rows = BATCH // num_ranks
        maps = 2 * (num_ranks - 1) * rows * pool5
        fc7 = 2 * (num_ranks - 1) * BATCH * net.hidden[0] // num_ranks
        logits = sent_by_ring(8 * BATCH * CLASSES, num_ranks)
        labels = (num_ranks - 1) * rows * 8
        return 8 * (maps + fc7) + logits + labels + sent_by_ring(8 * kernels, num_ranks)
    rows = 2 * BATCH // num_ranks  # of a pair
    meeting = [(net.conv3.in_channels, 13)] if "conv3" in net.convolutions else []
    meeting += [(net.conv6.in_channels, 6)] if "conv6" in net.convolutions else []
    maps = sum(channels * side**2 for channels, side in meeting) + pool5 + net.hidden[0]
    if not preset.network.exchange:
        maps = 0
    decoded = rows // 2 * (8 * 3 * 224**2 + 4 * 3 + 8)  # pixels, crop, label
    own = 8 * rows * maps + sent_by_ring(8 * rows * CLASSES, 2) + decoded
    # half of the kernels and units, and all biases of fc8, summed over the pairs
    shared = [kernels // 2, (units - CLASSES) // 2 + CLASSES]
    return own + sum(sent_by_ring(8 * size, num_ranks // 2) for size in shared)


def sent_in_bf16() -> list[int]:
    """Of each mode, by forward and backward in bf16 and by the sums of gradients in bf16."""
    found = []
    for mode in MODES:
        layout = build_layout(mode, CPU)
        model = AlexNet(PAPER, CLASSES, WIDTH, layout)
        trainer = Trainer(
            model=model.place(CPU).train(), preset=PAPER, steps_per_epoch=9, seed=0,
            precision="bf16", wire_dtype=torch.bfloat16,
        )  # fmt: skip
        batch = part_of(make_batch(BATCH, CLASSES, 0), layout, CPU)
        before = layout.bytes_sent
        trainer.train_step(replace(batch, images=batch.images.float()))
        found.append(layout.bytes_sent - before)
    return found


def test_a_step_in_bf16_sends_the_bytes_of_the_design() -> None:
    """Maps, units, logits and gradients in two bytes; beside them pixels, crops and labels."""
    net = AlexNet(PAPER, CLASSES, WIDTH)
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    kernels = sum(size for name, size in sizes.items() if name.startswith("conv"))
    units = sum(sizes.values()) - kernels
    pool5, hidden, rows = net.fc6.in_features, net.hidden[0], BATCH // 2
    meeting = net.conv3.in_channels * 13**2 + pool5 + hidden
    decoded = rows * (4 * 3 * 224**2 + 4 * 3 + 8)  # pixels, crop, label
    expected = {
        "data": 2 * (kernels + units),
        "columns": 2 * BATCH * (meeting + CLASSES) + decoded,
        "hybrid": 2 * BATCH * (pool5 + hidden + CLASSES) + 8 * rows + 2 * kernels,
    }
    for found in run_ranks(2, sent_in_bf16):
        assert dict(zip(MODES, found, strict=True)) == expected


def sent_by_ring(num_bytes: int, num_ranks: int) -> int:
    return 2 * (num_ranks - 1) * num_bytes // num_ranks


def test_bytes_of_a_step_are_those_of_the_design() -> None:
    """bf16, full width, two ranks: columns 115 kB an image, hybrid 28.6 kB + 4.7 MB, data 122."""
    with torch.device("meta"):
        net = AlexNet(PAPER, 1000)
    units = sum(p.numel() for n, p in net.named_parameters() if n.startswith("fc"))
    kernels = sum(p.numel() for p in net.parameters()) - units
    pool5, hidden, classes = net.fc6.in_features, net.hidden[0], net.num_classes
    columns = 2 * (net.conv3.in_channels * 13**2 + pool5 + hidden + classes)
    hybrid = 2 * (pool5 + hidden + classes)
    assert round(columns / 1e3) == 115 and round(hybrid / 1e3, 1) == 28.6
    assert round(2 * kernels / 1e6, 1) == 4.7 and round(2 * (kernels + units) / 1e6) == 122


def state_round_trip(preset: Preset) -> list[bool]:
    """Whether the whole state, taken apart in every mode and put together again, is the same."""
    whole = AlexNet(preset, CLASSES, WIDTH)
    whole.initialise(3)
    state = whole.state_dict()
    same = []
    for first in MODES:
        for second in MODES:
            for mode in (first, second):
                layout = build_layout(mode, CPU)
                model = AlexNet(preset, CLASSES, WIDTH, layout)
                model.load_state_dict(layout.part_state(state))
                found = layout.whole_state(model.state_dict())
                same.append(
                    found.keys() == state.keys()
                    and all(torch.equal(found[name], state[name]) for name in state)
                )
    return same


@pytest.mark.parametrize("name", PRESETS)
def test_states_go_from_any_mode_to_any_other(name: str) -> None:
    for same in run_ranks(2, state_round_trip, PRESETS[name]):
        assert all(same)


def odd_columns() -> str:
    try:
        build_layout("columns", CPU)
    except ValueError as error:
        return str(error)
    return ""


def test_columns_need_pairs() -> None:
    for message in run_ranks(3, odd_columns):
        assert "even number of processes, there are 3" in message


@pytest.mark.parametrize(
    ("asked", "batch", "ranks", "link", "wire_bytes", "mode", "reason"),
    [
        ("auto", 128, 2, NVLINK, 4, "hybrid", "by NVLink take longer than 64 images each hide"),
        ("auto", 256, 2, NVLINK, 4, "data", "128 images each hide the exchange"),
        ("auto", 256, 4, NVLINK, 4, "hybrid", "64 images each"),
        ("auto", 256, 4, NVLINK, 2, "data", "64 images each"),
        ("auto", 1024, 2, PCI_EXPRESS, 4, "hybrid", "by PCI Express"),
        ("auto", 1024, 2, PCI_EXPRESS, 2, "data", "by PCI Express"),
        ("auto", 2048, 2, HOST_MEMORY, 4, "hybrid", "by host memory"),
        ("auto", 128, 2, NETWORK, 4, "hybrid", "by a network"),
        ("auto", 2048, 2, PROCESSORS, 4, "hybrid", "by this machine's processors"),
        ("auto", 4096, 2, PROCESSORS, 4, "data", "maps of hybrid are as many"),
        ("auto", 128, 3, NVLINK, 4, "data", "3 processes do not divide"),
        ("columns", 1024, 2, NVLINK, 4, "columns", "asked for"),
    ],
)
def test_the_mode_is_chosen_by_batch_link_and_ranks(
    asked: str, batch: int, ranks: int, link: Link, wire_bytes: int, mode: str, reason: str
) -> None:
    preset = override(PAPER, {"batch_size": batch})
    found, told = choose_mode(
        asked, preset, ranks, link=link, value_bytes=wire_bytes, hidden=(4096, 4096)
    )
    assert found == mode and reason in told


def test_maps_are_as_many_values_as_gradients_from_the_batch_that_is_said() -> None:
    """To the power of two: what two ranks send of either."""
    with torch.device("meta"):
        net = AlexNet(PAPER, 1000)
    units = sum(p.numel() for n, p in net.named_parameters() if n.endswith("weight") and "fc" in n)
    assert units == GRADIENTS
    maps = net.fc6.in_features + net.hidden[0] + net.num_classes
    assert 2**0.5 / 2 < EQUAL_BATCH / (units / maps) < 2**0.5


@pytest.mark.parametrize(
    ("asked", "changes", "message"),
    [
        ("columns", {"columns": 1}, "needs a network of two columns"),
        ("hybrid", {"exchange": False}, "the columns must exchange"),
    ],
)
def test_a_network_that_cannot_be_shared_out_is_refused(
    asked: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_mode(
            asked, override(PAPER, changes), 2, link=PROCESSORS, hidden=(4096, 4096)
        )
