"""The certainty of the teacher that distillation temperatures can follow."""

from torch import Tensor


def max_logit(logits: Tensor) -> Tensor:
    """The largest logit less the mean of the logits, in float32 or wider: [B], >= 0, unmoved by a shift of all logits.

    Args:
        logits: [B, K], of any floating type.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return (logits.amax(dim=1, keepdim=True) - logits).mean(dim=1)
