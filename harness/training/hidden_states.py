"""Hidden states of texts in files: of each text its real tokens', mapped into memory, so that processes share them.

A file is a plain safetensors file: `hidden` (tokens x width), `digests` (texts x 16 bytes) and `ends` (texts), and in
its metadata a checksum of these. It is written beside its place and renamed, under a lock of the operating system, so
that of several processes that want it one computes, and a kill leaves nothing that passes for whole. What is mapped is
never written to.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from torch import device as Device

log = logging.getLogger(__name__)

DIGEST_BYTES = 16
ENDING = ".safetensors"
PARTIAL = ".partial"
CHECKSUM = "crc32"
GIGABYTE = 10**9
# The disk is left this share of its free bytes: others write too.
SPARED = 0.1
# Tokens of the batches that files are computed in, whatever a run's own batches are: the same files, the same bits.
BATCH_TOKENS = 4096
TYPES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}

Inputs = dict[str, Any]


class NoRoom(Exception):
    """A file would be too large; the message says for what."""


@dataclass(frozen=True)
class Text:
    """A text of a batch, without its padding.

    Attributes:
        digest: Of everything that a model is given for it.
        place: Where its tokens lie in the padded row.
        inputs: What the model is given for it, by name.
    """

    digest: bytes
    place: slice
    inputs: "dict[str, NDArray[np.int64]]"


def texts_of(inputs: Inputs) -> list[Text] | None:
    """The texts of a batch; null where they can't be told from padding: without a mask, or with holes in it."""
    import numpy as np

    # Not by `tensor.numpy()`, which makes a tensor in between that the meter of a step would count.
    arrays = {name: np.from_dlpack(tensor.cpu()) for name, tensor in inputs.items()}
    shape = arrays["input_ids"].shape
    if "attention_mask" not in arrays or len(shape) != 2 or any(array.shape != shape for array in arrays.values()):
        return None
    mask = arrays.pop("attention_mask")
    names, found = sorted(arrays), []
    for row, real in enumerate(mask):
        first, count = int(real.argmax()), int(real.sum())
        place = slice(first, first + count)
        if not count or not real[place].all():
            return None
        own = {name: np.ascontiguousarray(arrays[name][row, place]) for name in names}
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for name in names:
            digest.update(name.encode())
            digest.update(own[name].tobytes())
        found.append(Text(digest.digest(), place, own))
    return found


