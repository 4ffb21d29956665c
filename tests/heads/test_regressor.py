"""A number is answered in float32, however coarse the layers before it are."""

from __future__ import annotations

import torch

from eyegraft.heads import regressor
from eyegraft.types import Batch, Tokens


def test_half_precision_does_not_answer_in_steps() -> None:
    torch.manual_seed(0)
    head = regressor.build(regressor.Config(hidden_dim=32), in_dim=8, num_outputs=1).eval()
    torch.nn.init.constant_(head.last.bias, 3.0)  # where bfloat16 has steps of 0.016
    values = torch.randn(1, 1, 8) + torch.linspace(0, 0.05, 400).view(-1, 1, 1)  # [400, 1, 8]
    nothing = torch.zeros(400, 0)
    batch = Batch({}, nothing.long(), nothing.bool(), nothing.long(), [], torch.zeros(400, 1))
    tokens = Tokens(values, torch.ones(400, 1, dtype=torch.bool))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        answers, _ = head(tokens, batch)
    assert answers.dtype == torch.float32
    assert len(answers.unique()) > 20 * len(answers.bfloat16().unique())
    with torch.no_grad():
        coarse, _ = head.bfloat16()(Tokens(values.bfloat16(), tokens.mask), batch)
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, answers, atol=0.02, rtol=0)
