# SPDX-License-Identifier: Apache-2.0
"""The engine that times layers beside other libraries: `tconv bench` and the repository's bench/ are made of it. Private."""
