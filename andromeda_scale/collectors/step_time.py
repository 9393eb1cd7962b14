"""When each step began and ended: the one collector that is always on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class StepTime:
    """One mark per step boundary; nothing waits until the window has closed.

    CPU: perf_counter_ns. CUDA: an event on the current stream, so a step lasts from where the
    device began it to where it began the next; the host may run ahead. `window_ns` is the wall
    time between the synchronised edges of the window, `start_s` its first edge on the node's
    monotonic clock, by which the agent's samples are found.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start_ns = 0
        self._start_s = 0.0
        self._marks: list[Any] = []

    def start(self, num_steps: int) -> None:
        """Open the window. Everything given to the device before must be done."""
        self._unused: list[Any] = []
        if self._device.type == "cuda":
            import torch

            make: Any = torch.cuda.Event
            self._unused = [make(enable_timing=True) for _ in range(num_steps + 1)]
        self._marks = []
        self._start_s = time.monotonic()
        self._start_ns = time.perf_counter_ns()
        self.boundary()

    def boundary(self) -> None:
        """A step ends here and the next one begins."""
        if self._unused:
            event = self._unused.pop()
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter_ns())

    def stop(self) -> dict[str, Any]:
        """Close the window: {"start_s", "step_ns": one per step, "window_ns"} of this rank."""
        pairs = list(zip(self._marks[:-1], self._marks[1:], strict=True))
        if self._device.type != "cuda":
            return {
                "start_s": self._start_s,
                "step_ns": [after - before for before, after in pairs],
                "window_ns": self._marks[-1] - self._start_ns,
            }
        import torch

        torch.cuda.synchronize(self._device)
        window_ns = time.perf_counter_ns() - self._start_ns
        step_ns = [round(before.elapsed_time(after) * 1e6) for before, after in pairs]
        return {"start_s": self._start_s, "step_ns": step_ns, "window_ns": window_ns}
