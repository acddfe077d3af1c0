"""Who can be measured: this project's backends and its peers, each with what it needs."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.backends import BACKENDS

NO_GPU = "PyTorch sees no GPU here"
OF_A_GPU = {"jpeg": "pixels as the GPU's decoder rounds them, in float16"}
DALI_ORDER = "order of a shuffle buffer over shards read one after another"


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A contestant before it is opened.

    module: has open_feed(name, settings). needs: modules that must be importable. install: the
    command that makes them so. on_gpu: whether it needs one. encodings: of shards that it can
    read. encoding: of those it does. pixels: by encoding, how they differ from the reference's
    for the same draws; order: how that of a pass differs from each image once, at random. What
    is not told does not differ: the pixels of that encoding are the reference's bit for bit.
    """

    name: str
    module: str
    encodings: tuple[str, ...] = ("jpeg",)
    encoding: str = "jpeg"
    needs: tuple[str, ...]
    packages: tuple[str, ...] = ()  # distributions whose versions its result depends on
    install: str
    on_gpu: bool = False
    pixels: Mapping[str, str] = field(default_factory=dict)
    order: str = ""

    @property
    def label(self) -> str:
        """What it is called in tables."""
        return self.name if self.encoding == "jpeg" else f"{self.name}-{self.encoding}"

    @property
    def differs(self) -> str:
        """How what it delivers differs from the reference's; "" where it does not."""
        return "; ".join(filter(None, (self.pixels.get(self.encoding), self.order)))

    @property
    def lack(self) -> str | None:
        """Why it cannot be opened here, with the command that mends it; None where it can."""
        missing = [name for name in self.needs if not _is_importable(name)]
        if missing:
            return f"not installed ({', '.join(missing)}): {self.install}"
        return NO_GPU if self.on_gpu and not _sees_gpu() else None


PEERS = {
    entrant.name: entrant
    for entrant in (
        Entrant(
            name="torch",
            module="tools.measure.peers_torch",
            needs=("torch", "PIL"),
            install="pip install torch pillow",
        ),
        Entrant(
            name="torchvision",
            module="tools.measure.peers_torchvision",
            needs=("torch", "torchvision"),
            packages=("torchvision",),
            install="pip install torchvision",
        ),
        Entrant(
            name="stock-dali",
            module="tools.measure.peers_dali",
            needs=("nvidia.dali",),
            install="pip install 'fullfeed[dali]'",
            order=DALI_ORDER,
        ),
        Entrant(
            name="stock-dali-gpu",
            module="tools.measure.peers_dali",
            needs=("nvidia.dali",),
            install="pip install 'fullfeed[dali]'",
            on_gpu=True,
            pixels=OF_A_GPU,
            order=DALI_ORDER,
        ),
        Entrant(
            name="webdataset",
            module="tools.measure.peers_webdataset",
            needs=("webdataset",),
            packages=("webdataset",),
            install="pip install webdataset",
            order="shards drawn with replacement, then a shuffle buffer: no exact epoch",
        ),
        Entrant(
            name="ffcv",
            module="tools.measure.peers_ffcv",
            encodings=("jpeg", "raw"),
            needs=("ffcv",),
            packages=("ffcv", "numba"),
            install="apt-get install libopencv-dev libturbojpeg0-dev pkg-config && "
            "pip install ffcv",
            pixels={"jpeg": "pixels of libjpeg-turbo's fast DCT, which is less work"},
        ),
    )
}


def our_entrant(backend: str) -> Entrant:
    """This project's loader with a backend of `pipeline.backends.BACKENDS`."""
    assert backend in BACKENDS
    return Entrant(
        name=backend,
        module="tools.measure.ours",
        encodings=("jpeg", "raw"),
        needs=("nvidia.dali",) if backend.startswith("dali") else (),
        install="pip install 'fullfeed[dali]'",
        pixels={**OF_A_GPU, "raw": "pixels in float16"} if backend == "dali-gpu" else {},
    )


def _is_importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent package is absent
        return False


def _sees_gpu() -> bool:
    import torch  # seconds to import, and in every process that a measurement starts

    return torch.cuda.is_available()
