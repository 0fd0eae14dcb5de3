"""Compiles the CUDA sources where the build did not, and launches their kernels.

`SACCADE_CUDA_CACHE` names the folder of what NVRTC compiled (default: saccade in the user's cache).
Files there are named by a digest of sources, options, compiler and target, and only a folder that
nobody else can write to is used.
"""

from __future__ import annotations

import ctypes
import os
import struct
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import cuda_sources, gpu, native

TYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
OLDEST = (8, 0)
STATIC_SHARED = 48 * 1024  # bytes of shared memory that need not be asked for


class CudaBuildError(Exception):
    """A source did not compile; the message is the compiler's."""


def pack(fields: Mapping[str, int | float]) -> bytes:
    """A params struct of csrc/cuda/params.cuh: eight bytes a field, in order."""
    kinds = "".join("d" if isinstance(value, float) else "q" for value in fields.values())
    return struct.pack(f"<{kinds}", *fields.values())


def nvrtc_library() -> ctypes.CDLL | None:
    """NVRTC as installed beside torch or by the system, or None."""
    names = ["libnvrtc.so.13", "libnvrtc.so.12"]
    folder = Path(torch.__file__).resolve().parents[1] / "nvidia"
    found = [str(path) for name in names for path in sorted(folder.glob(f"*/lib/{name}"))]
    for name in (*found, *names):
        try:
            # NVRTC opens this one by its bare name, which is found only when it is there already.
            for builtins in sorted(Path(name).parent.glob("libnvrtc-builtins.so.*")):
                ctypes.CDLL(str(builtins))
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


@cache
def nvrtc() -> ctypes.CDLL | None:
    """The process-wide NVRTC, or None."""
    return nvrtc_library()


