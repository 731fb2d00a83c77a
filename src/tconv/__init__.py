# SPDX-License-Identifier: Apache-2.0
"""tconv: the transposed convolutional layer, exact in every framework's terms, fast on a CPU."""

from . import conventions as conventions
from . import reference as reference
from ._deconvolve import conv_transpose_inverse as conv_transpose_inverse
from ._deconvolve import deconvolve as deconvolve
from ._functional import Gradients as Gradients
from ._functional import conv_transpose as conv_transpose
from ._functional import conv_transpose_grad_input as conv_transpose_grad_input
from ._functional import conv_transpose_grad_weight as conv_transpose_grad_weight
from ._functional import conv_transpose_grads as conv_transpose_grads
from ._functional import stamp as stamp
from ._method import Deconvolution as Deconvolution
from ._operator import Operator as Operator
from ._posed import Posedness as Posedness
from ._runtime import __version__ as __version__
from ._runtime import config as config
from ._runtime import get_num_threads as get_num_threads
from ._runtime import kernels as kernels
from ._runtime import set_num_threads as set_num_threads
from ._runtime import show_config as show_config
from ._spec import ArgumentError as ArgumentError
from ._spec import Axis as Axis
from ._spec import Spec as Spec
from .conventions import convert as convert

__all__ = [
    "ArgumentError",
    "Axis",
    "Deconvolution",
    "Gradients",
    "Operator",
    "Posedness",
    "Spec",
    "config",
    "conv_transpose",
    "conv_transpose_grad_input",
    "conv_transpose_grad_weight",
    "conv_transpose_grads",
    "conv_transpose_inverse",
    "conventions",
    "convert",
    "deconvolve",
    "get_num_threads",
    "kernels",
    "reference",
    "set_num_threads",
    "show_config",
    "stamp",
]
