"""Compiling Triton kernels ahead of time, without a GPU: what a launch would have compiled, for any
architecture, and the registers, stack, shared memory and instructions of the result.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from ..kernels import gpu

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}
COUNTED = ("HGMMA", "UTCHMMA", "UTCMMA", "HMMA", "UTMALDG", "LDGSTS", "LDL", "STL")


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: what its compilation depends on."""

    kernel: Any
    args: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel uses. shared: bytes per program; stack: bytes per thread."""

    registers: int
    stack: int
    shared: int
    warps: int
    stages: int
    instructions: dict[str, int]


def launches(call: Callable[[], object], capability: tuple[int, int]) -> list[Launch]:
    """The kernels that `call` would launch on a GPU of this capability; none runs."""
    found: list[Launch] = []
    with (
        _recorded(found),
        patch.object(gpu, "capability", lambda tensor: capability),
        patch.object(gpu, "upcast", lambda tensor: False),
    ):
        call()
    return found


@contextmanager
def _recorded(found: list[Launch]) -> Iterator[None]:
    from triton.runtime.jit import JITFunction

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append(Launch(kernel, args, options))

    with patch.object(JITFunction, "run", record):
        yield


@dataclass(frozen=True)
class Variant:
    """One kernel with the constants, types and options of a launch, for one architecture."""

    source: Any
    arch: int
    options: dict[str, int]

    @classmethod
    def of(cls, launch: Launch, capability: tuple[int, int]) -> Variant:
        """What `launch` has compiled on a GPU of this capability."""
        from triton.compiler import ASTSource

        options = {
            name: launch.options[name]
            for name in ("num_warps", "num_stages")
            if name in launch.options
        }
        source = ASTSource(launch.kernel, *_signature(launch))
        return cls(source, capability[0] * 10 + capability[1], options)

    def digest(self) -> str:
        """Of all that decides what the compiler makes of it: the kernel's text and that of the
        functions it calls, constants, types, options, architecture and compiler.
        """
        import triton

        key = (triton.__version__, self.source.hash(), self.arch, sorted(self.options.items()))
        return hashlib.sha256(repr(key).encode()).hexdigest()[:16]

    def build(self) -> Resources:
        """Compiles it. Raises what the compiler raises."""
        import triton
        from triton.backends.compiler import GPUTarget

        target = GPUTarget("cuda", self.arch, 32)
        return _resources(triton.compile(self.source, target=target, options=self.options))


def _signature(launch: Launch) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """Types, constants and known divisibility, as triton's launcher finds them."""
    from triton.runtime.jit import mangle_type
    from triton.tools.tensor_descriptor import TensorDescriptor

    signature: dict[str, str] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    given = dict(zip(launch.kernel.arg_names, launch.args, strict=False)) | launch.options
    for i, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, given[parameter.name]
        free = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (free and type(value) is int and value == 1):
            signature[name], constants[(i,)] = "constexpr", value
        elif isinstance(value, TensorDescriptor):
            signature[name] = mangle_type(value)
        elif isinstance(value, torch.Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if free and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _resources(compiled: Any) -> Resources:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        usage, code = _tool("--dump-resource-usage", path), _tool("--dump-sass", path)
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    words = Counter(
        re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", code, re.M)
    )
    return Resources(
        numbers["REG"],
        numbers["STACK"],
        compiled.metadata.shared,
        compiled.metadata.num_warps,
        compiled.metadata.num_stages,
        {word: words[word] for word in COUNTED if words[word]},
    )


def _tool(option: str, path: Path) -> str:
    import triton

    tool = Path(str(triton.__file__)).parent / "backends/nvidia/bin/cuobjdump"
    ran = subprocess.run([tool, option, path], capture_output=True, text=True, check=True)
    return ran.stdout
