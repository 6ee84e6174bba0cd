"""Compacter: bottleneck adapters of parameterized hypercomplex layers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.config.errors import ConfigError
from harness.methods.bottleneck import Houlsby
from harness.methods.size import Knob, multiples_of

if TYPE_CHECKING:
    from harness.methods.layers import Bottleneck
    from harness.models.architectures import Backbone


@dataclass(frozen=True)
class Compacter(Houlsby):
    """Houlsby's adapters with W = sum_i A_i (x) (s_i t_i) for both projections (Karimi Mahabadi et al. 2021).

    arXiv 2106.04647, section 3: Kronecker products of A_i, n x n, shared by all layers, with matrices of rank one.

    Attributes:
        phm_dim: The number n of products. A bottleneck given by reduction_factor is rounded up to a multiple of it.
    """

    phm_dim: int

    def size(self) -> Knob:
        return Knob("bottleneck_dim", multiples_of("phm_dim"), lambda size: {"reduction_factor": None})

    def check(self, key: str) -> None:
        super().check(key)
        if self.phm_dim < 1:
            raise ConfigError(f"{key}.phm_dim={self.phm_dim}: 1 or more is needed")

    def bottleneck(self, width: int) -> int:
        bottleneck = super().bottleneck(width)
        if self.bottleneck_dim is None:
            bottleneck = -(-bottleneck // self.phm_dim) * self.phm_dim
        for what, value in (("bottleneck", bottleneck), ("hidden width", width)):
            if value % self.phm_dim:
                raise ConfigError(f"method.phm_dim={self.phm_dim}: it does not divide the {what} {value}")
        return bottleneck

    def expected_parameters(self, backbone: "Backbone") -> int:
        """n^3 in all, and at each site 2 (width + bottleneck) factors and the biases, bottleneck + width."""
        width = backbone.model.config.hidden_size
        own = sum(backbone.model.get_parameter(name).numel() for name in self.selects(backbone))
        return self.phm_dim**3 + len(self.sites(backbone)) * 3 * (width + self.bottleneck(width)) + own

    def layers(self, backbone: "Backbone") -> "dict[str, Bottleneck]":
        """Adapters that share one rule; of the projection up one factor is zero, as `Bottleneck` wants it.

        The authors draw the rule near zero (standard deviation 1e-4), which makes the adapter nearly the identity;
        with the zero that is not needed, and 1 / sqrt(n) gives the projection down a usual scale.
        """
        import torch
        from torch import nn

        from harness.methods.layers import Bottleneck, PHMLinear

        width, n = backbone.model.config.hidden_size, self.phm_dim
        bottleneck, activation = self.bottleneck(width), self.activation.function()
        rule = nn.Parameter(torch.empty(n, n, n, device=backbone.model.device).normal_(std=n**-0.5))
        adapters = {}
        for site in self.sites(backbone):
            down, up = PHMLinear(rule, width, bottleneck), PHMLinear(rule, bottleneck, width)
            nn.init.zeros_(up.right)
            adapters[site] = Bottleneck(down, activation, up, 1.0)
        return adapters
