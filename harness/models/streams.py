"""Streams of random numbers: several runs in one process, each drawing what it would draw alone."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Stream:
    """Random numbers of one run: inside `with stream:` torch's generators are where this run left them.

    It begins where torch's generators are when it is made. It is entered once at a time.

    Args:
        device: The run's; its generator is kept beside that of the CPU.
    """

    def __init__(self, device: "torch.device") -> None:
        self._gpu = device if device.type == "cuda" else None
        self.state = self._read()
        self._outside: list[Any] = []

    def __enter__(self) -> "Stream":
        self._outside = self._read()
        self._write(self.state)
        return self

    def __exit__(self, *_: object) -> None:
        self.state = self._read()
        self._write(self._outside)

    def _read(self) -> list[Any]:
        import torch

        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(self._gpu)] if self._gpu else [])]

    def _write(self, state: list[Any]) -> None:
        import torch

        torch.set_rng_state(state[0])
        if self._gpu:
            torch.cuda.set_rng_state(state[1], self._gpu)
