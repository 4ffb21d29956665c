"""Every head that writes text keeps the promises of `eyegraft.heads.TextHead`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from contracts.samples import cases, part, rejects_unknown_keys, reloads
from eyegraft.errors import PartError
from eyegraft.types import IGNORE, Tokens

PAIRS = [("What is drawn here?", "a red square"), ("Name it:", "파란 동그라미"), ("What?", "a green triangle and more")]
PROMPTS = [(prompt, None) for prompt, _ in PAIRS]
COUNT, NEW = 5, 10
pytestmark = pytest.mark.parametrize("case", cases("heads", speaks="text"))
_built: dict[tuple[str, str], Any] = {}


def built(module: Any, config: Any) -> Any:
    return module.build(config, in_dim=module.input_dim(config), num_outputs=0)


@pytest.fixture
def made(case: tuple[str, str], folders: Any) -> Any:
    """The head of a case, built once, with weights large enough that what it says depends on all that it sees."""
    if case not in _built:
        module, config = part("heads", case, folders)
        torch.manual_seed(0)
        _built[case] = tiny.lively(built(module, config), scale=15)
        _built[case].in_dim = module.input_dim(config)
    head = _built[case].eval()
    head.zero_grad()
    return head


def image_tokens(head: Any, *, seed: int = 0, real: tuple[int, ...] = (COUNT, 3, 4)) -> Tokens:
    """Image tokens of the size of the language model's own; some rows have missing ones, in the middle too."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(real), COUNT, dtype=torch.bool)
    for row, count in enumerate(real):
        mask[row, torch.randperm(COUNT, generator=generator)[:count]] = True
    return Tokens(torch.randn(len(real), COUNT, head.in_dim, generator=generator), mask)


def row(tokens: Tokens, number: int) -> Tokens:
    """One row alone, without its missing tokens."""
    keep = tokens.mask[number]
    return Tokens(tokens.values[number : number + 1, keep], tokens.mask[number : number + 1, keep])


def summed_loss(head: Any, tokens: Tokens, batch: Any) -> torch.Tensor:
    logits, labels = head(tokens, batch)
    return torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORE, reduction="none").sum(1)


def test_config_is_strict(case: tuple[str, str], folders: Any) -> None:
    rejects_unknown_keys(*part("heads", case, folders))


def test_the_wrong_width_is_refused(case: tuple[str, str], folders: Any) -> None:
    module, config = part("heads", case, folders)
    with pytest.raises(PartError, match="width"):
        module.build(config, in_dim=module.input_dim(config) + 1, num_outputs=0)


def test_logits_and_labels_are_aligned(made: Any) -> None:
    """Everything that the batch says is learned is learned, once, and nothing else."""
    batch = tiny.text_batch(made.tokenizer, PAIRS)
    logits, labels = made(image_tokens(made), batch)
    assert logits.shape[:2] == labels.shape
    assert logits.isfinite().all()
    for number in range(len(batch)):
        learned = batch.labels[number][batch.labels[number] != IGNORE]
        assert torch.equal(labels[number][labels[number] != IGNORE], learned)


def test_the_first_token_is_learned_from_the_image_when_there_is_no_prompt(made: Any) -> None:
    batch = tiny.text_batch(made.tokenizer, [("", "a red square")], template="plain")
    batch = replace(batch, labels=batch.input_ids)
    _, labels = made(image_tokens(made, real=(COUNT,)), batch)
    assert torch.equal(labels[labels != IGNORE], batch.labels[0])


def test_rows_do_not_see_each_other(made: Any) -> None:
    """The loss of a row is the same alone and beside longer ones, with and without its missing tokens."""
    tokens = image_tokens(made)
    together = summed_loss(made, tokens, tiny.text_batch(made.tokenizer, PAIRS))
    for number, pair in enumerate(PAIRS):
        alone = summed_loss(made, row(tokens, number), tiny.text_batch(made.tokenizer, [pair]))
        torch.testing.assert_close(alone[0], together[number], rtol=1e-4, atol=1e-3)


def test_image_tokens_matter_and_missing_ones_do_not(made: Any) -> None:
    batch, tokens = tiny.text_batch(made.tokenizer, PAIRS), image_tokens(made)
    with torch.no_grad():
        loss = summed_loss(made, tokens, batch)
        noisy = tokens.with_values(torch.where(tokens.mask.unsqueeze(-1), tokens.values, torch.full_like(tokens.values, 50.0)))
        torch.testing.assert_close(summed_loss(made, noisy, batch), loss, rtol=1e-4, atol=1e-3)
        other = summed_loss(made, tokens.with_values(tokens.values.roll(1, 0)), batch)
        assert ((other - loss).abs() > 1e-2).all()


def test_gradient_reaches_the_image_tokens_and_every_parameter(made: Any) -> None:
    tokens = image_tokens(made)
    tokens.values.requires_grad_(True)
    summed_loss(made, tokens, tiny.text_batch(made.tokenizer, PAIRS)).sum().backward()
    assert tokens.values.grad is not None
    assert tokens.values.grad[tokens.mask].abs().sum(-1).all(), "an image token gets no gradient"
    assert not tokens.values.grad[~tokens.mask].any()
    assert not [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]


def test_blocks_hold_every_parameter_once(made: Any) -> None:
    ids = [id(parameter) for block in made.blocks for parameter in block]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in made.parameters()}
    assert all(len(block) for block in made.blocks)


def test_an_image_alone_is_a_prompt(made: Any) -> None:
    batch = tiny.text_batch(made.tokenizer, PROMPTS[:2])
    batch = replace(batch, input_ids=batch.input_ids[:, :0], text_mask=batch.text_mask[:, :0], labels=batch.labels[:, :0])
    assert len(made.generate(image_tokens(made, real=(COUNT, 2)), batch, max_new_tokens=3)) == 2


def test_generation_is_deterministic(made: Any) -> None:
    batch, tokens = tiny.text_batch(made.tokenizer, PROMPTS), image_tokens(made)
    first = made.generate(tokens, batch, max_new_tokens=NEW)
    torch.manual_seed(99)
    assert made.generate(tokens, batch, max_new_tokens=NEW) == first
    assert len(first) == len(PROMPTS)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_batch_says_what_its_rows_say_alone(made: Any, num_beams: int) -> None:
    """Prompts of different lengths and partly missing image tokens: padding must be invisible."""
    lengths = set()
    for seed in range(3):
        tokens = image_tokens(made, seed=seed)
        batch = tiny.text_batch(made.tokenizer, PROMPTS)
        lengths |= {int(count) for count in batch.text_mask.sum(1) + tokens.mask.sum(1)}
        together = made.generate(tokens, batch, max_new_tokens=NEW, num_beams=num_beams)
        for number, pair in enumerate(PROMPTS):
            alone = made.generate(row(tokens, number), tiny.text_batch(made.tokenizer, [pair]), max_new_tokens=NEW, num_beams=num_beams)
            assert alone == [together[number]], f"row {number} of seed {seed}"
    assert len(lengths) > 2


def test_other_images_give_other_texts(made: Any) -> None:
    batch = tiny.text_batch(made.tokenizer, [PROMPTS[0]] * 6)
    assert len(set(made.generate(image_tokens(made, real=(COUNT,) * 6), batch, max_new_tokens=NEW))) > 3


def test_state_makes_another_instance_equal(case: tuple[str, str], folders: Any) -> None:
    module, config = part("heads", case, folders)

    def build() -> Any:
        head = built(module, config)
        head.in_dim = module.input_dim(config)
        return head

    reloads(build, lambda head: head(image_tokens(head), tiny.text_batch(head.tokenizer, PAIRS))[0])
