"""The drawings of an analysis: matplotlib figures of its numbers and of some images.

An example is what `measure` keeps of an image, with `shown`, its pixels as floats in 0..1, and
`landmarks`, `(y, x)` in pixels `[S', 2]`, and `clusters`, a number for each patch
`[rows, columns]`. Token arrays begin with `num_prefix` that are no patches.
"""

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import CenteredNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

MARKERS = {  # of the sets of tokens: name, marker, colour, share of the patch's side
    "by_norm": ("massive by norm", "s", "#ff2d95", 1.0),
    "by_attention": ("massive by attention", "x", "#00a2e8", 0.4),
    "artifact": ("artifacts", "o", "#ffb000", 0.7),
}
_COLOURS = ("#1b6ca8", "#d1751f", "#c1272d")
_SIDE = 2.3  # inches of an image


def curves(of_blocks, label, *, mark=None) -> Figure:
    """Curves by name, in front of each block and after the last, on a logarithmic axis.

    `mark` is a block to be marked by a line.
    """
    figure, (axis,) = _panels(1, 1, width=7.5, height=3.5)
    for (name, curve), colour, line in zip(of_blocks.items(), _COLOURS, ("o-", "o--", "o-")):
        axis.plot(curve, line, color=colour, label=name, markersize=4)
    if mark is not None:
        axis.axvline(mark, color="#bbbbbb", linewidth=6, alpha=0.5, zorder=0)
    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    _logarithmic(axis, "y")
    axis.set_xlabel("in front of block (the last: after all blocks)")
    axis.set_ylabel(label)
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def norm_maps(blocks, examples, num_prefix, patch_size) -> Figure:
    """Each image beside the norms of its patches in front of the shown blocks."""
    wide = 1 + len(blocks)
    figure, axes = _panels(len(examples) * wide, wide, height=_SIDE + 0.15)
    axes = np.reshape(axes, (-1, wide))
    for axis, example in zip(axes[:, 0], examples):
        _draw(axis, example["shown"])
    axes[0, 0].set_title("image\n")
    for column, block in enumerate(blocks):
        maps = [example["norms"][column, num_prefix:] for example in examples]
        low, high = np.min([of.min() for of in maps]), np.max([of.max() for of in maps])
        for axis, example, of_image in zip(axes[:, 1 + column], examples, maps):
            rows = example["shown"].shape[0] // patch_size
            scale = LogNorm(low, max(high, 1.01 * low))
            _draw(axis, of_image.reshape(rows, -1), cmap="magma", norm=scale)
        axes[0, 1 + column].set_title(f"block {block}\n{low:.3g} to {high:.3g}")
    return figure


def detected_tokens(examples, num_prefix, patch_size) -> Figure:
    """The sets of tokens that the detectors find, over the images."""
    figure, axes = _panels(len(examples), 4, height=_SIDE + 0.9)
    for axis, example in zip(axes, examples):
        _draw(axis, example["shown"], alpha=0.7)
        columns = example["shown"].shape[1] // patch_size
        titles = []
        for kind, (name, marker, colour, share) in MARKERS.items():
            places = np.flatnonzero(example[kind][num_prefix:])
            y, x = (np.stack(np.divmod(places, columns)) + 0.5) * patch_size - 0.5
            size = share * min(0.8 * 72 * _SIDE / columns, 18)  # points, of 72 to the inch
            style = dict(markersize=size, markeredgewidth=1.4, linestyle="none", label=name)
            axis.plot(x, y, marker, markerfacecolor="none", markeredgecolor=colour, **style)
            titles.append(f"{len(places)} {name}")
        axis.set_title("\n".join(titles), fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def landmark_maps(examples) -> Figure:
    """The landmarks over the images."""
    figure, axes = _panels(len(examples), 4, height=_SIDE + 0.3)
    for axis, example in zip(axes, examples):
        _draw(axis, example["shown"], alpha=0.7)
        y, x = example["landmarks"].T - 0.5
        axis.scatter(x, y, s=30, c="#ff3b30", edgecolors="white", linewidths=0.9)
        axis.set_title(f"{len(y)} patches")
    return figure


def cluster_maps(examples, patch_size) -> Figure:
    """Each image beside its clusters in their mean colours, with lines between them over both."""
    figure, axes = _panels(2 * len(examples), 4, height=_SIDE + 0.3)
    for (left, right), example in zip(np.reshape(axes, (-1, 2)), examples):
        image, clusters = example["shown"], example["clusters"]
        of_pixels = clusters.repeat(patch_size, axis=0).repeat(patch_size, axis=1)
        numbers = np.unique(clusters)
        means = np.zeros_like(image)
        for number in numbers:
            means[of_pixels == number] = image[of_pixels == number].mean(axis=0)
        for axis, drawn in ((left, image), (right, means)):
            _draw(axis, drawn)
            axis.add_collection(_borders(clusters, patch_size))
        right.set_title(f"{len(numbers)} clusters")
    return figure


def grouped_attention(numbers) -> Figure:
    """One table per block: where the attention of a group's tokens goes."""
    return _tables(numbers, "attention", numbers["groups"], "Blues", Normalize(0, 1))


def grouped_suppression(numbers) -> Figure:
    """One table per block: what reading a group's token adds to another along its direction."""
    values = np.array([*numbers["suppression"].values()], float)
    scale = CenteredNorm(halfrange=np.nanmax(np.abs(values)))  # one for all blocks
    return _tables(numbers, "suppression", [*numbers["groups"], "itself"], "RdBu_r", scale)


def promoted_sinks(examples) -> Figure:
    """One map per image: the proxy of the ranked sinks, a row for each number of masked ones."""
    figure, axes = _panels(len(examples), 4, width=2.8, height=2.9)
    colours = colormaps["RdBu_r"].with_extremes(bad="#dddddd")
    highest = max(e["promoted"][:, e["rank"] > 0].max(initial=10) for e in examples)
    reach = 10 ** np.ceil(np.log10(highest))
    scale = LogNorm(1 / reach, reach)
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, format="{x:g}", shrink=0.9)
    bar.set_ticks([1 / reach, 1, reach])
    bar.set_label("attention, over that to itself")
    for axis, example in zip(axes, examples):
        number = np.sum(example["rank"] > 0)
        ranked = np.argsort(example["rank"], kind="stable")[len(example["rank"]) - number :]
        masked = np.arange(number + 1)[:, None] > np.arange(number)  # [R, sinks]
        values = np.where(masked, np.nan, np.maximum(example["promoted"][:, ranked], scale.vmin))
        axis.set_title("no sinks" if number == 0 else f"{number} sinks")
        axis.set_xlabel("sink, by rank")
        if number == 0:
            continue
        edges = (0.5, number + 0.5, number + 0.5, -0.5)
        style = dict(extent=edges, aspect="auto", interpolation="nearest")
        axis.imshow(values, cmap=colours, norm=scale, **style)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(6, integer=True))
    axes[0].set_ylabel("number of sinks masked")
    return figure


