# SPDX-License-Identifier: Apache-2.0
"""tconv in Keras 3: the layer as Keras's layers, and `swap`, which puts them into a model; on TensorFlow, PyTorch or JAX.

Tensors on a CPU are computed by tconv, those elsewhere by the operators of Keras's backend. Importing this imports Keras, and of the
backends only the one that Keras itself uses.
"""

from __future__ import annotations

from ._keras_layers import Conv1DTranspose as Conv1DTranspose
from ._keras_layers import Conv2DTranspose as Conv2DTranspose
from ._keras_layers import Conv3DTranspose as Conv3DTranspose
from ._keras_swap import Swapped as Swapped
from ._keras_swap import revert as revert
from ._keras_swap import swap as swap
from ._report import Report as Report

__all__ = ["Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", "Report", "Swapped", "revert", "swap"]
