# SPDX-License-Identifier: Apache-2.0
"""A photograph of one megapixel through `tconv upscale`: `python -m bench.photo` prints the table of docs/guides/networks.md.

The photograph of examples/, resized, read and written as JPEG, by the command in a process of its own on two threads; medians of five.
Peak memory is what Linux counts for that process alone.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from PIL import Image

from .checkout import ROOT

SIZE, SCALES, RUNS = (1200, 834), (2, 3, 4), 5
PEAK = "import re, sys; from tconv.cli import main; main(sys.argv[1:]); print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"


def run(photo: Path, scale: int, method: str) -> tuple[float, float]:
    """Seconds of the command, and the MiB at its peak."""
    words = ["upscale", str(photo), str(photo.with_name("large.jpg")), "--scale", str(scale), "--method", method, "--threads", "2"]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PEAK, *words], stdout=subprocess.PIPE, check=True, text=True)
    return time.perf_counter() - start, int(done.stdout.split()[-1]) / 1024


def main() -> None:
    print("| scale | network | bicubic | peak memory, network |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.jpg")
        Image.open(ROOT / "examples" / "chelsea.jpg").resize(SIZE, Image.Resampling.LANCZOS).save(photo)
        for scale in SCALES:
            network, bicubic = ([run(photo, scale, method) for _ in range(RUNS)] for method in ("net", "bicubic"))
            seconds = (f"{median(taken for taken, _ in runs):.1f} s" for runs in (network, bicubic))
            print(f"| {scale} | {' | '.join(seconds)} | {median(peak for _, peak in network):.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
