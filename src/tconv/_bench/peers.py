# SPDX-License-Identifier: Apache-2.0
"""The table of the libraries that are timed: one small class each, in peers_channels_first.py and peers_channels_last.py.

A peer is made with the number of threads; `prepare(spec, x, w)` gets canonical arrays of one dtype, float32 or float64,
creates everything in the library's own layout and returns a callable that runs one forward pass without bias; `result(y)`
gives what that callable returned as (N, Cout, *O). The constructor imports the library. `prepare` raises `Cannot` with the
reason where the library has no such layer. `note` says what a reader of the table must know: the layout, whether the weight
is a constant that the library may repack once, and whether the output's memory is new in every call or reused.
"""

from __future__ import annotations

from typing import Any

from . import gauge
from .peers_channels_first import OnnxRuntime, OpenVino, OurOperator, Ours, Torch, TorchChannelsLast
from .peers_channels_last import Jax, LiteRT, TensorFlow

PEERS: dict[str, type[Any]] = {
    "tconv_op": OurOperator,
    "tconv": Ours,
    "torch": Torch,
    "torch_cl": TorchChannelsLast,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "tensorflow": TensorFlow,
    "jax": Jax,
    "litert": LiteRT,
}


def make(name: str, threads: int) -> Any:
    """A peer by name; ours take options: "tconv_op:algorithm=direct_avx2+dtype=float64+layout=channels_last"."""
    peer, _, options = name.partition(":")
    if peer == "gauge":
        return gauge.Gauge(options, threads)
    return PEERS[peer](threads, **dict(option.split("=", 1) for option in options.split("+") if option))


def unknown(names: list[str]) -> list[str]:
    """The names that no peer has."""
    return [name for name in names if name.partition(":")[0] not in PEERS]


def is_ours(name: str) -> bool:
    return name.startswith("tconv")
