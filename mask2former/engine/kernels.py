"""Kernels that are chosen by measurement, and shall be the same in all of a run."""

from typing import Any

from mask2former.d2 import comm
from mask2former.engine.hooks import Hook
from mask2former.ops import cpu


class SameKernels(Hook):
    """Lets all processes, and a run that resumes, compute linear layers on a CPU as the main process did at first.

    Which of two kernels is faster each process measures when it needs to know; they differ in the last digits.
    """

    def after_step(self) -> None:
        """After the first step, let the main process decide."""
        if self.trainer.iter == self.trainer.start_iter and comm.get_world_size() > 1:
            self.load_state_dict(comm.all_gather(self.state_dict())[0])

    def state_dict(self) -> dict[str, Any]:
        """The choice, once there is one."""
        return {} if cpu.convolution_is_faster is None else {"convolution": cpu.convolution_is_faster}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Choose alike."""
        cpu.convolution_is_faster = state.get("convolution", cpu.convolution_is_faster)
