"""The resolved configurations of a sweep's many points, as Hydra would compose them, without composing each.

Hydra takes a tenth of one second per point, a quarter of an hour for ten thousand. Points that make the same choices
(`method=lora task=glue/rte`) differ only in values (`seed=3`), which Hydra sets in the composed configuration. Here
they are set in one copy, point after point, and only the sections that a changed value reaches are resolved again.
"""

import re
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.mistakes import key_of

# What begins an interpolation: a key or a resolver's name, and the character after it.
REFERENCE = re.compile(r"\$\{([^${}:]*)(.?)", re.DOTALL)
# A section that is another one, as data_seed is seed; OmegaConf takes a third of a millisecond to read it.
ALIAS = re.compile(r"\$\{(\w+)\}")
# Resolvers that give the same for the same arguments, and see no other key than those written in them.
PURE_RESOLVERS = ("shipped", "real_data", "by", "training_params", "oc.env", "oc.decode")
WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)")


class Inseparable(Exception):
    """Only Hydra itself can say what these overrides come to."""


class Role(Enum):
    """Effect of an override: it sets a plain value of an existing key, or takes part in composing."""

    value = "value"
    choice = "choice"
    other = "other"


class Resolution:
    """Resolves the points of one sweep.

    Args:
        loader: Hydra's.
        master: The sweep's own configuration, which says what is composed.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        own = list(master.hydra.overrides.hydra)
        # The repository that Hydra would ask, with a search path that the configuration may name.
        _, self.repository = loader._parse_overrides_and_create_caching_repo(master.hydra.job.config_name, own)  # type: ignore[attr-defined]
        self.parser = OverridesParser.create()
        self.read = cache(self._read)
        self.variants: dict[tuple[tuple[str, ...], tuple[str, ...]], Variant | Inseparable] = {}

    def plain(self, overrides: list[str]) -> dict[str, Any]:
        """The resolved sections of a point as plain values, without Hydra's own.

        Sections may be shared between points: they are there to be read.

        Raises:
            Inseparable: Compose the point with Hydra instead. So it is for anything unusual, and for every mistake.
        """
        read = [(override, *self.read(override)) for override in overrides]
        rest = tuple(override for override, role, _ in read if role is not Role.value)
        values = {key_of(override): value for override, role, value in read if role is Role.value}
        place = rest, tuple(key_of(override) for override, role, _ in read if role is Role.value)
        if place not in self.variants:
            self.variants[place] = self._variant(*place)
        variant = self.variants[place]
        if isinstance(variant, Inseparable):
            raise variant
        try:
            return variant.plain(values)
        except (OmegaConfBaseException, RecursionError, ValueError, TypeError) as error:
            del self.variants[place]  # left half-way between two points
            raise Inseparable(str(error)) from error

    def _read(self, override: str) -> tuple[Role, Any]:
        key, _, text = override.partition("=")
        if "/" in key or "@" in key or key.startswith(("+", "~", "hydra.")) or "${" in text or "???" in text:
            group = "@" in key or (key[:1] != "~" and self.repository.group_exists(key_of(override)))
            return (Role.choice if group and "${" not in text else Role.other), None
        # The parser takes a third of a millisecond; it would read this as the same number.
        value = int(text) if WHOLE_NUMBER.fullmatch(text) else self._parse(override)
        if isinstance(value, dict | list):
            return Role.other, None
        return (Role.choice if self.repository.group_exists(key) else Role.value), value

    def _parse(self, override: str) -> Any:
        parsed = self.parser.parse_override(override)
        value = [] if parsed.is_sweep_override() else parsed.value()
        return value if isinstance(value, str | int | float | bool | None) else []

    def _variant(self, rest: tuple[str, ...], keys: tuple[str, ...]) -> "Variant | Inseparable":
        composing = [key_of(override) for override in rest if self.read(override)[0] is Role.other]
        for number, key in enumerate(keys):
            if any(_overlap(key, other) for other in (*composing, *keys[:number])):
                return Inseparable(f"the order of what is said about {key} matters")
        config = self.loader.load_sweep_config(self.master, list(rest))
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        OmegaConf.set_struct(config, True)
        try:
            return Variant(config)
        except Inseparable as reason:
            return reason


class Variant:
    """A composed configuration in which values are set for one point after the other.

    Raises:
        Inseparable: Which sections a value reaches can't be told from the text.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        reads = {str(section): {str(section), *_references(config, str(section))} for section in config}
        for _ in reads:  # a chain of references is no longer than the number of sections
            for section, read in reads.items():
                reads[section] = read.union(*(reads[other] for other in read))
        self.readers = {section: [s for s, read in reads.items() if section in read] for section in reads}
        self.values: dict[str, Any] = {}
        self.sections: dict[str, Any] = {}

    def plain(self, values: dict[str, Any]) -> dict[str, Any]:
        """The resolved sections with these values; every call gives the same keys."""
        changed = [key for key, value in values.items() if key not in self.values or not _same(value, self.values[key])]
        stale = {section for key in changed for section in self.readers.get(key.partition(".")[0], ())}
        for key in changed:
            OmegaConf.update(self.config, key, values[key], merge=True)
        self.values = values
        for section in stale if self.sections else self.readers:
            self.sections[section] = self._resolve(section)
        return dict(self.sections)

    def _resolve(self, section: str) -> Any:
        raw = self.config._get_node(section)._value()  # type: ignore[union-attr]
        if isinstance(raw, str) and (alias := ALIAS.fullmatch(raw)) and alias[1] in self.readers:
            return self._resolve(alias[1])
        node = self.config[section]
        if OmegaConf.is_config(node):
            return OmegaConf.to_container(node, resolve=True, throw_on_missing=True, enum_to_str=True)
        return node.name if isinstance(node, Enum) else node


def _references(config: DictConfig, section: str) -> Iterator[str]:
    """The sections that a section's interpolations name."""
    node = config._get_node(section)
    plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node._value()  # type: ignore[union-attr]
    for text in _texts(plain):
        for name, end in REFERENCE.findall(text):
            name = name.strip()
            if end == ":" and name in PURE_RESOLVERS:
                continue
            root = re.split(r"[.\[]", name)[0]
            if end != "}" or root not in config:
                raise Inseparable(f"{section}: {text}")
            yield root


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _overlap(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _same(value: Any, other: Any) -> bool:
    """Of 1, 1.0 and true each is another value."""
    return type(value) is type(other) and value == other