def attention_against_proxy(examples, num_prefix, reader) -> Figure:
    """One dot per patch of the examples: the class-token proxy, and the attention received.

    `reader` is who stands for the class token.
    """
    figure, (axis,) = _panels(1, 1, width=7.5, height=3.8)
    joined = lambda name: np.concatenate([example[name][num_prefix:] for example in examples])
    massive, artifact = joined("massive"), joined("artifact")
    kinds = {"normal": ~massive & ~artifact, "artifact": artifact, "massive": massive}
    for (name, kind), colour in zip(kinds.items(), ("#999999", "#ffb000", "#ff2d95")):
        style = dict(s=14, alpha=0.7, color=colour, linewidths=0)
        axis.scatter(joined("proxy")[kind], joined("received")[kind], label=name, **style)
    for level in (0.3, 1):
        axis.axvline(level, color="#555555", linewidth=0.8, linestyle=":", zorder=0)
    _logarithmic(axis, "x")
    _logarithmic(axis, "y")
    axis.set_xlabel(f"attention from the {reader}, over that to itself (dotted: 0.3 and 1)")
    axis.set_ylabel("attention from all, on average")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def _tables(numbers, name, columns, colours, scale):
    """A table with numbers in its cells for each block; a dash where there are no tokens."""
    figure, axes = _panels(len(numbers[name]), 3, width=3.3, height=2.9)
    colours = colormaps[colours].with_extremes(bad="#eeeeee")
    rows = [
        f"{group}\n({numbers['images_with_group'][group]} images)" for group in numbers["groups"]
    ]
    for index, (axis, (block, table)) in enumerate(zip(axes, numbers[name].items())):
        values = np.array(table, float)  # None becomes NaN
        drawn = axis.imshow(values, cmap=colours, norm=scale, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            light = np.dot(drawn.to_rgba(value)[:3], (0.3, 0.6, 0.1)) > 0.55
            text = "–" if np.isnan(value) else f"{value:z.{2 if abs(value) < 10 else 0}f}"
            ink = "#222222" if light else "white"
            axis.text(j, i, text, ha="center", va="center", color=ink, fontsize=9)
        axis.set_title(f"block {block}")
        axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
        axis.set_yticks(range(len(rows)), rows if index % 3 == 0 else [])
        axis.tick_params(length=0)
    return figure


def _borders(clusters, patch_size):
    """Lines between patches next to each other that are in different clusters."""
    lines = []
    for down, across in ((1, 0), (0, 1)):
        rows, columns = clusters.shape
        differ = clusters[down:, across:] != clusters[: rows - down, : columns - across]
        start = np.argwhere(differ) + (down, across)  # the corner that both patches share
        lines.append(np.stack([start, start + (across, down)], axis=1)[..., ::-1])  # (x, y)
    lines = np.concatenate(lines) * patch_size - 0.5
    return LineCollection(lines, colors="white", linewidths=0.8)


def _panels(number, in_a_row, *, width=_SIDE, height):
    """A figure of that many axes in rows, each of that many inches, and the axes."""
    wide = min(number, in_a_row)
    tall = -(-number // wide)
    size = max(wide * width, 7.5) + 0.3, tall * height + 0.3  # legends need some room
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(tall, wide, squeeze=False).flat)
    for axis in axes[number:]:
        axis.set_axis_off()
    return figure, axes[:number]


def _logarithmic(axis, name):
    """A logarithmic x or y axis, with few plain numbers."""
    axis.set(**{f"{name}scale": "log"})
    low, high = getattr(axis, f"get_{name}lim")()
    side = getattr(axis, f"{name}axis")
    side.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
    side.set_major_formatter("{x:g}")
    side.set_minor_formatter(NullFormatter())


def _draw(axis, image, **style):
    axis.imshow(image, interpolation="nearest", **style)
    axis.set_xticks([])
    axis.set_yticks([])
