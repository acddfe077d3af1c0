"""The arithmetic of a step: fp32, tf32, bf16 or fp16. Weights and momentum stay in float32."""

from typing import Any

import torch
from torch import Tensor

from trainer.heap import keep_freed_memory

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def find_precision(name: str, preferred: str, device: torch.device) -> str:
    """`auto` is the preset's own, `preferred`, on a GPU, and fp32 on a CPU (most emulate bf16)."""
    if name != "auto":
        return name
    return preferred if device.type == "cuda" else "fp32"


def explain_precision(precision: str, device: torch.device) -> str:
    """What the arithmetic really is on that device, in the words of a run's first lines."""
    if precision == "tf32" and device.type != "cuda":
        return f"fp32 on {device.type} (tf32 is a number format of GPUs)"
    return f"{precision} on {device.type}"


def set_up_device(precision: str, device: torch.device) -> None:
    """Sets how this process computes on a device, until it is set again.

    How a GPU multiplies float32 numbers: with tf32 the factors are rounded to ten bits behind the
    point on the tensor cores; with every other precision float32 is float32, in convolutions too,
    where torch's own default is tf32. On a CPU, which has no such unit, that memory is kept.
    """
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        rounded = precision == "tf32"
        torch.set_float32_matmul_precision("high" if rounded else "highest")
        torch.backends.cudnn.allow_tf32 = rounded


def zero_momentum(optimizer: torch.optim.SGD) -> None:
    """Gives every parameter that has no momentum 0, of which the first step makes the same.

    For a captured step, and for a fused optimiser whose first step may be left out: torch (2.13)
    would go on with momentum that nobody wrote.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


class Arithmetic:
    """The forward pass, the backward pass and the update of a step in a precision.

    fp16 cannot hold small gradients: they are computed from the loss times a scale, and a step in
    which one overflows is left out and halves the scale. The scale is the state of this class.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        assert precision in PRECISIONS and precision != "auto"
        self.precision, self.device = precision, device
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    @property
    def skips_steps(self) -> bool:
        """Whether `update` may leave a step out; a fused optimiser decides that on the device."""
        return self._scaler.is_enabled()

    @property
    def input_dtype(self) -> torch.dtype | None:
        """What the first convolution rounds its input to; None where it leaves it in float32."""
        return _AUTOCAST.get(self.precision)

    def autocast(self) -> torch.autocast:
        """The context of the forward pass."""
        dtype = _AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`, a scalar, to those of the parameters, times the scale."""
        scaled: Tensor = self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]  # torch leaves it without annotations

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Lets the optimiser make its step with the true gradients, or none: see `skips_steps`."""
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The scale and how long it has held, JSON-able; empty but for fp16."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        if state:
            self._scaler.load_state_dict(state)
