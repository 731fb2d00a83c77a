# SPDX-License-Identifier: Apache-2.0
"""tconv in PyTorch: the layer as functions and modules with PyTorch's names, and `swap_`, which puts them into a model.

Tensors on the CPU of float32, float64, float16 and bfloat16 are computed by tconv where they lie (of the last two, those that are not
dense are copied); all others by PyTorch's own operator. As many threads compute as `torch.get_num_threads()` says: PyTorch's own, where
those are an OpenMP runtime's.
"""

from __future__ import annotations

from ._report import Report as Report
from ._torch_fold import fold_ as fold_
from ._torch_layers import ConvTranspose1d as ConvTranspose1d
from ._torch_layers import ConvTranspose2d as ConvTranspose2d
from ._torch_layers import ConvTranspose3d as ConvTranspose3d
from ._torch_layers import LazyConvTranspose1d as LazyConvTranspose1d
from ._torch_layers import LazyConvTranspose2d as LazyConvTranspose2d
from ._torch_layers import LazyConvTranspose3d as LazyConvTranspose3d
from ._torch_layers import conv_transpose1d as conv_transpose1d
from ._torch_layers import conv_transpose2d as conv_transpose2d
from ._torch_layers import conv_transpose3d as conv_transpose3d
from ._torch_swap import revert_ as revert_
from ._torch_swap import swap_ as swap_

__all__ = [
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
    "Report",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "fold_",
    "revert_",
    "swap_",
]
