"""Negative log likelihood of a normal distribution whose mean and variance are both answered (Nix & Weigend 1994), in float32, summed over
the known targets of each sample. The constant ln(2 pi) / 2 is left out.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import softplus

from eyegraft.config import Strict
from eyegraft.errors import PartError
from eyegraft.types import Batch, Loss, Output, TokenLogits

LOG_VARIANCE_LIMIT = 10.0
"""Of standardised targets: standard deviations from 0.7 % to 150 times that of the training targets."""


class Config(Strict):
    """Nothing to choose."""


class GaussianNLL(nn.Module):
    def counts(self, batch: Batch) -> Tensor:
        return (~batch.targets.isnan()).sum(1).float()

    def forward(self, output: Output, batch: Batch) -> Loss:
        targets, (rows, num_outputs) = output.labels, output.labels.shape
        if isinstance(output.logits, TokenLogits) or output.logits.shape != (rows, 2 * num_outputs):
            given = "of tokens" if isinstance(output.logits, TokenLogits) else str(tuple(output.logits.shape))
            raise PartError(
                f"objective=gaussian_nll: logits {given}, targets {tuple(targets.shape)}",
                "a mean and a log variance for each target, [B, 2 K] and [B, K]",
                "set tasks.NAME.distribution=gaussian, or another objective",
            )
        known = ~targets.isnan()
        mean, log_variance = mean_and_log_variance(output.logits)
        error = (mean - targets.where(known, 0.0)).square()
        losses = (log_variance + error * (-log_variance).exp()) / 2  # [B, K]
        return Loss(losses.where(known, 0.0).sum(1), known.sum(1).float())


def mean_and_log_variance(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [B, 2 K] -> means and log variances, [B, K] each, in float32 or better.

    Log variances are bent into ±`LOG_VARIANCE_LIMIT` (Chua et al. 2018, appendix A.1), where a cut would leave them without a gradient.
    """
    wide = logits if logits.element_size() >= 4 else logits.float()
    mean, raw = wide.chunk(2, dim=1)
    below = LOG_VARIANCE_LIMIT - softplus(LOG_VARIANCE_LIMIT - raw)
    return mean, softplus(below + LOG_VARIANCE_LIMIT) - LOG_VARIANCE_LIMIT


def build(config: Config) -> GaussianNLL:
    return GaussianNLL()
