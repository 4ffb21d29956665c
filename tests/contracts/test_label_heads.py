"""Every head that answers in labels keeps the promises of `eyegraft.heads.Head`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contracts.samples import cases, part, rejects_unknown_keys, reloads
from eyegraft.errors import PartError
from eyegraft.types import Batch, Tokens

DIM, K = 8, 3
pytestmark = pytest.mark.parametrize("case", cases("heads", speaks="labels"))


def built(case: tuple[str, str], folders: Any) -> Any:
    module, config = part("heads", case, folders)
    torch.manual_seed(0)
    return module.build(config, in_dim=module.input_dim(config) or DIM, num_outputs=K).eval()


def given(count: int = 1) -> tuple[Tokens, Batch]:
    generator = torch.Generator().manual_seed(1)
    nothing, targets = torch.zeros(4, 0), torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [float("nan")] * 3])
    values = torch.randn(4, count, DIM, generator=generator)
    return Tokens(values, torch.ones(4, count, dtype=torch.bool)), Batch({}, nothing.long(), nothing.bool(), nothing.long(), [], targets)


def test_config_is_strict(case: tuple[str, str], folders: Any) -> None:
    rejects_unknown_keys(*part("heads", case, folders))


def test_one_number_an_output_beside_the_targets(case: tuple[str, str], folders: Any) -> None:
    tokens, batch = given()
    logits, labels = built(case, folders)(tokens, batch)
    assert logits.shape == labels.shape == (4, K)
    assert torch.equal(labels.nan_to_num(9), batch.targets.nan_to_num(9))


def test_rows_do_not_see_each_other(case: tuple[str, str], folders: Any) -> None:
    head, (tokens, batch) = built(case, folders), given()
    together, _ = head(tokens, batch)
    alone, _ = head(Tokens(tokens.values[2:3], tokens.mask[2:3]), batch)
    torch.testing.assert_close(alone[0], together[2])


def test_gradient_reaches_every_parameter(case: tuple[str, str], folders: Any) -> None:
    head, (tokens, batch) = built(case, folders), given()
    head(tokens, batch)[0].square().sum().backward()
    assert not [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]


def test_what_it_cannot_read_is_refused(case: tuple[str, str], folders: Any) -> None:
    with pytest.raises(PartError, match="pool"):
        built(case, folders)(*given(count=5))
    module, config = part("heads", case, folders)
    with pytest.raises(PartError, match="label task"):
        module.build(config, in_dim=DIM, num_outputs=0)


def test_state_makes_another_instance_equal(case: tuple[str, str], folders: Any) -> None:
    tokens, batch = given()
    module, config = part("heads", case, folders)
    reloads(lambda: module.build(config, in_dim=DIM, num_outputs=K), lambda head: head(tokens, batch)[0])
