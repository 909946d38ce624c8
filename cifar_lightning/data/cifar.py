"""CIFAR-10 and CIFAR-100: torchvision's classes with a download from several addresses."""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torchvision import datasets
from torchvision.datasets.utils import check_integrity, extract_archive

from cifar_lightning.data.download import DownloadError, Patience, RemoteFile, download, one_at_a_time
from cifar_lightning.files import own_folder

log = logging.getLogger(__name__)


class CIFAR10(datasets.CIFAR10):
    """torchvision's CIFAR-10, downloaded from one of several addresses where it is absent.

    The MD5 of the split's files is checked before they are read. Missing or damaged files are unpacked from the
    archive. If there is no archive, it is downloaded.

    Args:
        root: Folder that holds ``cifar-10-batches-py`` or will hold it; or that folder itself, whatever its name; or a
            folder that holds the archive.
        train: Whether to read the training images or the test images.
        download: Whether to download and unpack what is absent.
        urls: Addresses of the archive, tried in this order. None stands for the official one.

    Raises:
        ValueError: If ``root`` is None.
        RuntimeError: If a file is missing or damaged, and ``download`` is false.
        OSError: If the archive cannot be downloaded or unpacked.

    Source:
        Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """

    options: ClassVar[dict[str, Any]] = {"urls": Sequence[str] | None}
    archive: ClassVar[RemoteFile] = RemoteFile(
        name="cifar-10-python.tar.gz",
        size=170_498_071,
        md5=datasets.CIFAR10.tgz_md5,
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    )
    unpacked_bytes: ClassVar[int] = 186_000_000
    base_folder: str
    patience: ClassVar[Patience] = Patience()

    def __init__(
        self, root: str | Path | None, train: bool = True, download: bool = False, urls: Sequence[str] | None = None
    ) -> None:
        if root is None:
            raise ValueError("root must be a folder that holds the data or will hold them, got null")
        self.train = train  # before super().__init__, as _check_integrity needs it
        self.urls = [self.url] if urls is None else list(urls)
        super().__init__(self._home(Path(root).expanduser()), train=train, download=download)

    def _home(self, root: Path) -> Path:
        """The folder that torchvision calls the root: the one that holds ``base_folder``."""
        if root.name == self.base_folder and not (root / self.base_folder).exists():
            return root.parent
        if all((root / name).exists() for name, _ in self._files()):
            self.base_folder = ""  # of this instance: the files are in the root itself
        return root

    def _files(self) -> list[list[str]]:
        """Name and MD5 of each file of the split."""
        return [*(self.train_list if self.train else self.test_list), [self.meta["filename"], self.meta["md5"]]]

    def _unusable(self) -> dict[str, str]:
        """Whether a file is "missing" or "damaged", by its name; files that are right are left out."""
        folder = Path(self.root, self.base_folder)
        return {
            name: "damaged" if (folder / name).is_file() else "missing"
            for name, md5 in self._files()
            if not check_integrity(folder / name, md5)
        }

    def _check_integrity(self) -> bool:
        return not self._unusable()

    def download(self) -> None:
        """Unpack missing or damaged files from the archive, and download the archive if it is absent.

        Raises:
            OSError: If there is too little disk space, no address gives the archive, or it cannot be written.
        """
        if self._check_integrity():  # nothing is written then, as the folder may be read-only
            return
        home = Path(self.root)
        home.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(home / f".{self.archive.name}.lock"):
            unusable = self._unusable()  # again, as the process that held the lock may have brought them
            if not unusable:
                return
            for name, fault in unusable.items():
                if fault == "damaged":
                    log.info("damaged   %s, unpacked again", home / self.base_folder / name)
            self._unpack(self._archive(home), home)
        if unusable := self._unusable():
            raise DownloadError(f"after {home / self.archive.name} was unpacked, {_listed(unusable)}")

    def _archive(self, home: Path) -> Path:
        """Path of the archive, whose checksums are right. It is downloaded if need be."""
        path = home / self.archive.name
        if path.is_file():
            if (fault := self.archive.fault(path)) is None:
                self._require_room(home, self.unpacked_bytes)
                return path
            log.info("damaged   %s has %s, downloaded again", path, fault)
        part = path.with_name(f"{path.name}.part")
        arrived = part.stat().st_size if part.exists() else 0
        self._require_room(home, self.archive.size - arrived + self.unpacked_bytes)
        try:
            return download(self.archive, self.urls, home, patience=self.patience)
        except DownloadError as error:
            end = "" if str(error).endswith("?") else "."
            raise DownloadError(
                f"{_listed(self._unusable())} in {home / self.base_folder}, and the archive cannot be downloaded: "
                f"{error}{end} By hand: get {self.archive.name} ({self.archive.size / 1e6:.0f} MB) from {self.url} and "
                f"put it into {home.resolve()}, or name the folder that holds {self.base_folder or home.name}/"
                f"{self._files()[0][0]} with data.root=; or try the project with data=synthetic"
            ) from error

    def _require_room(self, home: Path, needed: int) -> None:
        if (free := shutil.disk_usage(home).free) < needed:
            raise DownloadError(
                f"{home.resolve()} has {free / 1e6:.0f} MB free, and {needed / 1e6:.0f} MB are needed: make room, or "
                "name another folder with data.root="
            )

    def _unpack(self, archive: Path, home: Path) -> None:
        """Unpack beside the data, then move each file into its place, so that no process reads half a file."""
        log.info("unpacking %s", archive)
        beside = home / f".{self.archive.name}.unpacking"
        own_folder(beside)
        shutil.rmtree(beside, ignore_errors=True)  # a killed process may have left it
        try:
            extract_archive(str(archive), str(beside))
            into = home / self.base_folder
            into.mkdir(exist_ok=True)
            for path in (beside / type(self).base_folder).iterdir():
                os.replace(path, into / path.name)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


class CIFAR100(CIFAR10, datasets.CIFAR100):
    """torchvision's CIFAR-100, with its 100 fine classes, downloaded as ``CIFAR10`` of this module is."""

    archive: ClassVar[RemoteFile] = RemoteFile(
        name="cifar-100-python.tar.gz",
        size=169_001_437,
        md5=datasets.CIFAR100.tgz_md5,
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    )


def _listed(unusable: dict[str, str]) -> str:
    """In words: ``data_batch_1, data_batch_2 are missing and test_batch is damaged``."""
    faults = {fault: [name for name, found in unusable.items() if found == fault] for fault in unusable.values()}
    return " and ".join(
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} {fault}" for fault, names in faults.items()
    )
