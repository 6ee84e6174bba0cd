"""The machine that an installation runs on: versions, processor, memory, GPUs, and whether quantized layers train."""

import os
import platform
from typing import TYPE_CHECKING, Any

from harness.config.schema import Quantization
from harness.config.version import __version__
from harness.config.versions import installed_versions, untested
from harness.models import choose_device, cpu_precision, keep_trainable

if TYPE_CHECKING:
    from torch import device as Device

GIB = 2**30
# The rules were checked against the tested versions by trying; a newer library may refuse what they allow.
WITHOUT_TRYING = "the tables below hold for the tested versions; doctor.live=true tries every pair with these"


def machine() -> dict[str, Any]:
    """Processor, memory and GPUs."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "cores": psutil.cpu_count(logical=False),
        "hardware_threads": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": memory.total,
        "available_memory_bytes": memory.available,
        "instructions": instructions(),
        "precision": str(cpu_precision.choose()),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
    }


def instructions() -> dict[str, bool]:
    """Whether the CPU has the vector instructions that matter to speed; without the last, bfloat16 is slow."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    here = cpu_precision.processor()
    return {
        "AVX2": capability.startswith(("AVX2", "AVX512")),
        "AVX-512": capability.startswith("AVX512"),
        "bfloat16": here is not None and bool(here.flags & cpu_precision.INSTRUCTIONS),
    }


def quantized_support() -> dict[str, str]:
    """Quantize a small layer in each way, evaluate and train it, and say how it went."""
    import logging
    import warnings

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    device, found = choose_device("auto"), {}
    for kind in (Quantization.nf4, Quantization.fp4, Quantization.int8):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found[kind.value] = f"works on {device.type}, relative error {probe(kind, device):.1%}"
            except Exception as error:  # bitsandbytes fails in many ways: no library, no kernel, no memory
                found[kind.value] = f"fails on {device.type}: {(str(error).strip() or repr(error)).splitlines()[0]}"
    return found


def probe(kind: Quantization, device: "Device") -> float:
    """The relative error of a quantized layer of 128 x 128 on normal inputs.

    Raises:
        Exception: Whatever bitsandbytes raises where it does not work.
        ValueError: The gradient of the input is not finite.
    """
    import torch
    from bitsandbytes import nn as quantized

    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(128, 128, generator=generator) for _ in range(2))
    layer: Any
    if kind is Quantization.int8:
        layer = quantized.Linear8bitLt(128, 128, bias=False, has_fp16_weights=False)
        layer.weight = quantized.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    else:
        layer = quantized.Linear4bit(128, 128, bias=False, quant_type=kind.value, compute_dtype=torch.float32)
        layer.weight = quantized.Params4bit(weight.clone(), requires_grad=False, quant_type=kind.value)
    layer = layer.to(device)
    keep_trainable(layer)
    with torch.inference_mode():
        layer.eval()(x.to(device))  # as between two epochs
    x = x.to(device).requires_grad_()
    output = layer.train()(x)
    output.sum().backward()
    if x.grad is None or not torch.isfinite(x.grad).all():
        raise ValueError("the backward pass gives no finite gradient")
    exact = x.detach() @ weight.to(device).T
    return float((output.detach() - exact).norm() / exact.norm())


def summary() -> dict[str, str]:
    """Versions, devices and quantization, a line each."""
    here, versions = machine(), installed_versions()
    able = ", ".join(name if has else f"no {name}" for name, has in here["instructions"].items())
    memory = f"{here['memory_bytes'] / GIB:.1f} GiB of memory, {here['available_memory_bytes'] / GIB:.1f} free"
    precision = f"train.precision=auto takes {here['precision']}"
    gpus = [f"{gpu['name']}, {gpu['memory_bytes'] / GIB:.1f} GiB" for gpu in here["gpus"]]
    return {
        "harness": f"{__version__} on Python {platform.python_version()}, {here['platform']}",
        "packages": ", ".join(f"{name} {found or 'not installed'}" for name, found in versions.items()),
        "CPU": f"{here['cores']} cores, {here['torch_threads']} threads in torch, {memory}; {able}; {precision}",
        "GPU": "; ".join(gpus) or "none that torch sees",
        **quantized_support(),
        **({"untested": "; ".join([*untested().values(), WITHOUT_TRYING])} if untested() else {}),
    }