def nvrtc_version(library: ctypes.CDLL) -> tuple[int, int]:
    """(major, minor)"""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library, library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def compile_kernel(library: ctypes.CDLL, kernel: str, target: str) -> bytes:
    """A cubin that holds this entry point, for `target` (sm_90, ...). Raises CudaBuildError."""
    unit = cuda_sources.unit_of(kernel)
    named = {path.name: path.read_bytes() for path in cuda_sources.headers()}
    text = (cuda_sources.SOURCES / f"{unit}.cu").read_bytes()
    program = ctypes.c_void_p()
    contents = (ctypes.c_char_p * len(named))(*named.values())
    names = (ctypes.c_char_p * len(named))(*[name.encode() for name in named])
    arguments = (text, f"{unit}.cu".encode(), len(named), contents, names)
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), *arguments))
    try:
        chosen = (*cuda_sources.OPTIONS, *cuda_sources.defines(kernel), f"-arch={target}")
        options = (ctypes.c_char_p * len(chosen))(*[option.encode() for option in chosen])
        if library.nvrtcCompileProgram(program, len(chosen), options):
            log = _bytes_of(library, "ProgramLog", program).decode(errors="replace")
            raise CudaBuildError(f"{unit}.cu for {target}: {log}")
        return _bytes_of(library, "CUBIN", program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes_of(library: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(library, library[f"nvrtcGet{what}Size"](program, ctypes.byref(size)))
    data = ctypes.create_string_buffer(size.value)
    _check(library, library[f"nvrtcGet{what}"](program, data))
    return data.raw


def _check(library: ctypes.CDLL, status: int) -> None:
    if status:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise CudaBuildError(f"NVRTC: {library.nvrtcGetErrorString(status).decode()}")


def cache_folder() -> Path:
    """The folder of compiled kernels, made for this user alone. Raises CudaBuildError when another
    could write to it."""
    named = os.environ.get("SACCADE_CUDA_CACHE", "")
    base = os.environ.get("XDG_CACHE_HOME", "") or str(Path.home() / ".cache")
    folder = Path(named) if named else Path(base) / "saccade" / "cuda"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise CudaBuildError(
            f"{folder} belongs to another user or others may write to it; name a private folder in "
            "SACCADE_CUDA_CACHE"
        )
    return folder


def cubin(kernel: str, target: str) -> Path:
    """What holds this entry point for `target`: from the build, from the cache, or compiled now.

    Raises CudaBuildError.
    """
    unit = cuda_sources.unit_of(kernel)
    built = cuda_sources.compiled(unit)
    if built.exists():
        return built
    library = nvrtc()
    if library is None:
        raise CudaBuildError("NVRTC was not found and SACCADE_CUDA=1 did not compile the kernels")
    version = ".".join(map(str, nvrtc_version(library)))
    folder = cache_folder()
    name = cuda_sources.key(unit, version, target, *cuda_sources.defines(kernel))
    path = folder / f"{unit}-{target}-{name}.cubin"
    if not path.exists():
        data = compile_kernel(library, kernel, target)
        # In one move, so that no other process ever reads half a file.
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as fresh:
            fresh.write(data)
        Path(fresh.name).replace(path)
    return path


def _cupy() -> Any:
    found = native.cupy()
    if found is None:
        raise CudaBuildError(
            "cupy, which launches the CUDA kernels, is not installed or not loadable"
        )
    return found


@cache
def kernel(name: str, device: int) -> Any:
    """The entry point `name` on this device, as CuPy calls it. Raises CudaBuildError."""
    major, minor = torch.cuda.get_device_capability(device)
    path = cubin(name, f"sm_{major}{minor}")
    return _cupy().RawModule(path=str(path)).get_function(name)


def launch(
    name: str,
    grid: tuple[int, int, int],
    threads: int,
    shared: int,
    device: torch.device,
    fields: Mapping[str, int | float],
) -> None:
    """Runs a kernel on torch's current stream; `shared` bytes of dynamic shared memory."""
    import numpy

    index = torch.cuda.current_device() if device.index is None else device.index
    cupy, data = _cupy(), pack(fields)
    params = numpy.frombuffer(data, dtype=numpy.dtype((numpy.void, len(data))))  # by value
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream(index).cuda_stream)
    with cupy.cuda.Device(index), stream:
        function = kernel(name, index)
        if shared > STATIC_SHARED and function.max_dynamic_shared_size_bytes < shared:
            function.max_dynamic_shared_size_bytes = shared
        function(grid, (threads, 1, 1), (params,), shared_mem=shared)


@cache
def shared_memory(device: int) -> int:
    """Bytes of shared memory that one block may have."""
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", STATIC_SHARED))


@cache
def device_refusal(device: int) -> str | None:
    """Why the CUDA kernels cannot run on this device; None: they can."""
    if native.cupy() is None:
        return "cupy is not installed or does not load"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < OLDEST:
        return f"compute capability {major}.{minor} is older than {OLDEST[0]}.{OLDEST[1]}"
    if nvrtc() is None and not all(
        cuda_sources.compiled(each).exists() for each in cuda_sources.UNITS
    ):
        return "NVRTC was not found and SACCADE_CUDA=1 did not compile the kernels"
    return None


def unsupported(*tensors: torch.Tensor) -> str | None:
    """None when the CUDA kernels can take these tensors, otherwise the reason."""
    for tensor in tensors:
        if tensor.device.type != "cuda":
            return f"tensor on {tensor.device}"
        if tensor.device != tensors[0].device:
            return f"tensors on {tensors[0].device} and on {tensor.device}"
        if tensor.dtype not in TYPES:
            return f"dtype {tensor.dtype}"
        if reason := unaligned(tensor):
            return reason
    return missing(tensors[0])


def missing(tensor: torch.Tensor) -> str | None:
    """Why nothing can run where this tensor is, whatever it holds; None: it can."""
    if tensor.device.type != "cuda":
        return f"tensor on {tensor.device}"
    return device_refusal(tensor.device.index or 0)


def elsewhere(tensor: torch.Tensor, *others: torch.Tensor | None) -> str | None:
    """Why the kernels cannot read these index tensors beside `tensor`; None: they can."""
    for other in others:
        if other is None:
            continue
        if other.device != tensor.device:
            return f"tensors on {tensor.device} and on {other.device}"
        if not other.is_contiguous():
            return "an index tensor is not contiguous"
    return None


def unaligned(tensor: torch.Tensor) -> str | None:
    """Why vectors of 16 bytes cannot be read along the last dimension; None: they can."""
    if not tensor.numel():
        return None
    if tensor.stride(-1) != 1:
        return "last dimension is not contiguous"
    shape = tensor.shape
    steps = [stride for size, stride in zip(shape, tensor.stride(), strict=True) if size > 1][:-1]
    if shape[-1] % 8 or tensor.data_ptr() % 16:
        return "rows are not whole vectors of 16 bytes"
    if any(step * tensor.itemsize % 16 for step in steps):
        return "rows do not begin at multiples of 16 bytes"
    return None


def state() -> tuple[bool, str]:
    """Whether the CUDA kernels can run here, and how they come to be compiled, or why not."""
    if reason := gpu.gpu_missing() or device_refusal(torch.cuda.current_device()):
        return False, reason
    if all(cuda_sources.compiled(each).exists() for each in cuda_sources.UNITS):
        return True, "compiled by the build (SACCADE_CUDA=1)"
    return True, "compiled by NVRTC at first use; SACCADE_CUDA=1 at install does it before"
