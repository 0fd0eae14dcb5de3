"""Compiles every Triton kernel for sm_80, sm_90 and sm_100, without a GPU, and checks the result:

    python -m saccade.benchmarks.aot [--only NAME] [--arch 90] [--known FILE] [--out FOLDER]

A folder of `kernels` with an `aot.py` is asked for its `cases()`: name -> a call on tensors without
memory. What FILE, an earlier table, knows of the very same variants is judged, not compiled again.
Exit status 1: a gate fails, see `complaints`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from .aot_compile import Resources, Variant, launches

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
ARCHES = {"80": (8, 0), "90": (9, 0), "100": (10, 0)}
SHARED = {"80": 163 << 10, "90": 227 << 10, "100": 227 << 10}  # bytes a program may have
# Kernels that must multiply by tensor cores.
PRODUCTS = (
    *("attend_tiles", "attend_latents", "gather_tiles", "combine_rows"),
    *("expert_units", "expert_parts"),
)
TENSOR_CORES = {"80": ("HMMA",), "90": ("HGMMA", "HMMA"), "100": ("UTCHMMA", "UTCMMA", "HMMA")}
# Prompts whose tiles of K and V must come by bulk copies, where there are any.
BULK = tuple(
    f"attend/prefill_{name}"
    for name in ("d128", "d64", "fp16", "page", "mha", "window", "bounds", "softcap")
)
WARP_GROUPS = ("HGMMA", "UTCHMMA", "UTCMMA")  # their products: the tiles of prompts


@dataclass(frozen=True)
class Row:
    """One compiled variant of one kernel. digest: of all that decides what it is."""

    case: str
    kernel: str
    arch: str
    digest: str
    used: Resources | None
    complaints: list[str]


def every_case() -> dict[str, Callable[[], object]]:
    """The cases of all ops, by "op/name"."""
    found = {}
    for path in sorted(KERNELS.glob("*/aot.py")):
        module = import_module(f"..kernels.{path.parent.name}.aot", __package__)
        for name, call in module.cases().items():
            found[f"{path.parent.name}/{name}"] = call
    return found


def compiled(names: str, arches: list[str], known: Mapping[str, Resources]) -> Iterator[Row]:
    """Every launch of the cases whose name contains `names`; `known`: results by digest."""
    for case, call in every_case().items():
        if names not in case:
            continue
        for arch in arches:
            for launch in launches(call, ARCHES[arch]):
                kernel, digest = launch.kernel.__name__, ""
                try:
                    variant = Variant.of(launch, ARCHES[arch])
                    digest = variant.digest()
                    used = known.get(digest) or variant.build()
                except Exception as error:  # noqa: BLE001 - the compiler fails in many ways
                    reason = f"does not compile: {str(error).splitlines()[0]:.120}"
                    yield Row(case, kernel, arch, digest, None, [reason])
                    continue
                yield Row(case, kernel, arch, digest, used, complaints(case, kernel, arch, used))


def recorded(file: Path) -> dict[str, Resources]:
    """Results by digest, of a table that `write` wrote."""
    rows = json.loads(file.read_text())["rows"]
    return {row["digest"]: Resources(**row["used"]) for row in rows if row["used"]}


def complaints(case: str, kernel: str, arch: str, used: Resources) -> list[str]:
    """What is wrong with a compiled kernel; empty: it passes.

    Registers that spill go through memory; a program must fit into an SM; a kernel of products
    must make them by tensor cores, and prefill on Hopper by those of a warp group, from tiles
    that bulk copies bring. fp32 serves comparisons alone: it may spill.
    """
    found = []
    spills = {name: used.instructions.get(name, 0) for name in ("LDL", "STL")}
    if "fp32" not in case and (used.stack or any(spills.values())):
        found.append(f"spills: {used.stack} bytes of stack, {spills}")
    if used.shared > SHARED[arch]:
        found.append(f"{used.shared} bytes of shared memory, of {SHARED[arch]}")
    if kernel in PRODUCTS and not any(used.instructions.get(name) for name in TENSOR_CORES[arch]):
        found.append("no tensor-core products")
    prompts = any(used.instructions.get(name) for name in WARP_GROUPS)
    if case.startswith(BULK) and prompts and not used.instructions.get("UTMALDG"):
        found.append("no bulk copies")
    return found


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| case | kernel | sm | registers | stack | shared KiB | warps/stages | counts | gate |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.case, row.kernel, row.arch, "-", "-", "-", "-", "-"]
        if row.used is not None:
            words = " ".join(f"{name} {count}" for name, count in row.used.instructions.items())
            cells[3:] = [
                str(row.used.registers),
                str(row.used.stack),
                f"{row.used.shared / 1024:.1f}",
                f"{row.used.warps}/{row.used.stages}",
                words or "-",
            ]
        lines.append("| " + " | ".join([*cells, "; ".join(row.complaints) or "passes"]) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--arch", action="append", choices=list(ARCHES), help="default: all")
    parser.add_argument("--known", type=Path, help="an earlier aot.json: compile what it lacks")
    parser.add_argument("--out", type=Path, help="folder for aot.md and aot.json")
    chosen = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("unset TRITON_INTERPRET: interpreted kernels cannot be compiled", file=sys.stderr)
        return 2
    rows = []
    known = recorded(chosen.known) if chosen.known else {}
    for row in compiled(chosen.only, chosen.arch or list(ARCHES), known):
        rows.append(row)
        print(f"{row.case} {row.kernel} sm_{row.arch}: {'; '.join(row.complaints) or 'passes'}")
    if not rows:
        print(f"no case contains {chosen.only!r}", file=sys.stderr)
        return 2
    if chosen.out:
        write(chosen.out, rows)
    return int(any(row.complaints for row in rows))


def write(folder: Path, rows: list[Row]) -> None:
    """aot.md and aot.json."""
    import triton

    folder.mkdir(parents=True, exist_ok=True)
    ours = f"triton {triton.__version__} and the ptxas in its wheel"
    text = (
        "# Triton kernels, compiled ahead of time\n\n"
        f"Compiled without a GPU by {ours}; `python -m saccade.benchmarks.aot --known "
        "benchmarks/results/aot.json --out benchmarks/results` makes this table anew, and compiles "
        "only what has changed since. These are properties of compiled code, not timings: "
        "none of these kernels has run on a GPU yet.\n\n"
    )
    (folder / "aot.md").write_text(text + table(rows) + "\n")
    data = {"triton": triton.__version__, "rows": [asdict(row) for row in rows]}
    (folder / "aot.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
