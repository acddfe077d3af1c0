"""The form of each convolution that is fastest on this GPU, in this network, at this batch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.draws import CROP_PX
from pipeline.measured import recall, remember
from trainer.collectives import Group
from trainer.forms import FORMS, PLAIN, fastest_form, forms_of
from trainer.input import PAD_PX
from trainer.model import AlexNet
from trainer.precision import Arithmetic


def find_forms(
    model: AlexNet, num_images: int, arithmetic: Arithmetic, ranks: Group
) -> dict[str, str]:
    """Forms by the name of their convolution, those that are not plain; every rank calls it.

    num_images: of a rank's part of a batch. Measured for some seconds the first time, on random
    images, then known. All ranks take what the first found. The network is left as it was.
    """
    device = next(model.parameters()).device
    choices = {name: forms_of(getattr(model, name)) for name in model.convolutions}
    of = _circumstances(model, num_images, arithmetic, device)
    found = recall("forms", of)
    knows = torch.tensor([_is_choice(found, choices)], device=device)
    all_know = bool(ranks.all_gather(knows[None], 0).all())  # all ask, whatever they know
    if found is None or not all_know:  # together: they exchange in between
        found = _measure(model, num_images, arithmetic, device)
        remember("forms", of, found)
    names = list(FORMS)
    mine = torch.tensor([names.index(found[name]) for name in choices], device=device)
    agreed = ranks.all_gather(mine[None], 0)[0].tolist()
    chosen = {name: names[number] for name, number in zip(choices, agreed, strict=True)}
    return {name: form for name, form in chosen.items() if form != PLAIN}


def known_forms(model: AlexNet, forms: Mapping[str, str]) -> dict[str, str]:
    """Those that the layers of this part of a network have; the others are plain.

    Another mode has other layers, and another version other forms.
    """
    return {
        name: form
        for name, form in forms.items()
        if name in model.convolutions and form in forms_of(getattr(model, name))
    }


def forms_told(forms: Mapping[str, str], *, resumed: bool) -> str:
    """The forms in words; resumed: they are those of a checkpoint."""
    told = ", ".join(f"{name} {form}" for name, form in forms.items())
    reason = "as the run began" if resumed else "as is fastest here"
    return f"convolutions: {told or 'all plain'}, {reason}"


def _circumstances(
    model: AlexNet, num_images: int, arithmetic: Arithmetic, device: torch.device
) -> dict[str, Any]:
    """All that the speed of a form depends on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": gpu,
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]  # torch's
        "precision": arithmetic.precision,
        "images": num_images,
        "layers": {name: repr(getattr(model, name)) for name in model.convolutions},
    }


def _is_choice(found: Any, choices: Mapping[str, tuple[str, ...]]) -> bool:
    return (
        isinstance(found, dict)
        and found.keys() == choices.keys()
        and all(found[name] in names for name, names in choices.items())
    )


def _measure(
    model: AlexNet, num_images: int, arithmetic: Arithmetic, device: torch.device
) -> dict[str, str]:
    found = {}
    for name, x in _inputs(model, num_images, arithmetic, device).items():
        layer: nn.Conv2d = getattr(model, name)
        found[name], _ = fastest_form(
            layer, x, arithmetic.autocast, needs_gradient=name != "conv1"
        )
    return found


def _inputs(
    model: AlexNet, num_images: int, arithmetic: Arithmetic, device: torch.device
) -> dict[str, Tensor]:
    """What each convolution sees of random images, in order."""
    seen: dict[str, Tensor] = {}

    def see(name: str, inputs: tuple[Tensor, ...]) -> None:
        seen[name] = inputs[0].detach().clone()

    handles = [
        getattr(model, name).register_forward_pre_hook(
            lambda _, inputs, name=name: see(name, inputs)
        )
        for name in model.convolutions
    ]
    source = torch.Generator(device).manual_seed(0)
    side = CROP_PX + PAD_PX
    images = torch.randn(num_images, 3, side, side, generator=source, device=device)
    images = images.to(arithmetic.input_dtype or images.dtype)
    forms, fuses = model.forms, model.fuses
    buffers = [buffer.clone() for buffer in model.buffers()]
    try:
        model.forms, model.fuses = {}, False
        with torch.no_grad(), arithmetic.autocast():
            model.features(images.contiguous(memory_format=torch.channels_last))
    finally:
        model.forms, model.fuses = forms, fuses
        for handle in handles:
            handle.remove()
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)  # batch norm has counted these images
    return seen
