"""Device, precision and quantization of a backbone."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.config.schema import Experiment, Precision, Quantization
from harness.models.architectures import Architecture

if TYPE_CHECKING:
    from torch import device as Device
    from torch import dtype as Dtype
    from torch import nn


def quantization_config(quantization: Quantization, arch: Architecture, dtype: "Dtype", double: bool) -> Any:
    """Options of bitsandbytes for a kind of quantization; null for none. Heads stay in full precision."""
    if quantization is Quantization.none:
        return None
    from transformers import BitsAndBytesConfig

    skip = never_quantized(arch.head)
    if quantization is Quantization.int8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.value,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )


def never_quantized(head: Iterable[str]) -> list[str]:
    """The modules that stay in full precision beside a head's, as transformers' `should_convert_module` reads them."""
    # A pooler lies inside of the backbone: names are matched from their start.
    return [*head, "lm_head", "embed_out", r".*\bpooler"]


def keep_trainable(model: "nn.Module") -> None:
    """Keep 4-bit layers in the layout that has a gradient.

    On a CPU with bfloat16 instructions bitsandbytes repacks the weights at the first evaluation, for good, and
    training can't go on after it.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def choose_device(wanted: str) -> "Device":
    """The device to compute on.

    Raises:
        ConfigError: A GPU was asked for and there is none.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device=cuda: torch sees no GPU here; train.device=auto takes what there is")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def attend_without_plans() -> None:
    """Keep cuDNN out of attention, which torch prefers on new GPUs (2.11 on an H200).

    It makes a plan for each new pair of rows and length, up to a second each (pytorch/pytorch#155958), and batches of
    texts come in many lengths: a first epoch took several times as long as the second. The other fused kernels need
    none.
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def choose_precision(precision: Precision, device: "Device") -> "Dtype | None":
    """Type to compute in where it is smaller than float32; null for float32.

    bfloat16 is 20 to 30 times slower than float32 on a CPU without instructions for it. A GPU that is not here, as a
    plan may ask for, is taken for one that has it.
    """
    import torch

    if precision is Precision.float32:
        return None
    if precision is Precision.bfloat16:
        return torch.bfloat16
    able = device.type == "cuda" and (not torch.cuda.is_available() or torch.cuda.is_bf16_supported())
    return torch.bfloat16 if able else None


def choose_quantization(experiment: Experiment) -> Quantization:
    """The method's wish, else `model.quantization`.

    Raises:
        ConfigError: The two exclude each other, or the backbone has no pretrained weights to quantize.
    """
    wanted, given = experiment.method.quantization(), experiment.model.quantization
    if wanted is not None and given not in (Quantization.none, wanted):
        needed = "unquantized" if wanted is Quantization.none else wanted.value
        raise ConfigError(f"model.quantization={given.value}: method={experiment.method.name} needs {needed} weights")
    quantization = wanted or given
    if quantization is not Quantization.none and not experiment.model.pretrained:
        raise ConfigError(f"model.quantization={quantization.value}: only pretrained weights are quantized")
    return quantization
