"""The teacher's logits of views that were seen before, looked up instead of computed again.

A random crop and flip has few different results: 162 for an image of CIFAR under the usual padding of 4 pixels. Of the
views that 240 epochs draw, 48 % were drawn before.
"""

import torch
from torch import Tensor, nn

from pipeline.errors import ParamsError
from pipeline.store.space import host_memory

# The teacher gets batches of a multiple of so many images, filled up with images whose logits are known: kernels are
# chosen by the batch size, which then has few values, and a single image would get another kernel than several do.
_MULTIPLE = 8


class TeacherCache:
    """The frozen teacher with a table of its logits.

    The logits equal the teacher's own bit for bit where the device computes an image alike in all batches: true on the
    CPU that was tested, not promised for GPUs. Crash checkpoints do not hold the table; a resumed run fills it anew.

    Args:
        teacher: in eval mode, on the device.
        images: N of the training split.
        views: V, the number of different views of an image.
        processes: number of data-parallel processes; on a CPU they share its memory.
    """

    def __init__(self, teacher: nn.Module, images: int, views: int, device: torch.device, processes: int = 1) -> None:
        self._teacher = teacher
        self._images, self._views = images, views
        on_gpu = device.type == "cuda"
        memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else host_memory() // processes
        self._most_bytes = memory // 4
        self._known = torch.zeros(images * views, dtype=torch.bool, device=device)
        self._logits: Tensor | None = None  # [N * V, K], in the precision of the teacher's output

    @torch.no_grad()
    def __call__(self, images: Tensor, index: Tensor, views: Tensor) -> Tensor:
        """The teacher's logits [M, K].

        On a GPU the host waits once, for the number of unknown images.

        Args:
            images: [M, C, H, W].
            index: int64 [B], B <= M: indices in the split of the first B images. The logits of the others are computed
                and not stored.
            views: int64 [B], the view of each of them.

        Raises:
            ParamsError: the table would fill more than a quarter of the device's memory.
        """
        keys = self._views * index + views
        known = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        known[: len(keys)] = self._known[keys]
        unknown = int((~known).sum())
        computed = known.byte().argsort(stable=True)[: -(-unknown // _MULTIPLE) * _MULTIPLE]
        if unknown == 0 and self._logits is not None:
            return self._logits[keys]
        fresh: Tensor = self._teacher(images[computed])
        table = self._table(fresh)
        logits = fresh.new_empty(len(images), fresh.shape[1])
        logits[: len(keys)] = table[keys]
        logits[computed] = fresh
        table[keys] = logits[: len(keys)]
        self._known[keys] = True
        return logits

    def clear(self) -> None:
        """Forget all logits."""
        self._known.zero_()
        self._logits = None

    def _table(self, logits: Tensor) -> Tensor:
        if self._logits is None:
            shape = self._images * self._views, logits.shape[1]
            needed = shape[0] * shape[1] * logits.element_size()
            if needed > self._most_bytes:
                raise ParamsError(
                    f"params.yaml: distill.teacher_cache would keep {needed / 1e9:.1f} GB ({self._images} images x "
                    f"{self._views} views x {shape[1]} classes), more than a quarter of the memory; set it to false"
                )
            self._logits = logits.new_empty(shape)
        return self._logits
