# SPDX-License-Identifier: Apache-2.0
"""Train through tconv's layers with PyTorch's DistributedDataParallel: `python examples/distributed.py --processes 2`.

Each process takes its share of every batch; PyTorch averages the gradients, so that any number of processes that divides the batch
learns what one would. Nothing here but the two lines that name `tconv.torch` differs from a program without tconv.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tconv.torch

BATCH = 8


def network() -> nn.Module:
    """Pictures from their halves: 3 x 8 x 8 -> 3 x 16 x 16."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(16, 16, 4, 2, 1), nn.ReLU(),
                          nn.ConvTranspose2d(16, 3, 3, padding=1))  # fmt: skip
    tconv.torch.swap_(model)
    return model


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth pictures and their halves."""
    small = torch.randn(BATCH, 3, 4, 4, generator=torch.Generator().manual_seed(step))
    large = nn.functional.interpolate(small, size=16, mode="bicubic")
    return nn.functional.avg_pool2d(large, 2), large


def train(rank: int, processes: int, meeting: Path, steps: int, out: Path) -> None:
    """One process: it meets the others by a file, and the first one writes the weights."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=processes)
    model = DistributedDataParallel(network())
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        x, target = (part.chunk(processes)[rank] for part in batch(step))
        loss = (model(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if rank == 0 and step % 10 == 0:
            print(f"step {step}, loss of the first process {loss.item():.4f}", flush=True)
    if rank == 0:
        torch.save(model.module.state_dict(), out)
    # The group must outlive the model: the last one to hold it would otherwise be the model's reducer, which waits for gloo's threads with
    # Python's lock in its hand (pytorch#56297), at times for ever.
    del model, loss
    dist.destroy_process_group()


def main() -> None:
    """Start the processes and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("weights.pt"))
    asked = parser.parse_args()
    if asked.processes < 1 or BATCH % asked.processes:
        parser.error(f"--processes must divide the batch of {BATCH}")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(train, (asked.processes, Path(folder, "meeting"), asked.steps, asked.out), asked.processes)
    print(asked.out)


if __name__ == "__main__":
    main()
