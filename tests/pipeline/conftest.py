"""What tests share: pictures, loaders, object stores on this machine (a web server, S3)."""

import io
import json
import struct
import subprocess
import sys
import threading
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pipeline.transfer
from pipeline.images import Pixels
from pipeline.loader import Batch, Loader, LoaderConfig
from pipeline.manifest import open_dataset
from pipeline.originals import FilePlaces, Listing, Names
from tests.conftest import photograph, write_source

BATCH = 8
ROOT = Path(__file__).parents[2]
PRINT_EPOCH = "with Loader(config) as loader: print([batch.ids.tolist() for batch in loader])"
Open = Callable[..., Loader]
FAULTS = {  # of a web server, and what a message says of each
    "refuse": "503",
    "cut": "ended after|not completed|payload",
    "stall": "stalled: no byte for",
    "other bytes": "SHA-256 is",
    "too long": "more than the|ended after",
}


class WebStore:
    """A folder as an https-like store: files by name and nothing else, with faults to come.

    faults: name -> what the next requests for it get (keys of FAULTS), in order. num_requests: by
    name. A stalled request goes on when `go_on` is set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: defaultdict[str, list[str]] = defaultdict(list)
        self.num_requests: Counter[str] = Counter()
        self.stalled, self.go_on = threading.Event(), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/some/shards"

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        store = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.removeprefix("/some/shards/")
                store.num_requests[path] += 1
                faults = store.faults[path]
                store.answer(self, path, faults.pop(0) if faults else "")

            def log_message(self, *arguments: Any) -> None:
                pass

        return Handler

    def answer(self, request: BaseHTTPRequestHandler, path: str, fault: str) -> None:
        """Sends the file, or what `fault` makes of it."""
        file = self.folder / path
        if fault == "refuse" or not file.is_file():
            request.send_error(503 if fault else 404)
            return
        data = file.read_bytes()
        half = len(data) // 2
        if fault == "other bytes":
            data = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
        if fault == "too long":
            data += data
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        try:
            request.wfile.write(data[:half])
            request.wfile.flush()
            if fault == "stall":
                self.stalled.set()
                self.go_on.wait(600)
            if fault != "cut":
                request.wfile.write(data[half:])
        except OSError:
            pass  # who asked for it has gone


@pytest.fixture
def web_store(shard_folder: Path) -> Iterator[WebStore]:
    """`shard_folder` on a web server of this machine."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed (fullfeed[https])")
    pytest.importorskip("upath", reason="universal_pathlib is not installed (fullfeed[https])")
    store = WebStore(shard_folder)
    yield store
    store.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transfers that give up soon."""
    monkeypatch.setattr(pipeline.transfer, "FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(pipeline.transfer, "STALL_SECONDS", 0.4)


@pytest.fixture
def s3_server() -> Iterator[dict[str, str]]:
    """The environment in which s3:// leads to an empty bucket `bucket` on this machine."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed (fullfeed[slow])")
    boto3: Any = pytest.importorskip("boto3")
    s3fs: Any = pytest.importorskip("s3fs", reason="s3fs is not installed (fullfeed[s3])")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        reset = urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()  # servers of one process share their buckets
        boto3.client("s3").create_bucket(Bucket="bucket")
        s3fs.S3FileSystem.clear_instance_cache()  # those of an earlier test know its port
        yield environment
    server.stop()


@pytest.fixture(params=["numpy", "dali-cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    """A backend that needs no GPU."""
    if request.param.startswith("dali"):
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    return str(request.param)


def opener(**defaults: Any) -> Iterator[Open]:
    """Opens loaders (numpy unless asked otherwise) and closes them afterwards."""
    loaders: list[Loader] = []

    def open_loader(folder: Path, **changes: Any) -> Loader:
        chosen: dict[str, Any] = {"backend": "numpy", **defaults, **changes}
        loaders.append(Loader(LoaderConfig(shards=folder, **chosen)))
        return loaders[-1]

    yield open_loader
    for loader in loaders:
        loader.close()


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens loaders of batch 8 and closes them after the test."""
    yield from opener(batch_size=BATCH, threads=2)


def kept(batch: Batch) -> tuple[bytes, list[int], list[int], list[list[int]]]:
    """All of a batch, comparable and independent of the loader's buffers."""
    images = batch.images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    return images, batch.labels.tolist(), batch.ids.tolist(), batch.crop.tolist()


def picture(width: int = 93, height: int = 61, seed: int = 0) -> Image.Image:
    return Image.fromarray(photograph(np.random.default_rng(seed), width, height))


def by_pillow(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def segments(jpeg: bytes) -> list[tuple[int, bytes]]:
    """The marker segments of a JPEG up to its first scan: (marker, payload)."""
    assert jpeg[:2] == b"\xff\xd8"
    found, at = [], 2
    while True:
        mark, marker, length = struct.unpack(">BBH", jpeg[at : at + 4])
        assert mark == 0xFF
        found.append((marker, jpeg[at + 4 : at + 2 + length]))
        at += 2 + length
        if marker == 0xDA:
            return found


def small_source(root: Path) -> Path:
    return write_source(root, train_per_class=4, val_per_class=1)


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def listing_of(names: Iterable[bytes], labels: Sequence[int]) -> Listing:
    packed = Names.pack(names)
    places = FilePlaces(Path("nowhere"), packed)
    return Listing(names=packed, labels=np.array(labels, np.int32), places=places)


def start_loader(url: str, stage: Path, rest: str = PRINT_EPOCH) -> "subprocess.Popen[bytes]":
    """A process that opens a loader with staging, and prints the ids of an epoch."""
    program = (
        # A job in the background of a script begins with SIGINT ignored, and so do its children.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from pathlib import Path; from pipeline.locations import location\n"
        "from pipeline.loader import Loader, LoaderConfig\n"
        "config = LoaderConfig(shards=location(sys.argv[1]), batch_size=4, backend='numpy',\n"
        "    threads=1, prefetch=1, stage_dir=Path(sys.argv[2]))\n"
        f"{rest}"
    )
    command = [sys.executable, "-c", program, url, str(stage)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=ROOT)


def sizes(folder: Path, split: str = "train") -> list[int]:
    return [shard.bytes for shard in open_dataset(folder).split(split).shards]


def staged_numbers(stage: Path) -> set[int]:
    return {int(path.name.split("-")[2][:6]) for path in stage.glob("*.tar")}
