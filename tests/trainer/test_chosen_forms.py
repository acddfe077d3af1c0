"""Forms are measured once for a network, batch and machine; a run keeps those it began with."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trainer.chosen_forms
from tests.trainer.conftest import make_batch
from trainer.chosen_forms import find_forms, forms_told
from trainer.model import AlexNet
from trainer.parallel import ALONE
from trainer.precision import Arithmetic
from trainer.presets import find_preset

CPU = torch.device("cpu")
FP32 = Arithmetic("fp32", CPU)
FOUND = {"conv1": "unshuffled", "conv2": "dense", "conv4": "split"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fullfeed"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Every measurement asked for: the layer, the shape and type of its input, the gradient."""
    asked: list[tuple[Any, ...]] = []

    def fastest(
        layer: nn.Conv2d, x: Tensor, context: object, *, needs_gradient: bool
    ) -> tuple[str, dict[str, float]]:
        asked.append((layer, tuple(x.shape), x.dtype, needs_gradient))
        form = {11: "unshuffled", 5: "dense"}.get(layer.kernel_size[0], "plain")
        return ("split" if len(asked) == 4 else form), {}

    monkeypatch.setattr(trainer.chosen_forms, "fastest_form", fastest)
    return asked


def network(name: str = "paper") -> AlexNet:
    model = AlexNet(find_preset(name), 3, 1 / 16)
    model.initialise(0)
    return model.place(CPU)


def test_each_convolution_is_measured_on_what_it_sees_and_once(
    measured: list[tuple[Any, ...]], folder: Path
) -> None:
    model = network()
    assert find_forms(model, 2, FP32, ALONE.ranks) == FOUND
    layers = [getattr(model, name) for name in model.convolutions]
    assert [one[0] for one in measured] == layers
    assert [one[1] for one in measured] == [
        (2, 3, 227, 227), (2, 6, 27, 27), (2, 16, 13, 13), (2, 24, 13, 13), (2, 24, 13, 13)
    ]  # fmt: skip
    assert [one[3] for one in measured] == [False, True, True, True, True]  # of its input
    assert find_forms(network(), 2, FP32, ALONE.ranks) == FOUND
    assert len(measured) == 5 and len(list(folder.iterdir())) == 1
    find_forms(network(), 3, FP32, ALONE.ranks)
    assert len(measured) == 10  # another batch


@pytest.mark.parametrize("damage", ["{", '{"conv1": "plain"}', "forms of another version"])
def test_a_finding_that_is_none_is_measured_anew(
    damage: str, measured: list[tuple[Any, ...]], folder: Path
) -> None:
    find_forms(network(), 2, FP32, ALONE.ranks)
    (path,) = folder.iterdir()
    whole = path.read_text()
    path.write_text(whole.replace("dense", "square") if "version" in damage else damage)
    assert find_forms(network(), 2, FP32, ALONE.ranks)["conv1"] == "unshuffled"
    assert len(measured) == 10 and "square" not in path.read_text()


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("name", ["paper", "kriz2012", "modern"])
def test_the_network_is_left_as_it_was(name: str) -> None:
    model, untouched = network(name), network(name)
    model.forms = {"conv1": "unshuffled"}
    find_forms(model, 2, FP32, ALONE.ranks)
    assert model.forms == {"conv1": "unshuffled"} and model.training
    for key, value in untouched.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_all_ranks_take_the_first_one_s_and_measure_together(
    measured: list[tuple[Any, ...]]
) -> None:
    """Of two ranks this is the second, which knows its forms; the first one does not."""
    find_forms(network(), 2, FP32, ALONE.ranks)
    gathered: list[Tensor] = []

    def all_gather(tensor: Tensor, axis: int) -> Tensor:
        gathered.append(tensor)
        first = torch.zeros_like(tensor)  # it knows nothing; then, all of its forms are plain
        return torch.cat([first, tensor], axis)

    ranks: Any = SimpleNamespace(size=2, all_gather=all_gather)
    assert find_forms(network(), 2, FP32, ranks) == {}
    assert len(gathered) == 2 and len(measured) == 10


def test_a_rank_that_knows_no_forms_asks_the_others_as_often(
    measured: list[tuple[Any, ...]]
) -> None:
    """Or they would wait for it: as many exchanges as of a rank that knows them."""
    num_asked = []
    for _ in range(2):  # at first it knows none
        gathered: list[Tensor] = []

        def all_gather(tensor: Tensor, axis: int, gathered: list[Tensor] = gathered) -> Tensor:
            gathered.append(tensor)
            return torch.cat([tensor, tensor], axis)

        ranks: Any = SimpleNamespace(size=2, all_gather=all_gather)
        assert find_forms(network(), 2, FP32, ranks) == FOUND
        num_asked.append(len(gathered))
    assert num_asked == [2, 2] and len(measured) == 5


def test_forms_are_measured_for_real_and_give_the_plain_network() -> None:
    model = network()
    model.forms = find_forms(model, 2, FP32, ALONE.ranks)
    batch = make_batch(2, 3)
    plain = network().eval()
    found = model.eval()(batch.images, batch.crop, None)
    torch.testing.assert_close(
        found, plain(batch.images, batch.crop, None), rtol=1e-4, atol=1e-5
    )


def test_a_choice_is_told_in_words() -> None:
    forms = {"conv1": "unshuffled", "conv2": "split"}
    told = "convolutions: conv1 unshuffled, conv2 split"
    assert forms_told(forms, resumed=False) == f"{told}, as is fastest here"
    assert forms_told(forms, resumed=True) == f"{told}, as the run began"
    assert forms_told({}, resumed=True) == "convolutions: all plain, as the run began"
