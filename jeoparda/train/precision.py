"""In what numbers a network is trained."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from jeoparda.errors import RecipeError

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """weights: the type of weights, batches and the loss. scaler: of the loss, so that float16 gradients do not vanish
    (Micikevicius et al., "Mixed precision training", ICLR 2018); it does nothing in the other precisions."""

    name: str
    weights: torch.dtype
    device: torch.device
    scaler: torch.amp.GradScaler

    def autocast(self) -> AbstractContextManager[object]:
        """Within it the forward pass runs in the recipe's precision."""
        if self.name not in _AUTOCAST:
            return nullcontext()
        return torch.autocast(self.device.type, _AUTOCAST[self.name])


def of(name: str, device: torch.device) -> Precision:
    """The precision of that name on a device, for which torch is set. RecipeError where the device has none such."""
    cuda = device.type == "cuda"
    if name == "tf32" and not (cuda and torch.cuda.get_device_capability(device) >= (8, 0)):
        what = torch.cuda.get_device_name(device) if cuda else "a CPU"
        raise RecipeError(f"precision = tf32: is of NVIDIA GPUs from A100 on, this is {what}; take float32")
    if name == "bfloat16" and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        what = torch.cuda.get_device_name(device)
        raise RecipeError(f"precision = bfloat16: {what} has none; take float16")
    # torch's own default lets convolutions be TF32 where float32 was asked for
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    weights = torch.float64 if name == "float64" else torch.float32
    return Precision(name, weights, device, torch.amp.GradScaler(device.type, enabled=name == "float16"))
