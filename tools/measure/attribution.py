"""Why training is slower than its step: the time of a step given to what was short. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from pipeline.waits import Waits

HOST_BOUND = 0.95  # share of the step's time in which the host is still asking for it


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Times of a step, in any unit. real: with real data; step: on batches that lie on the
    device; beside: on those while the decoder works on bytes from memory, None where it was not
    measured.

    waits: of the rank that waited longest. gpu_decodes: whether a GPU does; on_gpu: whether
    batches go to one; raw: whether the shards hold raw images. issued: until the host had asked
    for a step on a lying batch.
    """

    real: float
    step: float
    beside: float | None
    waits: Waits
    gpu_decodes: bool
    on_gpu: bool
    raw: bool
    issued: float


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Of the time of a step with real data, 0..1; together they are 1."""

    step: float  # the step itself, alone on its device: the fed ratio
    storage_read: float  # waiting for bytes
    host_decode: float  # waiting for pixels from the CPU
    device_decode: float  # waiting for pixels from the GPU
    contention: float  # the step slowed by decoding beside it
    hand_over: float  # tensors given from thread to thread, or to the GPU
    python: float  # the rest of the calling thread's time


def attribute(measured: Measured) -> Shares:
    """What real data costs beyond the step, given to its causes.

    Contention is what the step lost beside the decoder without ever waiting for it. The waits
    share what is left of the shortfall; where they are more (a GPU may go on while the host
    waits), in proportion. What no wait explains is the calling thread's own work.
    """
    shortfall = max(0.0, measured.real - measured.step)
    beside = measured.step if measured.beside is None else measured.beside
    contention = min(max(0.0, beside - measured.step), shortfall)
    waits = _waits(measured)
    left, waited = shortfall - contention, sum(waits.values())
    scale = left / waited if waited > left else 1.0
    whole = measured.step + shortfall
    return Shares(
        step=measured.step / whole,
        contention=contention / whole,
        python=max(0.0, left - waited) / whole,
        **{name: seconds * scale / whole for name, seconds in waits.items()},
    )


def _waits(measured: Measured) -> dict[str, float]:
    """Seconds per step by cause. A GPU waits for its own decoder, or for a CPU's pixels."""
    waits, decoded = measured.waits, measured.waits.decode_wait_seconds
    if measured.gpu_decodes:
        device, handed = decoded + waits.device_wait_seconds, waits.handover_wait_seconds
        host = 0.0
    else:
        device, handed = 0.0, waits.handover_wait_seconds + waits.device_wait_seconds
        host = decoded
    return {
        "storage_read": waits.read_wait_seconds,
        "host_decode": host,
        "device_decode": device,
        "hand_over": handed,
    }


RAW_SHARDS = "prepare raw shards (prepare_shards.py --encoding raw), which need no decoder"
FIXED: Mapping[str, str] = {
    "storage_read": "storage is short: bytes come too late. Bring the shards to a fast local disk "
    "(--stage-dir DIR), or have more steps read ahead (--prefetch 6)",
    "hand_over": "the way from the decoder to the step is short: tensors come too late. Have more "
    "steps rendered ahead (--prefetch 6), or fewer, larger steps (--batch-size)",
    "python": "the interpreter is short: the thread that trains has other work than the step. "
    "Have fewer, larger steps (--batch-size)",
}

NOT_TOLD_APART = (
    "the interpreter or the cores are short: the thread that trains has other work than the step, "
    "or what renders slows it, which is not measured where shards are staged or images resident. "
    "Have fewer, larger steps (--batch-size), or fewer loader threads (--loader-threads)"
)


def remedy(cause: str, *, gpu_decodes: bool, on_gpu: bool, raw: bool) -> str:
    """Which resource is short, and what would help that is not done yet.

    raw: whether the shards hold raw images.
    """
    if cause in FIXED:
        return FIXED[cause]
    options = {
        "give decoding more cores (--loader-threads)": cause == "host_decode",
        "leave fewer cores to decoding (--loader-threads)": cause == "contention"
        and not gpu_decodes,
        "measure which threads and which share of the GPU's JPEG engine are fastest "
        "(--calibrate)": cause == "device_decode",
        "decode on a GPU (--backend dali-gpu)": cause == "host_decode"
        and on_gpu and not gpu_decodes and not raw,
        RAW_SHARDS: not raw,
        "decode on the CPU (--backend dali-cpu)": cause == "contention" and gpu_decodes,
    }  # fmt: skip
    told = {
        "host_decode": "CPU cores are short: decoding does not keep up",
        "device_decode": "the GPU's decoder is short: pixels come too late",
        "contention": f"{'the GPU is' if gpu_decodes else 'CPU cores are'} short: decoding slows "
        "the step beside it, without ever making it wait",
    }[cause]
    helpful = ", or ".join(option for option, applies in options.items() if applies)
    return f"{told}. {helpful[:1].upper()}{helpful[1:]}"


def shortest(shares: Shares) -> str:
    """What costs most beside the step itself, by the name of the field; "step" where nothing."""
    causes = {f.name: getattr(shares, f.name) for f in fields(shares) if f.name != "step"}
    worst = max(causes, key=lambda name: causes[name])
    return worst if causes[worst] > 0 else "step"


def advise(measured: Measured, shares: Shares, *, fed: bool) -> str:
    """One line: which resource is short, and which flag would help. fed: whether enough is."""
    worst = shortest(shares)
    if fed or worst == "step":
        if measured.on_gpu and measured.issued >= HOST_BOUND * measured.step:
            return (
                "fed: the step itself is the limit, and in it the host, which is busy asking for "
                "kernels; fewer, larger steps (--batch-size) would help"
            )
        return "fed: the step itself is the limit; a faster device or --precision would help"
    told = remedy(
        worst, gpu_decodes=measured.gpu_decodes, on_gpu=measured.on_gpu, raw=measured.raw
    )
    if worst == "python" and measured.beside is None:
        told = NOT_TOLD_APART
    resource, _, rest = told.partition(":")
    return f"{resource} ({getattr(shares, worst):.1%} of the time):{rest}"
