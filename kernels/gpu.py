"""What this machine has for GPU kernels, and why a kernel written in Triton cannot run: looked up,
never guessed.

`SACCADE_CUDA_INTERPRET=1` together with `TRITON_INTERPRET=1` (set before triton is imported) runs
the GPU path on tensors in host memory: Triton's kernels by its interpreter. For tests.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module

import torch

INTERPRETED = "SACCADE_CUDA_INTERPRET"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ASSUMED = (9, 0)  # the GPU whose tiles the interpreter runs


def interpreted() -> bool:
    """Whether the GPU path runs in host memory."""
    return os.environ.get(INTERPRETED) == "1"


def serves(tensor: torch.Tensor) -> bool:
    """Whether what is done with this tensor goes the GPU path."""
    return tensor.device.type != "cpu" or interpreted()


@cache
def triton_version() -> str | None:
    """The version of triton; None: it cannot be imported."""
    try:
        return str(import_module("triton").__version__)
    except ImportError:
        return None


def gpu_missing() -> str | None:
    """Why nothing can run on a GPU here; None: it can, or is interpreted."""
    if interpreted() or torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return "torch finds no CUDA GPU (torch.cuda.is_available() is False)"


def libraries_missing() -> str | None:
    """Why no other library's GPU kernels can run here; None: they can."""
    return gpu_missing() or ("the GPU is interpreted" if interpreted() else None)


def device() -> torch.device:
    """Where the GPU path keeps its tensors: the current GPU, or the host where it is interpreted.
    Raises ValueError with the reason where there is none.
    """
    if interpreted():
        return torch.device("cpu")
    if reason := gpu_missing():
        raise ValueError(f"device 'cuda' is not there: {reason}")
    return torch.device("cuda", torch.cuda.current_device())


def capability(tensor: torch.Tensor) -> tuple[int, int]:
    """Compute capability of the tensor's GPU, (9, 0) for Hopper."""
    return torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else ASSUMED


def upcast(tensor: torch.Tensor) -> bool:
    """Whether matrix products must be made in fp32: the interpreter multiplies bf16's bits."""
    return not tensor.is_cuda and tensor.dtype == torch.bfloat16


def library_refusal(tensor: torch.Tensor) -> str | None:
    """Why another library's GPU kernels cannot take this tensor; None: they can."""
    return None if tensor.is_cuda else f"tensor on {tensor.device}"


def triton_refusal(*tensors: torch.Tensor | None) -> str | None:
    """Why kernels written in Triton cannot take these tensors; None: they can.

    They must be on one GPU (or anywhere, interpreted), of floating-point numbers, and their last
    dimension contiguous. The usual cases first: this runs a few hundred times in every step.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    if given[0].device.type != "cuda":
        if not interpreted():
            return f"tensor on {given[0].device}"
        if os.environ.get("TRITON_INTERPRET") != "1":
            return f"{INTERPRETED}=1 needs TRITON_INTERPRET=1"
    if triton_version() is None:
        return "triton is not installed"
    for tensor in given:
        if tensor.device != given[0].device:
            return f"tensors on {given[0].device} and on {tensor.device}"
        if tensor.dtype not in FLOATS:
            return f"dtype {tensor.dtype}"
        if tensor.numel() and tensor.stride(-1) != 1:
            return "last dimension is not contiguous"
    return None