class HiddenStates:
    """Hidden states of many texts, in one file or several."""

    def __init__(self, device: "Device") -> None:
        self.device = device
        # Not as tensors, whose storages would count as memory that a step takes; as whole numbers, since numpy has no
        # bfloat16.
        self._files: list[NDArray[Any]] = []
        self._like: Tensor | None = None
        self._places: dict[bytes, tuple[int, int, int]] = {}

    def add(self, path: Path) -> int:
        """Map a file into memory; returns its bytes.

        Raises:
            OSError, ValueError: It is not there, or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                hidden, digests, ends = (file.get_tensor(name) for name in ("hidden", "digests", "ends"))
                written = (file.metadata() or {}).get(CHECKSUM)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        found = 0
        for content in (_as_numbers(hidden), digests.numpy(), ends.numpy()):
            found = zlib.crc32(content.data, found)
        if written != _checksum(found):
            raise ValueError(f"{path} is damaged: its contents are not those that were written")
        number, start = len(self._files), 0
        self._files.append(_as_numbers(hidden))
        self._like = hidden[:0]
        for digest, end in zip(digests.numpy(), ends.tolist(), strict=True):
            self._places.setdefault(digest.tobytes(), (number, start, end))
            start = end
        return path.stat().st_size

    def known(self, inputs: Inputs) -> "Tensor | None":
        """Hidden states of a batch (batch x sequence x width), zeros for padding; null where a text has none here."""
        import torch

        texts = texts_of(inputs)
        if texts is None or any(text.digest not in self._places for text in texts):
            return None
        assert self._like is not None
        hidden = torch.zeros((*inputs["input_ids"].shape, self._like.shape[-1]), dtype=self._like.dtype)
        numbers = _as_numbers(hidden)
        for row, text in enumerate(texts):
            number, start, end = self._places[text.digest]
            numbers[row, text.place] = self._files[number][start:end]
        return hidden.to(self.device)


@dataclass(frozen=True)
class Folder:
    """A folder of such files.

    Attributes:
        most: Bytes that all of them may take together; those that were used longest ago go first.
    """

    path: Path
    most: int

    def file(self, key: str) -> Path:
        return self.path / f"{key}{ENDING}"

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Wait until no other process holds the file; where a file system has no locks, go on without."""
        with self._held("locks", int(key[:15], 16), "another process computes the features; they are waited for"):
            yield

    @contextmanager
    def place(self, path: Path, size: int, needed: set[Path]) -> Iterator[BinaryIO]:
        """A file to write, which takes its place once all is written; of one that is not, nothing is left.

        Its bytes count from the first on: processes that write at the same time don't exceed the limit together.

        Args:
            needed: Files that stay.

        Raises:
            NoRoom: It would not fit.
        """
        partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
        try:
            with self._held("room", 0, "another process makes room"):
                self.make_room(size, needed)
                file = partial.open("wb")
                with suppress(OSError):  # while it is held, its writer lives
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.truncate(size)
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def _held(self, name: str, place: int, told: str) -> Iterator[None]:
        """Hold one byte of a file: a process that closes a file lets go of all that it holds of it."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):
                try:
                    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                except (BlockingIOError, PermissionError):
                    log.info(told)
                    fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, place)
            yield
        finally:
            os.close(descriptor)

    def make_room(self, size: int, needed: set[Path]) -> None:
        """Remove what was used longest ago, as far as a file of this size asks for it.

        Args:
            needed: Files that stay.

        Raises:
            NoRoom: It would not fit even so.
        """
        kept, coming, stale = 0, 0, []
        for path in self.path.glob(f"*{ENDING}*"):
            with suppress(FileNotFoundError):  # another process makes room too
                found = path.stat()
                if path.suffix == PARTIAL:
                    if not _left_behind(path):
                        kept += found.st_size
                        coming += max(0, found.st_size - 512 * found.st_blocks)
                elif path in needed:
                    kept += found.st_size
                else:
                    stale.append((found.st_mtime, found.st_size, path))
        free = int((1 - SPARED) * shutil.disk_usage(self.path).free) - coming
        used = kept + sum(bytes_of for _, bytes_of, _ in stale)
        for _, bytes_of, oldest in sorted(stale):
            if used + size <= self.most and size <= free:
                break
            log.info("%s is removed: other features need its %.2f GB", oldest, bytes_of / GIGABYTE)
            oldest.unlink(missing_ok=True)
            used, free = used - bytes_of, free + bytes_of
        if used + size > self.most:
            raise NoRoom(
                f"{size / GIGABYTE:.2f} GB are needed beside {kept / GIGABYTE:.2f} GB of this run and of those that "
                f"write now, and train.features_gigabytes={self.most / GIGABYTE:g} allows no more"
            )
        if size > free:
            raise NoRoom(f"{size / GIGABYTE:.2f} GB are needed, and {self.path} has room for {free / GIGABYTE:.2f}")


def _left_behind(partial: Path) -> bool:
    """Remove a file whose writer was killed; false where it is written to, or nobody can tell."""
    try:
        with partial.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def size_of(texts: list[Text], sample: "Tensor") -> int:
    """Bytes of a file of these texts."""
    tokens = sum(text.place.stop - text.place.start for text in texts)
    content = tokens * sample.shape[-1] * sample.element_size() + len(texts) * (DIGEST_BYTES + 8)
    return len(_header(tokens, len(texts), sample)) + content


def write(file: BinaryIO, texts: list[Text], sample: "Tensor", compute: "Callable[[Inputs], Tensor]") -> None:
    """Compute the hidden states of texts and write them, with their checksum last.

    Texts of one length are computed together, so that nothing is padded.

    Args:
        sample: Hidden states of their width and type.
        compute: Gives those of a batch, on its device.
    """
    import numpy as np

    texts = sorted(texts, key=lambda text: (-len(text.inputs["input_ids"]), text.digest))
    lengths = [len(text.inputs["input_ids"]) for text in texts]
    checksum = 0

    def put(content: bytes) -> None:
        nonlocal checksum
        checksum = zlib.crc32(content, checksum)
        file.write(content)

    file.write(_header(sum(lengths), len(texts), sample))
    for batch in _batches(texts):
        put(_bytes(compute(batch)))
    put(b"".join(text.digest for text in texts))
    put(np.cumsum(lengths, dtype=np.int64).tobytes())
    file.seek(0)
    file.write(_header(sum(lengths), len(texts), sample, checksum))


def _header(tokens: int, texts: int, sample: "Tensor", checksum: int = 0) -> bytes:
    """The beginning of a safetensors file, whose tensors follow in this order; as long whatever the checksum."""
    width = sample.shape[-1]
    hidden, digests = tokens * width * sample.element_size(), texts * DIGEST_BYTES
    places = [0, hidden, hidden + digests, hidden + digests + 8 * texts]
    told = {
        "hidden": (TYPES[str(sample.dtype)], [tokens, width]),
        "digests": ("U8", [texts, DIGEST_BYTES]),
        "ends": ("I64", [texts]),
    }
    content: dict[str, Any] = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": places[number : number + 2]}
        for number, (name, (dtype, shape)) in enumerate(told.items())
    }
    header = json.dumps({"__metadata__": {CHECKSUM: _checksum(checksum)}, **content}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _checksum(value: int) -> str:
    return f"{value:08x}"


def _batches(texts: list[Text]) -> Iterator[Inputs]:
    import numpy as np
    import torch

    for length, alike in groupby(texts, key=lambda text: len(text.inputs["input_ids"])):
        rows, size = list(alike), max(1, BATCH_TOKENS // length)
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            inputs = {name: torch.from_numpy(np.stack([row.inputs[name] for row in some])) for name in some[0].inputs}
            yield {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}


def _bytes(hidden: "Tensor") -> bytes:
    return _as_numbers(hidden.contiguous().cpu()).tobytes()


def _as_numbers(tensor: "Tensor") -> "NDArray[Any]":
    """The same memory as numpy's whole numbers of as many bytes."""
    import torch

    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()]).numpy()
