# SPDX-License-Identifier: Apache-2.0
"""The words of the frameworks, each a map to the one geometry: PyTorch, ONNX, TensorFlow, Keras 3, JAX, and nine others.

`torch`, `onnx`, `tensorflow`, `keras`, `jax`, `flax`, `haiku`, `equinox`, `mlx`, `tflite` (LiteRT), `openvino`, `ncnn`, `coreml` and
`scipy` (`upfirdn`) take a framework's own arguments (and `input_size`, on which SAME
depends) and give a `Convention`: the `Spec`, how the weight holds its axes, how the data does. Every framework's crop
of the full output, in K = dilation * (kernel - 1) + 1, F = (input - 1) * stride + K and the output's size O:

    framework   words                      lo                                hi                    weight
    torch       padding, output_padding    padding                           lo - output_padding   (Cin, Cout/groups, *k)
    onnx        pads, output_padding       pads_begin                        pads_end - output_padding      "
    onnx        output_shape, SAME_UPPER   T // 2, T = F + op - O            F - lo - O                     "
    onnx        output_shape otherwise     T - T // 2                        F - lo - O                     "
    tensorflow  SAME                       max(F - O, 0) // 2                F - lo - O            (*k, Cout, Cin)
    tensorflow  VALID                      0                                 F - O                          "
    tensorflow  pairs, 2-D                 begin                             F - lo - O                     "
    keras       valid                      0                                 -output_padding                "
    keras       same                       K - 1 - min(ceil(P / 2), K - 1)   2 K - 2 - P - lo               "
    jax         SAME                       as keras, P = K + stride - 2      as keras              (*k, Cin, Cout) flipped, or
    jax         VALID                      0                                 min(K - stride, 0)    as tensorflow with
    jax         pairs (a, b)               K - 1 - a                         K - 1 - b             transpose_kernel
    flax        as jax                     as jax                            as jax                as jax
    haiku       as jax                     as jax                            as jax                (*k, Cout, Cin) flipped
    haiku       output_shape               as tensorflow                     as tensorflow                  "
    equinox     pairs (a, b)               a                                 b - output_padding    (Cout, Cin/groups, *k) flipped
    equinox     SAME, T = K + op - stride  max(T, 0) // 2                    T - lo                         "
    mlx         padding, output_padding    padding < K                       lo - output_padding   (Cout, *k, Cin/groups)
    tflite      SAME, VALID                as tensorflow                     as tensorflow         (Cout, *k, Cin), 3-D (*k, Cout, Cin)
    openvino    pads, output_padding       pads_begin                        pads_end - op         (Cin, Cout, *k), or with groups
    openvino    output_shape, same_upper   ceil(max(T, 0) / 2)               F - lo - O            (groups, Cin/groups, Cout/groups, *k)
    openvino    output_shape, same_lower   max(T, 0) // 2                    F - lo - O                     "
    ncnn        pads, output_pad           pad_left                          pad_right - op        (Cout, Cin/groups, *k)
    ncnn        pad -233, -234, output_w   T // 2, T - T // 2                T - lo - op                    "
    coreml      custom, valid              pad[0], 0                         pad[1], 0             (Cin, Cout/groups, *k)
    coreml      same                       as tensorflow SAME                as tensorflow                  "
    scipy       up                         0                                 0                     (k)

A negative lo or hi appends zeros; op is output_padding. Keras's P is K + stride - 2, or K + K % 2 - 2 + output_padding
where that is given; "valid" takes max(K, stride) - K for an output_padding not given. The tests check every line by
running the frameworks, but for Core ML, which runs on Apple's machines alone: there they compare shapes.

Integers only: neither NumPy nor a framework is imported. To add a framework: one module with its words, one line in
`FRAMEWORKS`, one adapter in tests/frameworks.
"""

from __future__ import annotations

from typing import Any

from . import _convert
from ._convention import Convention, Framework, WeightLayout
from ._convert import Conversion, Instead
from ._coreml import COREML, coreml
from ._equinox import EQUINOX, equinox
from ._flax import FLAX, flax
from ._haiku import HAIKU, haiku
from ._jax import JAX, jax
from ._keras import KERAS, keras
from ._mlx import MLX, mlx
from ._ncnn import NCNN, ncnn
from ._onnx import ONNX, onnx
from ._openvino import OPENVINO, openvino
from ._scipy import SCIPY, scipy
from ._tensorflow import TENSORFLOW, tensorflow
from ._tflite import TFLITE, tflite
from ._torch import TORCH, torch

__all__ = [
    "FRAMEWORKS", "Convention", "Conversion", "Framework", "Instead", "WeightLayout", "convert", "coreml", "equinox", "flax", "haiku",
    "jax", "keras", "mlx", "ncnn", "onnx", "openvino", "scipy", "tensorflow", "tflite", "torch",
]  # fmt: skip

FRAMEWORKS: dict[str, Framework] = {
    framework.name: framework
    for framework in (TORCH, ONNX, TENSORFLOW, KERAS, JAX, FLAX, HAIKU, EQUINOX, MLX, TFLITE, OPENVINO, NCNN, COREML, SCIPY)
}


def convert(source: str, target: str, **arguments: Any) -> Conversion:
    """A layer of one framework in the words of another, or the reason why there are no such words and what to write.

    `source` and `target` are names in `conventions.FRAMEWORKS`; `arguments` are those of the source's function there,
    `input_size` included. The answer's `weight(w)` turns the source's weight into the target's. `ArgumentError` on an
    unknown framework or word, and on arguments that the source framework refuses.

    >>> print(convert("torch", "keras", input_size=(8, 8), kernel_size=4, stride=2, padding=1))
    torch -> keras: c1:1 i8x8 k4 s2 p1 -> 16x16
      arguments  kernel_size=4, strides=2, padding='same'
      weight     transpose(2, 3, 1, 0), (Cin, Cout/groups, *k) -> (*k, Cout/groups, Cin)
      data       (N, C, *size) -> (N, *size, C)
    >>> answer = convert("keras", "torch", input_size=8, kernel_size=3, strides=2, padding="same")
    >>> answer.exists, answer.instead.arguments, answer.instead.slices
    (False, {'kernel_size': 3, 'stride': 2}, (slice(0, 16, None),))
    """
    return _convert.convert(FRAMEWORKS, source, target, arguments)
