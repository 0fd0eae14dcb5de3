"""The door to the compiled module: choice of the instruction set, threads, concurrency, symbols."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from math import exp, inf
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from saccade.kernels import native, native_sources
from saccade.kernels.linear import LINEAR, linear, pack

from .paged import make, same

needs_module = pytest.mark.skipif(native.module() is None, reason="no compiled module")
SCRIPT = """
import torch
from saccade.kernels import native
from saccade.kernels.linear import LINEAR, linear, pack
packed = pack(torch.ones((3, 2)))
print(linear(torch.ones((1, 2)), packed)[0].tolist())
print(native.chosen_isa(), LINEAR.refusals(torch.ones((1, 2)), packed, torch.float32)["cpu"])
print([row.name for row in native.report() if row.chosen])
"""


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    """The script in a process with these environment variables."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SACCADE_")} | variables
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_isa_is_forced(isa):
    """SACCADE_ISA chooses any instruction set that runs here."""
    done = run(SACCADE_ISA=isa)
    names = [isa] if isa in native.ISAS else []
    assert done.stdout == f"[2.0, 2.0, 2.0]\n{isa} None\n{names}\n", done.stderr


def test_reference_is_forced():
    """SACCADE_ISA=reference leaves the compiled module alone."""
    done = run(SACCADE_ISA="reference")
    assert done.stdout == "[2.0, 2.0, 2.0]\nNone no compiled kernels\n[]\n", done.stderr


@needs_module
def test_unknown_isa_is_refused():
    """A wrong name is an error that lists the right ones."""
    done = run(SACCADE_ISA="avx1024")
    assert done.returncode and "SACCADE_ISA='avx1024' is unknown; choose from" in done.stderr


@needs_module
def test_isa_that_cannot_run_is_refused():
    """A name that this machine cannot run is an error with the reason."""
    missing = [name for name in native.ISAS if native.refusal(name)]
    if not missing:
        pytest.skip("this machine runs every instruction set")
    done = run(SACCADE_ISA=missing[0])
    assert done.returncode and native.refusal(missing[0]) in done.stderr
    with pytest.raises(ValueError, match=missing[0]):
        native.load(missing[0])
    with pytest.raises(ValueError, match=missing[0]):
        native.module().Kernels(missing[0], 1)


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "1e3", " 4", "99999999", "²"])
def test_number_of_threads_is_validated(monkeypatch, text):
    """Anything but a reasonable positive integer is refused."""
    monkeypatch.setenv("SACCADE_NUM_THREADS", text)
    with pytest.raises(ValueError, match="SACCADE_NUM_THREADS"):
        native.threads()


def test_number_of_threads(monkeypatch):
    """The variable, or else the processors of this process."""
    monkeypatch.setenv("SACCADE_NUM_THREADS", "3")
    assert native.threads() == 3
    monkeypatch.setenv("SACCADE_NUM_THREADS", "")
    assert 1 <= native.threads() <= (os.cpu_count() or 1)


@needs_module
def test_report(monkeypatch, clean_environment):
    """Every instruction set once, exactly one chosen, the others with a reason."""
    monkeypatch.setattr(native, "chosen_isa", native.chosen_isa.__wrapped__)
    rows = native.report()
    assert [row.name for row in rows] == list(native.ISAS)
    assert sum(row.chosen for row in rows) == 1 and all(row.reason for row in rows)
    monkeypatch.setenv("SACCADE_ISA", "portable")
    rows = {row.name: row for row in native.report()}
    assert rows["portable"].chosen and rows["portable"].reason == "forced by SACCADE_ISA"
    forced_away = [r for r in rows.values() if not r.chosen and not native.refusal(r.name)]
    assert all(row.reason == "SACCADE_ISA forces another" for row in forced_away)


def test_calls_from_many_threads(isa):
    """Python threads may call at the same time; each gets its own right answer."""
    problems = [make([300 + 40 * i, 2100], [30, 1], seed=i) for i in range(4)]
    packed = pack(torch.randn((70, 64)))
    inputs = [torch.randn((20 + i, 64)) for i in range(4)]
    expected = [
        (problem.run(), linear(x, packed)) for problem, x in zip(problems, inputs, strict=True)
    ]

    def work(i: int) -> bool:
        return all(
            same(problems[i % 4].run(), expected[i % 4][0])
            and torch.equal(linear(inputs[i % 4], packed), expected[i % 4][1])
            for _ in range(5)
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(16)))


@needs_module
def test_pools_come_and_go():
    """Kernel sets of any number of threads, also of nonsense ones, start and end cleanly."""
    for threads in (-3, 0, 1, 7):
        kernels = native.module().Kernels("portable", threads)
        assert kernels.threads == max(threads, 1) and kernels.isa == "portable"


@needs_module
@pytest.mark.parametrize("threads", [2, 7])
def test_short_runs_one_after_the_other(monkeypatch, threads):
    """Runs too short for a worker to come in time, or to leave in time, give every item once."""
    packed = pack(torch.randn((96, 64)))
    inputs = [torch.randn((rows, 64)) for rows in (1, 70, 200)]
    alone, shared = (native.module().Kernels("portable", each) for each in (1, threads))
    monkeypatch.setattr(native, "kernels", lambda: alone)
    expected = [linear(x, packed) for x in inputs]
    monkeypatch.setattr(native, "kernels", lambda: shared)
    for pause in (0.0, 0.0003, 0.003):  # workers look out, offer their processor, sleep
        for _ in range(60):
            time.sleep(pause)
            assert all(
                torch.equal(linear(x, packed), y) for x, y in zip(inputs, expected, strict=True)
            )


