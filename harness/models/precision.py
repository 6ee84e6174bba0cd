"""Device, precision and quantization of a backbone."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.config.errors import ConfigError
from harness.config.schema import Experiment, Precision, Quantization
from harness.models import cpu_precision
from harness.models.architectures import Architecture
from harness.models.cpu_precision import Choice

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


def device_type(wanted: str) -> str:
    """What `train.device` comes to on this machine, cpu or cuda; torch is asked only where there is a question."""
    return choose_device(wanted).type if wanted == "auto" else wanted


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


def choose_precision(
    precision: Precision, device: "Device", quantization: Quantization = Quantization.none
) -> "Dtype | None":
    """Type to compute in where it is smaller than float32; null for float32.

    Args:
        quantization: Of the backbone, whose packed weights a CPU unpacks into float32.

    Raises:
        ConfigError: The environment fixes the precision of CPUs to something else than one.
    """
    import torch

    if precision is Precision.auto:
        precision = automatic(device.type, quantization).precision
    return torch.bfloat16 if precision is Precision.bfloat16 else None


def automatic(device: str, quantization: Quantization) -> Choice:
    """What `train.precision=auto` takes on a kind of device, and why.

    bfloat16 gains nothing on a CPU without instructions for it. A GPU that is not here, as a plan may ask for, is taken
    for one that has it.

    Args:
        device: cpu or cuda.

    Raises:
        ConfigError: The environment fixes the precision of CPUs to something else than one.
    """
    if device == "cpu":
        if quantization is not Quantization.none:
            return Choice(Precision.float32, f"{quantization.value} weights are unpacked into it on a CPU")
        return cpu_precision.choose()
    import torch

    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        return Choice(Precision.float32, "this GPU has no bfloat16")
    return Choice(Precision.bfloat16, "a GPU has it")


def settled(experiment: Experiment, device: str) -> tuple[Experiment, str | None]:
    """The experiment with the precision that it computes in on a kind of device, and why that is what auto took.

    Identities and records hold what was taken: two machines that take different ones must not mix their runs. Null for
    a precision that was asked for by its name.

    Raises:
        ConfigError: The environment fixes the precision of CPUs to something else than one.
    """
    if experiment.train.precision is not Precision.auto:
        return experiment, None
    taken = automatic(device, choose_quantization(experiment))
    train = replace(experiment.train, precision=taken.precision)
    recorded = experiment.resolved
    if "train" in recorded:
        recorded = {**recorded, "train": {**recorded["train"], "precision": taken.precision.name}}
    return replace(experiment, train=train, resolved=recorded), taken.why


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
