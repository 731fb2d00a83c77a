# SPDX-License-Identifier: Apache-2.0
"""What the frameworks as judges need before they are imported."""

import os

# TensorFlow dilates on a CPU by oneDNN alone, which it turns on by itself on newer processors alone (not on a Zen 3).
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
