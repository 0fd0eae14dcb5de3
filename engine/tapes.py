"""Tapes: graphs of decode steps on the processor. What a step does is recorded while it is done,
and done again without Python: the compiled kernels one after the other, and whatever torch computed
between them.

A decode step is hundreds of kernels of some ten microseconds each. Between two of them Python and
torch take as long again, for the weights that pass have put their own data out of the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..kernels import native

# Operators whose result, or its size, depends on what tensors hold.
LOOKING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "argwhere",
    "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount",
}  # fmt: skip
_EMPTY = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}
_READ = "resolve_conj"  # the first thing that Tensor.tolist does; itself it is no operator
_LINE = 64  # bytes


def storage(tensor: torch.Tensor) -> int:
    """Which memory a tensor lies in."""
    return tensor.untyped_storage().data_ptr()


def tensors(value: Any) -> list[torch.Tensor]:
    """Those in it, however deep."""
    return [each for each in tree_leaves(value) if isinstance(each, torch.Tensor)]


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

    @property
    def nbytes(self) -> int:
        """Bytes that it has."""
        return sum(memory.numel() for memory, _ in self._pieces)

    def like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Memory for a contiguous tensor of this shape."""
        memory = self._free(tensor.nbytes)
        lent = torch.from_numpy(memory.numpy()[: tensor.nbytes])  # with a storage of its own
        self._pieces.append((memory, StorageWeakRef(lent.untyped_storage())))
        return lent.view(tensor.dtype).view(tensor.shape)

    def _free(self, nbytes: int) -> torch.Tensor:
        """The smallest piece that nobody uses, if it is not far too large, or a new one."""
        fitting = [
            (memory.numel(), i)
            for i, (memory, user) in enumerate(self._pieces)
            if nbytes <= memory.numel() <= 2 * nbytes + 4096 and user.expired()
        ]
        if fitting:
            return self._pieces.pop(min(fitting)[1])[0]
        return torch.empty(-(-nbytes // _LINE) * _LINE, dtype=torch.uint8)


class Tape:
    """What was done inside `record`. refusal: why it cannot be done again by `play`, or None."""

    def __init__(self, pool: Pool, settled: Collection[torch.Tensor]) -> None:
        """settled: tensors that hold the same whenever the tape is played."""
        self.refusal: str | None = None
        self._pool = pool
        self._settled = {each.data_ptr() for each in settled}
        self._kernels = native.kernels()
        self._calls = native.module().Tape()  # type: ignore[union-attr]
        self._played = 0  # of these calls, in `_steps`
        self._steps: list[Callable[[], Any]] = []

    def record(self, call: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `call` returns. Raises what it raises."""
        native.module().record(self._calls)  # type: ignore[union-attr]
        try:
            with _Operators(self):
                result = call()
        finally:
            native.module().record(None)  # type: ignore[union-attr]
        self._end_run()
        return result

    def play(self) -> None:
        """All of it again, into the same tensors."""
        for step in self._steps:
            step()

    def _end_run(self) -> None:
        if self._played < len(self._calls):
            run = self._played, len(self._calls)
            self._steps.append(partial(self._kernels.replay, self._calls, *run))
            self._played = run[1]

    def _refuse(self, name: str) -> None:
        self.refusal = self.refusal or f"{name} looks at what a tensor holds"

    def note_operator(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any
    ) -> Any:
        """An operator gave `found`; what its caller shall have instead."""
        name = func._schema.name.split("::")[1]
        if name in _EMPTY:
            return self._pool.like(found) if found.numel() and found.is_contiguous() else found
        if name == _READ and args[0].data_ptr() not in self._settled:
            self._refuse("tolist")
        elif looks(func, args, kwargs):
            self._refuse(name)
        elif name == "lift_fresh" and args[0].ndim:
            self.refusal = self.refusal or "numbers of Python are made a tensor"
        elif func._schema.is_mutable:
            self._note(func, args, kwargs, None)
        elif not func.is_view:
            given = {storage(each) for each in tensors((args, kwargs))}
            made = [each for each in tensors(found) if each.numel()]
            if any(storage(each) not in given for each in made):
                self._note(func, args, kwargs, found)
        return found

    def _note(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any
    ) -> None:
        """Something to be computed again, into the same memory."""
        self._end_run()
        again = partial(func, *args, **kwargs)
        self._steps.append(again if found is None else partial(_again, again, found))


def _again(compute: Callable[[], Any], found: Any) -> None:
    """Computes what was found once, into the same memory."""
    for old, new in zip(tensors(found), tensors(compute()), strict=True):
        old.copy_(new)


class _Operators(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self._tape = tape

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch loads its compiler, to keep out of here: most of a second

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        return self._tape.note_operator(func, args, kwargs, func(*args, **kwargs))
