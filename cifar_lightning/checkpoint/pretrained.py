"""ImageNet weights of torchvision's networks: fetched once, checked, and put into a network."""

import logging
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from cifar_lightning.data.download import DownloadError, RemoteFile, announced, download, one_at_a_time
from cifar_lightning.errors import one_line
from cifar_lightning.models.torchvision_zoo import TorchvisionNet

log = logging.getLogger(__name__)


def load_pretrained(net: TorchvisionNet) -> None:
    """Load the ImageNet weights of all layers but the head; download them where they are absent.

    They are kept where ``torch.hub`` keeps them, so that other programs use the same files.

    Raises:
        OSError: If they are absent and cannot be downloaded, or their file is damaged.
        ValueError: If the network has other layers than the published one.
    """
    url = net.weights.url
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    digits = file.stem.rpartition("-")[2]  # the first ones of the file's SHA-256
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(file.with_name(f".{file.name}.cifar-lightning.lock")):
            if not file.exists():
                download(announced(url, sha256=digits), [url], file.parent)
    except DownloadError as error:
        raise OSError(
            f"the ImageNet weights of {net.arch} cannot be downloaded: {one_line(error)}; put {file.name} into "
            f"{file.parent}, or train from scratch with model.pretrained=false"
        ) from error
    if (fault := RemoteFile(file.name, file.stat().st_size, None, digits).fault(file)) is not None:
        raise OSError(f"{file} is damaged, delete it: {fault}")
    new = net.take_weights(_read(file))
    log.info("weights   ImageNet's for all layers but %s", ", ".join(new))


def _read(file: Path) -> Mapping[str, Tensor]:
    """The weights in a file, of which nothing else is loaded.

    Raises:
        OSError: If it holds something else.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # any error of unpickling
        raise OSError(f"{file} is damaged, delete it ({type(error).__name__})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise OSError(f"{file} holds no weights, delete it")
    return state
