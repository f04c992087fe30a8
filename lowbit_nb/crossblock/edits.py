"""What becomes of a window's tensors beside its linear weights: settled norms, and input clips that are learned."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb.activations import CLIP

SHORTEST = 0.2  # the least share of its ends that the ruler of a layer's inputs may keep


class WindowEdits:
    """Edits that stay, and one learned share of the ends for every linear layer's inputs, if asked.

    clips  names of the linear layers whose inputs' rulers are learned

    Source: CBQ (learned step sizes of activations). Differs: activations are rounded token by token, so what is learned is the
    share of each token's range; it starts at 1 and stays between SHORTEST and 1.
    """

    def __init__(self, params: dict[str, Tensor], clips: list[str], device: torch.device) -> None:
        self.params, self.clips = params, clips
        self.share = torch.ones(len(clips), device=device, requires_grad=bool(clips))

    def parameters(self) -> list[dict]:
        return [{"params": [self.share], "role": "input_clip"}] if self.clips else []

    def tensors(self) -> dict[str, Tensor]:
        """The edits now, differentiable in the shares.

        Shapes:  {name: tensor}; a share is a scalar.
        Units:   those of the tensors.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        if not self.clips:
            return self.params
        with torch.no_grad():  # in place, so that a share at an end can come back
            self.share.clamp_(SHORTEST, 1.0)
        return self.params | {f"{name}.{CLIP}": share for name, share in zip(self.clips, self.share.unbind(), strict=True)}

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """The edits to be kept: shares as float16 holds them.

        Shapes:  as `tensors`.
        Units:   as `tensors`.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return {name: t.half().float() if name.endswith(f".{CLIP}") else t for name, t in self.tensors().items()}
