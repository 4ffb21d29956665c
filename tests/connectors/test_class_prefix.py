"""A class token beside the picture: where each lands, and that the class is a table of K vectors."""

from __future__ import annotations

import pytest
import torch

from eyegraft.connectors import class_mean, class_prefix
from eyegraft.errors import PartError
from eyegraft.types import Tokens


def tokens(count: int = 6, prefix: int = 1) -> Tokens:
    values = torch.randn(2, count, 8, generator=torch.Generator().manual_seed(0))
    return Tokens(values, torch.arange(count) < torch.tensor([[count], [count - 2]]), num_prefix=prefix)


def test_the_mean_is_of_all_but_the_class() -> None:
    given = tokens()
    out = class_mean.build(class_mean.Config(), in_dim=8, out_dim=8)(given)
    assert torch.equal(out.values[:, 0], given.values[:, 0])
    torch.testing.assert_close(out.values[:, 1], torch.stack([given.values[0, 1:].mean(0), given.values[1, 1:4].mean(0)]))
    assert (out.num_prefix, out.mask.tolist()) == (1, [[True, True], [True, True]])


def test_image_tokens_then_the_class() -> None:
    torch.manual_seed(0)
    made = class_prefix.build(class_prefix.Config(num_tokens=4), in_dim=8, out_dim=12)
    shapes = [tuple(layer.weight.shape) for layer in (made.image[0], made.image[2], made.name[1])]
    assert shapes == [(48, 8), (48, 48), (12, 8)], "Linear(in, H·n), Linear, and a table of the new width"
    given = tokens(2)
    out = made(given)
    assert out.values.shape == (2, 5, 12)
    torch.testing.assert_close(out.values[:, :4], made.image(given.values[:, 1]).view(2, 4, 12))
    torch.testing.assert_close(out.values[:, 4], made.name(given.values[:, 0]))


def test_any_table_of_classes_can_be_learned() -> None:
    """Twenty class tokens of the encoder's size, twenty vectors that have nothing to do with them."""
    torch.manual_seed(0)
    types, table = torch.randn(20, 32) * 0.02, torch.randn(20, 48)
    made = class_prefix.build(class_prefix.Config(), in_dim=32, out_dim=48)
    normed = torch.cat([made.name[0](types), torch.ones(20, 1)], dim=1).detach()
    found = torch.linalg.lstsq(normed, table).solution
    with torch.no_grad():
        made.name[1].weight.copy_(found[:32].T)
        made.name[1].bias.copy_(found[32])
    values = torch.stack([types, types], dim=1)
    out = made(Tokens(values, torch.ones(20, 2, dtype=torch.bool), num_prefix=1))
    torch.testing.assert_close(out.values[:, -1], table, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("made", [class_mean.ClassMeanPooling(8), class_prefix.build(class_prefix.Config(), in_dim=8, out_dim=8)])
def test_without_a_class_token(made: torch.nn.Module) -> None:
    with pytest.raises(PartError, match=r"class_(mean|prefix), but the encoder gives no class token"):
        made(tokens(prefix=0))
