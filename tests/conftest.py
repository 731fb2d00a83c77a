# SPDX-License-Identifier: Apache-2.0
"""Settings that every test shares: how hypothesis searches, and what the first lines of a run say."""

import os

import numpy as np
from hypothesis import HealthCheck, settings

# No deadline: machines differ. In CI the same examples every time, so that a red run is red again.
settings.register_profile("local", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_report_header() -> str:
    """Which tconv is tested, with which kernels: the first question about any failure."""
    import tconv

    return f"tconv {tconv.__version__} from {os.path.dirname(tconv.__file__)}, kernels {', '.join(tconv.kernels())}, NumPy {np.__version__}"
