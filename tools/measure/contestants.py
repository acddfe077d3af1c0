"""Who can be measured: this project's backends and its peers, each with what it needs."""

import importlib.util
from dataclasses import dataclass

from pipeline.backends import BACKENDS


NO_GPU = "PyTorch sees no GPU here"


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A contestant before it is opened.

    module: has open_feed(name, settings). needs: modules that must be importable. install: the
    command that makes them so. on_gpu: whether it needs one. encodings: of shards that it can
    read. encoding: of those it does.
    """

    name: str
    module: str
    encodings: tuple[str, ...] = ("jpeg",)
    encoding: str = "jpeg"
    needs: tuple[str, ...]
    packages: tuple[str, ...] = ()  # distributions whose versions its result depends on
    install: str
    on_gpu: bool = False

    @property
    def label(self) -> str:
        """What it is called in tables."""
        return self.name if self.encoding == "jpeg" else f"{self.name}-{self.encoding}"

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
        ),
        Entrant(
            name="stock-dali-gpu",
            module="tools.measure.peers_dali",
            needs=("nvidia.dali",),
            install="pip install 'fullfeed[dali]'",
            on_gpu=True,
        ),
        Entrant(
            name="webdataset",
            module="tools.measure.peers_webdataset",
            needs=("webdataset",),
            packages=("webdataset",),
            install="pip install webdataset",
        ),
        Entrant(
            name="ffcv",
            module="tools.measure.peers_ffcv",
            encodings=("jpeg", "raw"),
            needs=("ffcv",),
            packages=("ffcv", "numba"),
            install="apt-get install libopencv-dev libturbojpeg0-dev pkg-config && "
            "pip install ffcv",
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
    )


def _is_importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent package is absent
        return False


def _sees_gpu() -> bool:
    import torch  # seconds to import, and in every process that a measurement starts

    return torch.cuda.is_available()
