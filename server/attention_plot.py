"""The picture of `saccade look`: a head's weights in dense attention beside what was read of them.

matplotlib is optional: `require` says how to get it, before any model is loaded.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    from ..engine.look import AttentionMap
    from ..engine.look_maps import HeadMap

LEAST, MOST = 1e-4, 1.0  # ends of the colour scale; smaller weights are drawn like LEAST
COLOURS = "viridis"
HIDDEN = (0.88, 0.88, 0.88, 1.0)  # keys after the query, or outside of the model's own window
PANEL, GAP = 2.5, 0.12  # inches, and the space between heads as a part of a panel


def require() -> None:
    """UsageError without matplotlib."""
    if find_spec("matplotlib") is None:
        raise UsageError("the picture needs matplotlib: pip install 'saccade[bench]'")


def draw(found: AttentionMap, title: str, path: Path) -> None:
    """Writes the picture, in the format of the name's ending: a line per layer, a pair per head."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    lines: dict[int, list[HeadMap]] = {}
    for each in found.heads:
        lines.setdefault(each.layer, []).append(each)
    pairs = max(map(len, lines.values()))
    size = (pairs * (2 + GAP) * PANEL + 1.2, len(lines) * (PANEL + 0.3) + 1.2)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}\n{caption(found)}", fontsize=11)
    grid = figure.add_gridspec(len(lines), 3 * pairs, width_ratios=[1, 1, GAP] * pairs)
    scale = ScalarMappable(LogNorm(LEAST, MOST, clip=True), COLOURS)
    for line, heads in enumerate(lines.values()):
        for number, each in enumerate(heads):
            columns = (3 * number, 3 * number + 1)
            pair = [figure.add_subplot(grid[line, column]) for column in columns]
            _draw_head(pair, found, each, scale)
            pair[0].set_ylabel("query (token)" if number == 0 else "", fontsize=8)
            for axes in pair:
                axes.set_xlabel("key (token)" if line == len(lines) - 1 else "", fontsize=8)
    bar = figure.colorbar(scale, ax=figure.axes, fraction=0.02, pad=0.01, aspect=40, extend="min")
    bar.set_label("weight of a cell's keys in dense attention, mean over its queries", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def caption(found: AttentionMap) -> str:
    """What is to be known to read the picture."""
    cells = f"{found.tokens} tokens in cells of {found.cell} x {found.cell}"
    read = "right: white cells were not read, pale ones in part"
    if any(each.kept is not None for each in found.heads):
        read += "; own weights: of heads that choose their tokens, over what they kept"
    if found.prompt == found.tokens:
        return f"{cells}; {read}"
    return f"{cells}; {read}; below the red line, tokens read as if generated"


def _draw_head(pair: Any, found: AttentionMap, each: HeadMap, scale: Any) -> None:
    """Weights on the left; on the right the same colours where keys were read."""
    import numpy as np

    hidden = each.visible.numpy() == 0
    weights = scale.to_rgba(each.mass.numpy())
    share = each.read.numpy()[..., None]
    # Never so pale that one key read by one query could not be told from none.
    strength = np.where(share > 0, 0.3 + 0.7 * share, 0)
    read = np.concatenate([1 - strength * (1 - weights[..., :3]), weights[..., 3:]], axis=-1)
    end = found.cell * len(weights)
    for axes, picture in zip(pair, (weights, read), strict=True):
        picture[hidden] = HIDDEN
        axes.imshow(picture, extent=(0, end, end, 0), interpolation="nearest", aspect="equal")
        axes.set(xlim=(0, found.tokens), ylim=(found.tokens, 0))
        axes.tick_params(labelsize=7, length=2)
        axes.locator_params(nbins=4)
        if found.prompt < found.tokens:
            axes.axhline(found.prompt, color="red", linewidth=0.8)
    pair[1].tick_params(labelleft=False)
    pair[0].set_title(left_title(each), fontsize=9)
    pair[1].set_title(right_title(each, found.tokens), fontsize=9)


def left_title(each: HeadMap) -> str:
    """Which head it is, and whose weights are drawn."""
    whose = "dense" if each.kept is None else "own weights"
    return f"layer {each.layer}, head {each.head}: {whose}"


def right_title(each: HeadMap, tokens: int) -> str:
    """What was read, in numbers."""
    keys = f"{100 * each.keys_share:.3g} % of keys"
    if each.kept is not None:
        return f"kept {each.kept} of {tokens}; {keys}"
    keys = f"read: {keys}"
    return keys if each.mass_share is None else f"{keys}, {100 * each.mass_share:.3g} % of weight"
