# SPDX-License-Identifier: Apache-2.0
"""The benchmark: our kernels and every installed peer on the layers of layers.csv. `python -m bench --help`, README.md."""
