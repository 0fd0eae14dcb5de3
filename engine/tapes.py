"""Tapes: graphs of decode steps on the processor. What a step does is recorded while it is done,
and done again without Python: the compiled kernels one after the other, and whatever torch computed
between them.

A decode step is hundreds of kernels of some ten microseconds each. Between two of them Python and
torch take as long again, for the weights that pass have put their own data out of the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ..kernels import native
from ..kernels.attend import Keys
from ..kernels.select import Candidates
from .devices import moved

# Operators whose result, or its size, depends on what tensors hold.
LOOKING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "argwhere",
    "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount",
}  # fmt: skip
_EMPTY = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}
_READ = "resolve_conj"  # what Tensor.tolist, no operator, begins with in inference mode
_LINE = 64  # bytes
# What operators computed keeps its place as long as the tape lives: bytes of it at most.
MOST_HELD = 512 << 10


def storage(tensor: torch.Tensor) -> int:
    """Which memory a tensor lies in."""
    return tensor.untyped_storage().data_ptr()


def tensors(value: Any) -> list[torch.Tensor]:
    """Those in it, however deep in tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for each in value for tensor in tensors(each)]


def looks(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """The name of an operator that looks at what tensors hold, None: this one does not."""
    name: str = func._schema.name.split("::")[1]
    masks = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
        each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
    )
    counted = (
        name == "repeat_interleave"
        and kwargs.get("output_size") is None
        and isinstance(args[-1], torch.Tensor)
    )
    return name if name in LOOKING or masks or counted else None


class Pool:
    """Memory of the tensors that are made while tapes are recorded. When one is gone, the next of
    its tape, or of another, gets its place: no two tapes are played at once.
    """

    def __init__(self) -> None:
        self._pieces: list[tuple[torch.Tensor, StorageWeakRef]] = []
        self.addresses: set[int] = set()

    @property
    def nbytes(self) -> int:
        """Bytes that it has."""
        return sum(memory.numel() for memory, _ in self._pieces)

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Memory for a contiguous tensor of this shape."""
        memory = self._free(tensor.nbytes)
        lent = torch.from_numpy(memory.numpy()[: tensor.nbytes])  # with a storage of its own
        user = StorageWeakRef(lent.untyped_storage())  # type: ignore[no-untyped-call]
        self._pieces.append((memory, user))
        return lent.view(tensor.dtype).view(tensor.shape)

    def _free(self, nbytes: int) -> torch.Tensor:
        """The smallest piece that nobody uses, if it is not far too large, or a new one."""
        fitting = [
            (memory.numel(), i)
            for i, (memory, user) in enumerate(self._pieces)
            if nbytes <= memory.numel() <= 2 * nbytes + 4096 and user.expired()  # type: ignore[no-untyped-call]
        ]
        if fitting:
            return self._pieces.pop(min(fitting)[1])[0]
        memory = torch.empty(-(-nbytes // _LINE) * _LINE, dtype=torch.uint8)
        self.addresses.add(memory.data_ptr())
        return memory


@dataclass(frozen=True)
class _Run:
    """Kernels without an operator in between."""

    replay: Callable[[Any, int, int], None]
    calls: Any
    first: int
    end: int

    def __call__(self) -> None:
        self.replay(self.calls, self.first, self.end)

    def apart(self) -> list[_Run]:
        """Each kernel by itself."""
        return [replace(self, first=i, end=i + 1) for i in range(self.first, self.end)]


def _seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


class Tape:
    """What was done inside `record`. refusal: why it cannot be done again by `play`, or None."""

    def __init__(self, pool: Pool) -> None:
        self.refusal: str | None = None
        self._pool = pool
        self._kernels = native.kernels()
        self._calls = native.module().Tape()  # type: ignore[union-attr]
        self._played = 0  # of these calls, in `_steps`
        self._steps: list[Callable[[], Any]] = []
        self._results = 0  # bytes
        # Memory that is not of the pool, by address: kernels know it by that alone.
        self._held: dict[int, torch.Tensor] = {}

    def record(self, call: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `call` returns. Raises what it raises; RuntimeError outside inference mode, where
        not all that looks at tensors would be seen.
        """
        if not torch.is_inference_mode_enabled():
            raise RuntimeError("tapes are recorded in inference mode")
        with native.record(self._calls), _Operators(self):
            result = call()
        self._end_run()
        return result

    def play(self) -> None:
        """All of it again, into the same tensors."""
        for step in self._steps:
            step()

    def __len__(self) -> int:
        """Calls of kernels."""
        return len(self._calls)

    def times(self) -> tuple[list[float], float]:
        """Plays it call by call: seconds of each kernel, and of all operators together."""
        kernels, operators = [], 0.0
        for step in self._steps:
            if isinstance(step, _Run):
                kernels += [_seconds(call) for call in step.apart()]
            else:
                operators += _seconds(step)
        return kernels, operators

    def _end_run(self) -> None:
        if self._played < len(self._calls):
            end = len(self._calls)
            self._steps.append(_Run(self._kernels.replay, self._calls, self._played, end))
            self._played = end

    def note_operator(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any
    ) -> Any:
        """An operator gave `found`; what its caller shall have instead."""
        name = func._schema.name.split("::")[1]
        if name in _EMPTY and found.numel() and found.is_contiguous():
            return self._pool.like(found)
        for each in tensors((args, kwargs, found)):
            if storage(each) not in self._pool.addresses:
                self._held.setdefault(storage(each), each)
        if name == _READ or looks(func, args, kwargs):
            name = "tolist" if name == _READ else name
            self.refusal = self.refusal or f"{name} looks at what a tensor holds"
        elif name == "lift_fresh" and args[0].ndim:
            self.refusal = self.refusal or "numbers of Python are made a tensor"
        elif func._schema.is_mutable:
            self._note(func, args, kwargs, None)
        else:  # views may be copies, and copies views: where the result lies tells
            given = {storage(each) for each in tensors((args, kwargs))}
            made = [each for each in tensors(found) if each.numel()]
            if any(storage(each) not in given for each in made):
                self._note(func, args, kwargs, found)
        return found

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any) -> None:
        """Something to be computed again, into the same memory."""
        self._end_run()
        again = partial(func, *args, **kwargs)
        self._steps.append(again if found is None else partial(_again, again, found))
        self._results += sum(each.nbytes for each in tensors(found))
        if self._results > MOST_HELD:
            self.refusal = self.refusal or f"operators' results take more than {MOST_HELD} bytes"


def look_at_keys(value: Any) -> None:
    """Looks at all keys in it, which remember what was found: once a step is being recorded, it may
    not look at what its tensors hold.
    """
    known: dict[int, Any] = {}
    moved(value, lambda tensor: tensor, known)
    for each in known.values():
        if isinstance(each, Keys | Candidates):
            each.fault  # noqa: B018


def _again(compute: Callable[[], Any], found: Any) -> None:
    """Computes what was found once, into the same memory."""
    for old, new in zip(tensors(found), tensors(compute()), strict=True):
        old.copy_(new)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells a tape of every operator."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape = tape

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch loads its compiler, to keep out of here: most of a second

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        return self._tape.note_operator(func, args, kwargs, func(*args, **kwargs))
