"""Sizes of methods: the hyper-parameter that sets what a method trains, and the values that it can have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# No method asks for more of anything: a bank of vectors or a list of frequencies comes nearest.
LARGEST = 2**24


def whole(values: dict[str, Any], width: int) -> Sequence[int]:
    """Every whole number."""
    return range(1, LARGEST)


def from_two(values: dict[str, Any], width: int) -> Sequence[int]:
    """Every whole number but 1."""
    return range(2, LARGEST)


def multiples_of(key: str) -> Callable[[dict[str, Any], int], Sequence[int]]:
    """Multiples of another hyper-parameter of the method."""
    return lambda values, width: range(values[key], LARGEST, values[key])


def divisors(values: dict[str, Any], width: int) -> Sequence[int]:
    """Divisors of the backbone's hidden width."""
    return [size for size in range(1, width + 1) if width % size == 0]


def falling_divisors(values: dict[str, Any], width: int) -> Sequence[int]:
    """The same, where a larger block trains less."""
    return divisors(values, width)[::-1]


@dataclass(frozen=True)
class Knob:
    """The hyper-parameter that sets a method's size.

    Attributes:
        field: Its name, beside `target_modules` and the like.
        sizes: The values it can have, in the order of what they train, given the others and the hidden width.
        beside: What else follows from it.
    """

    field: str
    sizes: Callable[[dict[str, Any], int], Sequence[int]] = whole
    beside: Callable[[int], dict[str, Any]] = lambda size: {}
