"""The trainings: MONAI's trainer with a UNet, and with a network that is little but launches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from monai.engines import SupervisedTrainer

Batch = dict[str, torch.Tensor]


class Batches:
    """The same batch again and again; calls ``begin`` before that of number ``at``."""

    def __init__(
        self, batch: Batch, count: int, at: int = -1, begin: Callable[[], None] = lambda: None
    ) -> None:
        self._batch, self._count, self._at, self._begin = batch, count, at, begin

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self._count):
            if number == self._at:
                self._begin()
            yield self._batch


class Parts:
    """What a training is made of. Its trainers are made anew, and all train the same network."""

    def __init__(
        self,
        network: torch.nn.Module,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        batch: Batch,
        device: torch.device,
        amp: bool = False,
    ) -> None:
        self.network, self.loss, self.batch, self.device = network.to(device), loss, batch, device
        self.amp = amp
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-4)

    def trainer(self, loader: Any, handlers: Sequence[Any] = (), **more: Any) -> SupervisedTrainer:
        """A new trainer of one epoch."""
        return SupervisedTrainer(
            device=self.device, max_epochs=1, train_data_loader=loader, network=self.network,
            optimizer=self.optimizer, loss_function=self.loss, amp=self.amp, decollate=False,
            train_handlers=list(handlers) or None, optim_set_to_none=True, non_blocking=True,
            **more,
        )  # fmt: skip

    def steps(self, count: int) -> SupervisedTrainer:
        """A new trainer of so many steps."""
        return self.trainer(Batches(self.batch, count))


def unet(device: torch.device, amp: bool = False, on_device: bool = True) -> Parts:
    """A UNet on two volumes of 96 voxels a side, which keeps a GPU busy.

    Args:
        device: that it is trained on.
        amp: whether in mixed precision; the step of its optimizer then waits for the GPU.
        on_device: whether the batches are there already, or are copied in each step.
    """
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNet

    network = UNet(
        spatial_dims=3, in_channels=1, out_channels=2, channels=(32, 64, 128, 256),
        strides=(2, 2, 2), num_res_units=2,
    )  # fmt: skip
    image = torch.rand(2, 1, 96, 96, 96)
    batch = {"image": image, "label": (image > 0.5).float()}
    place = {key: value.to(device) if on_device else pinned(value) for key, value in batch.items()}
    return Parts(network, DiceCELoss(to_onehot_y=True, softmax=True), place, device, amp)


def pinned(value: torch.Tensor) -> torch.Tensor:
    """Where a copy need not wait, if there is a GPU."""
    return value.pin_memory() if torch.cuda.is_available() else value


def tiny(device: torch.device, amp: bool = False) -> Parts:
    """A network for which the host takes longer than the device: all that costs is launches."""
    network = torch.nn.Sequential(
        torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)
    )  # fmt: skip
    batch = {"image": torch.rand(8, 32).to(device), "label": torch.rand(8, 4).to(device)}
    return Parts(network, torch.nn.functional.mse_loss, batch, device, amp)


class Calls(torch.nn.Module):
    """A network that does something in its forward, besides a little of its own."""

    def __init__(self, within: Callable[[], Any]) -> None:
        super().__init__()
        self._within, self.line = within, torch.nn.Linear(32, 4)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """The little first: what is called is the last that a forward does."""
        found: torch.Tensor = self.line(value)
        self._within()
        return found


def calling(device: torch.device, within: Callable[[], Any]) -> Parts:
    """A training whose forward calls something."""
    batch = {"image": torch.rand(8, 32).to(device), "label": torch.rand(8, 4).to(device)}
    return Parts(Calls(within), torch.nn.functional.mse_loss, batch, device)