FORKS = """
import os, signal, sys, time
import torch
from saccade.kernels.linear import linear, pack
packed, x = pack(torch.randn((512, 512))), torch.randn((200, 512))
expected = linear(x, packed).numpy().tobytes()
time.sleep(float(sys.argv[1]))  # the workers look out, or sleep
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends a child that waits for threads it does not have
    right = all(linear(x, packed).numpy().tobytes() == expected for _ in range(3))
    sys.exit(0 if right else 3)
right = linear(x, packed).numpy().tobytes() == expected
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or (0 if right else 4))
"""


@needs_module
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("pause", ["0", "0.1"])
def test_a_forked_process_computes_alone(pause):
    """The threads of a pool stay in the parent; the child gets the same bits, and ends."""
    environment = os.environ | {"SACCADE_NUM_THREADS": "3"}
    command = [sys.executable, "-c", FORKS, pause]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@needs_module
def test_a_stale_module_is_refused():
    """A module of other sources, or from before they were compiled in, is one clear error."""
    compiled = native.module()
    assert native_sources.digest() in (None, compiled.sources)
    native.refuse_stale(compiled)
    for stale in ({"sources": "0" * 32}, {}):
        module = SimpleNamespace(__file__="/there/_native.so", **stale)
        with pytest.raises(native.StaleModuleError, match=r"^/there/_native\.so was built from .*"):
            native.refuse_stale(module)


def test_digest_of_the_sources(tmp_path):
    """It follows names and contents of what is compiled for the CPU, and nothing else."""
    assert native_sources.digest(tmp_path) is None
    for name in ("bindings.cpp", "cpu/isa/a.cpp", "include/saccade/b.h", "cuda/c.cu"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    first = native_sources.digest(tmp_path)
    (tmp_path / "cuda/c.cu").write_text("other")
    (tmp_path / "cpu/isa/notes.txt").write_text("other")
    assert native_sources.digest(tmp_path) == first
    (tmp_path / "cpu/isa/a.cpp").rename(tmp_path / "cpu/isa/d.cpp")
    second = native_sources.digest(tmp_path)
    (tmp_path / "include/saccade/b.h").write_text("other")
    assert len({first, second, native_sources.digest(tmp_path)}) == 3


@needs_module
def test_unsupported_tensors_go_to_the_reference():
    """The reason is told: device, dtype, stride, or no compiled module."""
    packed = pack(torch.ones((3, 2)))
    reason = LINEAR.refusals(torch.ones((2, 2)).T[:, :1].expand(2, 2), packed, torch.float32)["cpu"]
    assert reason == "last dimension is not contiguous"
    assert native.unsupported(torch.ones(2).double()) == "dtype torch.float64"
    assert native.unsupported(torch.ones(2, device="meta")) == "tensor on meta"
    assert native.unsupported(None, torch.ones(2)) is None


@needs_module
def test_arguments_of_the_compiled_kernels_are_counted():
    """Too few, too many, and what is no number: TypeError, and nothing is computed."""
    silu_mul = native.kernels().silu_mul
    x, out = torch.ones((1, 4)), torch.full((1, 2), 7.0)
    call = [native.DTYPES[x.dtype], 1, 2, x.data_ptr(), 4, 1.0, inf, 0.0, out.data_ptr()]
    with pytest.raises(TypeError, match="silu_mul takes more than 8 arguments"):
        silu_mul(*call[:-1])
    with pytest.raises(TypeError, match="silu_mul takes 9 arguments, not 10"):
        silu_mul(*call, 0)
    with pytest.raises(TypeError):
        silu_mul(*call[:1], "1", *call[2:])
    with pytest.raises(OverflowError):
        silu_mul(*call[:-1], -call[-1])
    assert out.tolist() == [[7.0, 7.0]]
    silu_mul(*call)
    assert out[0, 0].item() == pytest.approx(1 / (1 + exp(-1)), rel=1e-6)


def objects() -> list[Path]:
    """The compiled objects of the instruction sets, where the build folder is at hand."""
    folders = Path(__file__).resolve().parents[2].glob("build/ninja-*")
    names = (*native.ISAS, "amx_emulated")
    return [path for folder in folders for name in names for path in (folder / name).glob("*.o")]


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
@pytest.mark.skipif(not objects(), reason="no build folder")
def test_instruction_sets_share_no_code():
    """No object offers the linker a symbol that another instruction set could take for its own."""
    for path in objects():
        listing = subprocess.run(["nm", "-C", path], capture_output=True, text=True).stdout
        for line in listing.splitlines():
            kind, name = line[17:18], line[19:]
            shared = kind in "WVu" and not name.startswith("DW.ref.")
            assert not shared or f"saccade::{path.parent.name}::" in name, f"{path}: {name}"
