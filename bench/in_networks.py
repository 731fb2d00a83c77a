# SPDX-License-Identifier: Apache-2.0
"""One variant of a network in a process of its own: `python -m bench.in_networks VARIANT THREADS`.

Variants that share a process share its heap as well: each frees memory that another one then takes, and they pay for one another's
page faults. Requests are "hello" and "time" of tconv's worker (tconv._bench.worker), and

    {"do": "prepare", "network": ..., "mode": ..., "what": ..., "variant": ..., "sizes": ...}    -> width and size of the network
    {"do": "layers", "count": n}    -> of every transposed convolution in it: name, shape, module, and median seconds over n calls
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tconv._bench.worker import Worker, serve


class Variant(Worker):
    """Inference or a training step of a network as it is, swapped or folded."""

    def prepare(self, network: str, mode: str, what: str, variant: str, sizes: str) -> dict[str, Any]:
        """Build it, and call it until it is compiled, planned and packed."""
        import torch

        import tconv.torch

        from .networks import NETWORKS

        torch.manual_seed(0)
        kind = NETWORKS[network]
        width, size = getattr(kind, sizes)
        model, inputs = kind.build(width).train(what == "training step"), kind.inputs(width, size)
        if variant != "torch":
            (tconv.torch.fold_ if variant == "folded" else tconv.torch.swap_)(model)
        self.model = model
        call = torch.compile(model) if mode == "compiled" else model
        self.run = training(call, inputs) if what == "training step" else inference(call, inputs)
        self._mean(3)
        return {"width": width, "size": size}

    def layers(self, count: int) -> dict[str, Any]:
        """What the layers take where they are: forward, and in training backward as well."""
        found = {name: m for name, m in self.model.named_modules() if type(m).__name__.startswith("ConvTranspose")}
        shapes: dict[str, Any] = {}
        seconds: dict[str, list[float]] = {name: [] for name in found}
        began: dict[str, float] = {}

        def begin(name: str) -> Callable[..., None]:
            def hook(module: Any, x: Any) -> None:
                shapes.setdefault(name, list(x[0].shape))  # the input's: backward comes later
                began[name] = time.perf_counter()

            return hook

        def end(name: str, backward: bool) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                taken = time.perf_counter() - began[name]
                if backward:
                    seconds[name][-1] += taken
                else:
                    seconds[name].append(taken)

            return hook

        hooks = []
        for name, module in found.items():
            hooks += [module.register_forward_pre_hook(begin(name)), module.register_forward_hook(end(name, False)),
                      module.register_full_backward_pre_hook(begin(name)), module.register_full_backward_hook(end(name, True))]  # fmt: skip
        for _ in range(count):
            self.run()
        for hook in hooks:
            hook.remove()
        return {"layers": [{"layer": name, "shape": shapes[name], "module": repr(m), "seconds": statistics.median(seconds[name])}
                           for name, m in found.items()]}  # fmt: skip


def inference(model: Any, inputs: tuple[Any, ...]) -> Callable[[], object]:
    """A call without gradients."""
    import torch

    def call() -> None:
        with torch.no_grad():
            model(*inputs)

    return call


def training(model: Any, inputs: tuple[Any, ...]) -> Callable[[], object]:
    """A step of SGD with momentum."""
    import torch

    from .networks import train

    optimiser = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)
    return lambda: train(model, inputs, 1, optimiser)


def _library(threads: int) -> Any:
    import torch

    torch.set_num_threads(threads)
    return SimpleNamespace(version=torch.__version__, note="")


if __name__ == "__main__":
    serve(lambda: _library(int(sys.argv[2])), Variant)
