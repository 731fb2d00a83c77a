# SPDX-License-Identifier: Apache-2.0
"""Times inside JAX: `tconv.jax` beside `lax` on the same arrays, compiled, in one process and in turns. The table of docs/guides/jax.md."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from tconv import Spec

from . import layers
from .turns import medians

LAYERS = (
    "dcgan64_l2", "dcgan64_l3", "dcgan64_l5", "pix2pix_unet256_512_128_32", "cyclegan256_up1", "stylegan2_up_16_b1", "fsrcnn_x2",
    "lapsrn_img", "unet2d_256_128", "enet_b4", "centernet_r18_512_d2", "centernet_dla_dw_f2", "dav2_l_resize0", "sam_dec_2", "unet3d_128_64",
    "monai_unet3d_128_64", "hifigan_v1_infer5s_up1", "htdemucs_time_48", "pt41382", "flaggems_g2_s4",
)  # fmt: skip


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m bench jax", description=__doc__)
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), metavar="GLOB")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side at most, of which the medians are told (default 15)")
    parser.add_argument("--threads", type=int, default=2, help="processors that the process may use (default 2)")
    asked = parser.parse_args(words)
    if hasattr(os, "sched_setaffinity"):  # XLA has no other switch
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked.threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    print("| layer | forward: lax, ms | ours, ms | ratio | with gradients: lax, ms | ours, ms | ratio |\n|---|---|---|---|---|---|---|")
    ratios: list[tuple[float, ...]] = []
    for layer in layers.select(asked.layers, layers.read()):
        times = [medians(asked.rounds, *pair) for pair in _pairs(layer.spec)]
        ratios.append(tuple(theirs / ours for theirs, ours in times))
        cells = [f"{theirs:.3g} | {ours:.3g} | {theirs / ours:.2f}" for theirs, ours in times]
        print(f"| {layer.name} | {' | '.join(cells)} |", flush=True)
    means = [statistics.geometric_mean(column) for column in zip(*ratios, strict=True)]
    print(f"geometric means of {len(ratios)} layers: forward {means[0]:.2f}, with gradients {means[1]:.2f}")
    return 0


def _pairs(spec: Spec) -> list[tuple[Callable[[], Any], Callable[[], Any]]]:
    """Calls of lax and of ours: the layer, and the layer with both gradients. Data is (N, ..., C), weights (..., Cin / groups, Cout)."""
    import jax
    from jax import lax
    from jax import numpy as jnp

    import tconv.jax

    letters = "HWD"[: spec.rank]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    pads = [(a.extent - 1 - a.lo, a.extent - 1 - a.hi) for a in spec.axes]

    def theirs(x: Any, w: Any) -> Any:
        return lax.conv_general_dilated(x, w, (1,) * spec.rank, pads, lhs_dilation=spec.stride, rhs_dilation=spec.dilation,
                                        dimension_numbers=numbers, feature_group_count=spec.groups)  # fmt: skip

    def ours(x: Any, w: Any) -> Any:
        return tconv.jax.conv_transpose(x, w, spec.stride, pads, rhs_dilation=spec.dilation, groups=spec.groups)

    rng = np.random.default_rng(0)
    sides = (
        (spec.batch, *spec.input_size, spec.in_channels),
        (*spec.kernel_size, spec.in_channels // spec.groups, spec.out_channels),
        (spec.batch, *spec.output_size, spec.out_channels),
    )
    x, w, g = (jnp.asarray(rng.standard_normal(shape, dtype=np.float32)) for shape in sides)

    def step(function: Any) -> Any:
        def run(x: Any, w: Any, g: Any) -> Any:
            y, back = jax.vjp(function, x, w)
            return y, *back(g)

        return run

    def compiled(function: Any, *arrays: Any) -> Callable[[], Any]:
        made = jax.jit(function).lower(*arrays).compile()
        return lambda: jax.block_until_ready(made(*arrays))

    forward = compiled(theirs, x, w), compiled(ours, x, w)
    close = abs(forward[0]() - forward[1]()).max() / abs(forward[0]()).max()
    if not close < 1e-4:
        raise SystemExit(f"bench: {spec}: the two differ by {close:.2g} of the largest value")
    return [forward, (compiled(step(theirs), x, w, g), compiled(step(ours), x, w, g))]
