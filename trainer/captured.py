"""A whole training step recorded once as a CUDA graph, and replayed: Python launches it as one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.loader import Batch
from trainer.layers import fill_dropout_mask
from trainer.model import AlexNet
from trainer.precision import Arithmetic, zero_momentum

WARM_STEPS = 3  # before recording, in which kernels are chosen and memory is allocated
Replay = Callable[[], object]
Record = Callable[[Callable[[], None]], Replay]
HIDDEN = ("fc6", "fc7")


class CapturedStep:
    """Forward, backward and update on memory of its own, into which each step's input is copied.

    That copy takes the mean off, and cuts blocks where conv1 takes them; dropout masks are drawn
    straight into the graph's, the same as ever; learning rates lie on the device, so that a drop
    changes a number there and nothing else. What making it did to weights, momentum and buffers
    is undone: a captured run is an eager one.
    For a model that is whole, on one rank, whose parameters keep learning or not as they do now.
    """

    def __init__(
        self,
        model: AlexNet,
        optimizer: torch.optim.SGD,
        arithmetic: Arithmetic,
        batch: Batch,
        record: Record | None = None,
    ) -> None:
        """batch: of the shape and place of those to come. record: by default as a CUDA graph."""
        assert model.layout.ranks.size == 1 and not arithmetic.skips_steps
        self._model, self._optimizer, self._arithmetic = model, optimizer, arithmetic
        device = batch.images.device
        with torch.no_grad(), arithmetic.autocast():
            self._images = model.prepared(batch.images, batch.crop)
        self._labels = batch.labels.clone()
        self._masks: tuple[Tensor | None, Tensor | None] = (None, None)
        if model.preset.network.dropout:
            fc6, fc7 = (torch.ones(len(batch.labels), n, device=device) for n in model.hidden)
            self._masks = fc6, fc7
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._loss = torch.zeros((), device=device)
        self.learning = learning(model)
        with _undone(model, optimizer):
            self._replay = (record or record_cuda)(self._compute)

    def fits(self, batch: Batch) -> bool:
        """Whether a batch is of the recorded shape, and the parameters that learn the same."""
        return len(batch.labels) == len(self._labels) and learning(self._model) == self.learning

    def __call__(self, batch: Batch, divisor: float, seed: int, step: int) -> Tensor:
        """One step with the rates that the optimiser's groups name; returns the mean loss.

        Nothing in it waits for the device.
        """
        with torch.no_grad(), self._arithmetic.autocast():
            self._model.prepared(batch.images, batch.crop, divisor, out=self._images)
        self._labels.copy_(batch.labels, non_blocking=True)
        for name, mask in zip(HIDDEN, self._masks, strict=True):
            if mask is not None:
                fill_dropout_mask(mask, seed, step, name)
        for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self._replay()
        return self._loss.clone()

    def _compute(self) -> None:
        """What is recorded."""
        self._optimizer.zero_grad(set_to_none=True)
        with self._arithmetic.autocast():
            logits = self._model.logits(self._images, self._masks)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(wide, self._labels)
        self._arithmetic.backward(loss)
        with _rates_on_device(self._optimizer, self._rates):
            self._optimizer.step()
        self._loss.copy_(loss.detach())


def learning(model: AlexNet) -> tuple[bool, ...]:
    """Which parameters learn; a frozen layer has no gradient, so its step is another one."""
    return tuple(parameter.requires_grad for parameter in model.parameters())


def record_cuda(compute: Callable[[], None]) -> Replay:
    """Warms up in a stream of its own, as CUDA graphs ask for, and records."""
    current = torch.cuda.current_stream()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it without
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARM_STEPS):
            compute()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Loaders' threads, DALI's among them, go on meanwhile: what they ask of the GPU is no error.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        compute()
    replay: Replay = graph.replay
    return replay


@contextmanager
def _undone(model: AlexNet, optimizer: torch.optim.SGD) -> Iterator[None]:
    """Puts weights, buffers and momentum back, in their own memory, when the block ends.

    The optimiser gets momentum for every parameter first: 0 where there was none, from which the
    first step makes what it makes of none.
    """
    zero_momentum(optimizer)
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [state["momentum_buffer"] for state in optimizer.state.values()]
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)


@contextmanager
def _rates_on_device(optimizer: torch.optim.SGD, rates: list[Tensor]) -> Iterator[None]:
    """The groups' rates as tensors within the block; as numbers, which are saved, after it."""
    numbers = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    try:
        yield
    finally:
        for group, number in zip(optimizer.param_groups, numbers, strict=True):
            group["lr"] = number
