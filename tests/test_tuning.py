"""The trainable plan: what requires a gradient is what the recipe says, and the probe proves that it gets one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from eyegraft.config import Lora, Settings
from eyegraft.errors import RecipeError, TrainingError
from eyegraft.objectives.cross_entropy import CrossEntropy
from eyegraft.tuning import canonical, default_tune, make_plan, prove, set_training_mode
from eyegraft.types import IGNORE, Output

Make = Callable[..., Any]


def held(model: nn.Module) -> list[nn.Parameter]:
    """What an optimiser made from the plan holds."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


PAIRS = [("What?", "a red square"), ("Name it:", "파란 동그라미"), ("What is drawn here?", "a green triangle and more"), ("?", "초록")]


def settings(**tune: Any) -> Settings:
    return Settings.model_validate({"tune": tune, "learning_rate": 0.5, "weight_decay": 0.25})


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def names(model: nn.Module, prefix: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(prefix)}


def batch_for(model: Any, rows: slice = slice(None)) -> Any:
    """The same pixels for a row whichever rows are taken."""
    spec = model.encoders["image"].spec
    pixels = torch.randn(len(PAIRS), 3, *spec.size, generator=torch.Generator().manual_seed(2))
    return tiny.text_batch(model.head.tokenizer, PAIRS[rows], pixels[rows])


def losses(model: Any) -> Callable[[Any], tuple[torch.Tensor, torch.Tensor]]:
    objective = CrossEntropy()

    def step(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss = objective(model(batch), batch)
        return loss.sums, loss.counts

    return step


def backward(loss: torch.Tensor) -> None:
    loss.backward()


# ── modes ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_word_pretrained_parts_are_frozen_and_new_ones_train(make_graft: Make) -> None:
    _, model = make_graft()
    assert {name: default_tune(part).mode for name, part in model.parts().items()} == {
        "vision_encoder": "frozen",
        "connector": "full",
        "fusion": "full",
        "head": "frozen",
    }
    plan = make_plan(model, settings())
    assert trainable(model) == names(model, "connectors")
    assert plan.saved == names(model, "connectors")
    assert [(row.part, row.mode, row.trainable > 0) for row in plan.rows] == [
        ("vision_encoder", "frozen", False),
        ("connector", "full", True),
        ("head", "frozen", False),
    ]


@pytest.mark.parametrize("vision", ["siglip", "clip", "dinov2", "vit", "resnet"])
def test_full_trains_all_of_a_part(make_graft: Make, vision: str) -> None:
    _, model = make_graft(vision=vision)
    make_plan(model, settings(vision_encoder="full", connector="frozen"))
    assert trainable(model) == names(model, "encoders")


@pytest.mark.parametrize("lm", ["llama", "mistral", "qwen2", "phi", "gpt2"])
def test_last_n_trains_the_last_blocks_and_what_follows_them(make_graft: Make, lm: str) -> None:
    _, model = make_graft(lm=lm)
    make_plan(model, settings(head={"mode": "last_n", "last_n": 1}, connector="frozen"))
    block = ".h.1." if lm == "gpt2" else ".layers.1."
    after = {"llama": (".norm.", "lm_head"), "phi": (".final_layernorm.", "lm_head"), "gpt2": (".ln_f.",)}.get(lm, (".norm.", "lm_head"))
    expected = {name for name in names(model, "head") if block in name or any(f".{part}".replace("..", ".") in name for part in after)}
    assert trainable(model) == expected
    assert not any("embed_tokens" in name or ".wte" in name for name in trainable(model))


def test_last_n_of_an_encoder(make_graft: Make) -> None:
    _, model = make_graft(vision="siglip")
    make_plan(model, settings(vision_encoder={"mode": "last_n", "last_n": 1}))
    encoder = {name for name in trainable(model) if name.startswith("encoders")}
    assert encoder == {name for name in names(model, "encoders") if ".layers.1." in name or "post_layernorm" in name}
    make_plan(model, settings(vision_encoder={"mode": "last_n", "last_n": 3}))
    assert names(model, "encoders") <= trainable(model)


def test_more_blocks_than_there_are(make_graft: Make) -> None:
    _, model = make_graft()
    with pytest.raises(RecipeError, match=r"tune.vision_encoder.last_n=9(.|\n)*at most 3 blocks"):
        make_plan(model, settings(vision_encoder={"mode": "last_n", "last_n": 9}))
    with pytest.raises(RecipeError, match="no blocks"):
        make_plan(model, settings(connector={"mode": "last_n", "last_n": 1}))


def test_a_stage_forgets_what_the_one_before_trained(make_graft: Make) -> None:
    """But keeps it saved."""
    _, model = make_graft()
    first = make_plan(model, settings(vision_encoder="full"))
    second = make_plan(model, settings(vision_encoder="frozen"), saved=first.saved)
    assert trainable(model) == names(model, "connectors")
    assert second.saved == first.saved


def test_nothing_to_train_is_refused(make_graft: Make) -> None:
    _, model = make_graft()
    with pytest.raises(RecipeError, match="nothing would train"):
        make_plan(model, settings(connector="frozen"))


@pytest.mark.parametrize("mode", ["full", {"mode": "last_n", "last_n": 1}])
def test_half_precision_weights_are_not_trained_directly(make_graft: Make, folders: Any, mode: Any) -> None:
    _, model = make_graft(head={"kind": "prefix_lm", "model": folders.lm(), "dtype": "bfloat16"})
    with pytest.raises(RecipeError, match="on weights in bfloat16") as caught:
        make_plan(model, settings(head=mode))
    assert "dtype=float32" in caught.value.fix


def test_groups_hold_every_trainable_tensor_once(make_graft: Make) -> None:
    _, model = make_graft()
    plan = make_plan(model, settings(head={"mode": "lora", "learning_rate": 0.125}, vision_encoder={"mode": "last_n", "last_n": 1}))
    ids = [id(parameter) for group in plan.groups for parameter in group["params"]]
    by_name = dict(model.named_parameters())
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(by_name[name]) for name in trainable(model)}
    for group in plan.groups:
        assert [id(by_name[name]) for name in group["names"]] == [id(parameter) for parameter in group["params"]]
        assert group["lr"] == (0.125 if group["name"].startswith("head/") else 0.5)
        assert group["weight_decay"] == (0.25 if all(parameter.ndim > 1 for parameter in group["params"]) else 0.0)
    for row in plan.rows:
        of_part = sum(
            parameter.numel() for group in plan.groups if group["name"].startswith(f"{row.part}/") for parameter in group["params"]
        )
        assert row.trainable == of_part
        assert f"{row.trainable:,}" in plan.table()


def test_an_objective_with_parameters_trains_them(make_graft: Make) -> None:
    _, model = make_graft()
    objective = nn.Linear(3, 2)
    plan = make_plan(model, settings(), objective=objective)
    assert [row.trainable for row in plan.rows if row.part == "objective"] == [8]
    assert all(parameter.requires_grad for parameter in objective.parameters())


def test_running_statistics_are_saved_with_their_norms(make_graft: Make) -> None:
    _, model = make_graft(vision_encoder={"kind": "timm", "model": "test_resnet", "pretrained": False})
    plan = make_plan(model, settings(vision_encoder={"mode": "last_n", "last_n": 1}))
    norms = {name.rsplit(".", 1)[0] for name in trainable(model) if ".bn" in name}
    assert norms
    for norm in norms:
        assert {f"{norm}.running_mean", f"{norm}.running_var"} <= plan.saved
    assert plan.saved <= set(model.state_dict())


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lm", ["llama", "mistral", "qwen2", "phi", "gpt2"])
def test_lora_adapts_every_linear_layer_but_the_output(make_graft: Make, lm: str) -> None:
    _, model = make_graft(lm=lm)
    matrices = {name.removesuffix(".weight") for name, p in model.head.named_parameters() if p.ndim == 2 and name.endswith(".weight")}
    expected = {name for name in matrices if not any(word in name for word in ("embed", "lm_head", "wte", "wpe"))}
    before = set(names(model, ""))
    plan = make_plan(model, settings(head="lora", connector="frozen"))
    adapted = {canonical(name).split(".lora_")[0].removeprefix("head.") for name in trainable(model)}
    assert adapted == expected
    assert all(".lora_" in name for name in trainable(model))
    assert {canonical(name) for name in names(model, "") if ".lora_" not in name} == before, "names are the same with and without adapters"
    assert not plan.saved, "adapters are saved in their own format"


def test_lora_of_named_modules_in_the_last_layers(make_graft: Make) -> None:
    _, model = make_graft()
    make_plan(
        model,
        settings(
            head={"mode": "lora", "lora": {"target_modules": ["q_proj", "v_proj"], "target_layers": 1, "rank": 3}}, connector="frozen"
        ),
    )
    adapted = {canonical(name).split(".lora_")[0] for name in trainable(model)}
    assert adapted == {f"head.backbone.model.layers.1.self_attn.{name}" for name in ("q_proj", "v_proj")}
    assert {min(parameter.shape) for name, parameter in model.named_parameters() if parameter.requires_grad} == {3}


@pytest.mark.parametrize(
    "encoder",
    [{"kind": "timm", "model": "test_vit", "pretrained": False}, None, {"kind": "timm", "model": "test_convnext", "pretrained": False}],
)
@pytest.mark.parametrize("layers", [None, 1])
def test_lora_of_an_encoder_proves_itself_in_two_stages(make_graft: Make, encoder: dict[str, Any] | None, layers: int | None) -> None:
    _, model = make_graft(**({"vision_encoder": encoder} if encoder else {}))
    stage = settings(vision_encoder={"mode": "lora", "lora": {"rank": 2, "target_layers": layers}})
    make_plan(model, stage)
    first = trainable(model)
    assert any(".lora_" in name for name in first)
    prove(losses(model), model, [batch_for(model)], backward, held(model))
    make_plan(model, stage)
    assert trainable(model) == first


def test_lora_of_many_layers_in_two_stages(make_graft: Make, folders: Any, tmp_path: Any) -> None:
    """PEFT shortens a long list of names; the second stage must still know its adapter."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    folders.tokenizer().save_pretrained(tmp_path)
    wide = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 16, "num_attention_heads": 2, "max_position_embeddings": 64}
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=360, **wide)).save_pretrained(tmp_path)
    _, model = make_graft(head={"kind": "prefix_lm", "model": str(tmp_path)})
    for layers, count in ((None, 16), (None, 16)):
        make_plan(model, settings(head={"mode": "lora", "lora": {"target_modules": ["q_proj", "v_proj"], "target_layers": layers}}))
        assert len({canonical(name).split(".lora_")[0] for name in trainable(model) if "lora_" in name}) == 2 * count
    _, model = make_graft(head={"kind": "prefix_lm", "model": str(tmp_path)})
    for _ in range(2):
        make_plan(model, settings(head={"mode": "lora", "lora": {"target_layers": 5}}))
        adapted = {canonical(name).split(".lora_")[0] for name in trainable(model) if "lora_" in name}
        assert {int(name.split(".layers.")[1].split(".")[0]) for name in adapted} == set(range(11, 16))
        assert len(adapted) == 5 * 7


def test_adapters_of_half_precision_weights_are_float32(make_graft: Make, folders: Any) -> None:
    _, model = make_graft(head={"kind": "prefix_lm", "model": folders.lm(), "dtype": "bfloat16"})
    make_plan(model, settings(head="lora"))
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
    prove(losses(model), model, [batch_for(model)], backward, held(model))


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True}, {"dropout": 0.3}, {"rank": 1, "alpha": 3}])
def test_every_kind_of_lora_proves_itself(make_graft: Make, options: dict[str, Any]) -> None:
    _, model = make_graft()
    make_plan(model, settings(head={"mode": "lora", "lora": options}))
    set_training_mode(model)
    prove(losses(model), model, [batch_for(model)], backward, held(model))


def test_a_fresh_adapter_changes_nothing(make_graft: Make) -> None:
    _, model = make_graft()
    batch = batch_for(model)
    with torch.no_grad():
        before = model.eval()(batch).logits.all()
        make_plan(model, settings(head="lora", vision_encoder="lora"))
        torch.testing.assert_close(model.eval()(batch).logits.all(), before)


def test_a_misspelt_module_is_refused(make_graft: Make) -> None:
    _, model = make_graft()
    with pytest.raises(RecipeError, match="no linear layer is called qproj") as caught:
        make_plan(model, settings(head={"mode": "lora", "lora": {"target_modules": ["q_proj", "qproj"]}}))
    assert "q_proj" in caught.value.expected


def test_lora_where_there_is_nothing_to_adapt(make_graft: Make) -> None:
    _, model = make_graft(vision="resnet")
    with pytest.raises(RecipeError, match="no pretrained backbone"):
        make_plan(model, settings(connector="lora"))
    with pytest.raises(RecipeError, match="has no linear layer"):
        make_plan(model, settings(vision_encoder="lora"))


def test_an_adapter_stays_what_it_is(make_graft: Make) -> None:
    _, model = make_graft()
    make_plan(model, settings(head={"mode": "lora", "lora": {"rank": 4}}))
    with pytest.raises(RecipeError, match="differs from the adapter of an earlier stage"):
        make_plan(model, settings(head={"mode": "lora", "lora": {"rank": 8}}))
    make_plan(model, settings(head="frozen"))
    assert trainable(model) == names(model, "connectors"), "an adapter of an earlier stage can be frozen"


# ── training mode ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_training_mode_is_of_what_trains() -> None:
    model = nn.ModuleDict(
        {
            "frozen": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2)),
            "trained": nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.BatchNorm1d(2)),
        }
    )
    model["frozen"].requires_grad_(False)
    set_training_mode(model)
    assert [module.training for module in model["frozen"]] == [False] * 3
    assert [module.training for module in model["trained"]] == [True, True, False], "batch norms keep their pretrained statistics"
    model.eval()
    model["trained"].requires_grad_(False)
    set_training_mode(model)
    assert not any(module.training for module in model.modules())


def test_training_mode_of_a_graft(make_graft: Make) -> None:
    _, model = make_graft(vision="resnet", connector={"kind": "prefix", "dropout": 0.5})
    make_plan(model, settings(head={"mode": "lora", "lora": {"dropout": 0.5}}, vision_encoder="full"))
    set_training_mode(model)
    on = {name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.training}
    assert any(name.startswith("connectors") for name in on)
    assert any("lora_dropout" in name for name in on)
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(batch_for(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_dropout_of_a_frozen_language_model_is_off(make_graft: Make) -> None:
    _, model = make_graft(lm="gpt2")  # GPT-2 has dropout of 0.1 in its configuration
    make_plan(model, settings())
    assert any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.head.modules())
    set_training_mode(model)
    assert not any(module.training for module in model.head.modules())
    batch = batch_for(model)
    assert torch.equal(model(batch).logits.all(), model(batch).logits.all())
    make_plan(model, settings(head={"mode": "last_n", "last_n": 1}))
    set_training_mode(model)
    on = {name for name, module in model.head.named_modules() if isinstance(module, nn.Dropout) and module.training}
    assert any(".h.1." in name for name in on)
    assert not any(".h.0." in name for name in on)


# ── proof ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("vision", ["siglip", "clip", "dinov2", "vit", "resnet"])
@pytest.mark.parametrize(
    "tune", [{"vision_encoder": "full", "head": "full"}, {"vision_encoder": {"mode": "last_n", "last_n": 1}, "head": "lora"}]
)
def test_the_proof_passes_and_changes_nothing(make_graft: Make, vision: str, tune: dict[str, Any]) -> None:
    _, model = make_graft(vision=vision)
    make_plan(model, settings(**tune))
    set_training_mode(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    prove(losses(model), model, [batch_for(model)], backward, held(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name: module.training for name, module in model.named_modules()} == modes


@pytest.mark.parametrize(("lm", "tune"), [(lm, tune) for lm in ("llama", "mistral", "qwen2", "phi", "gpt2") for tune in ("full", "lora")])
def test_the_proof_passes_for_every_language_model(make_graft: Make, lm: str, tune: str) -> None:
    _, model = make_graft(lm=lm)
    make_plan(model, settings(head=tune))
    prove(losses(model), model, [batch_for(model)], backward, held(model))


def test_an_unused_parameter_is_found(make_graft: Make) -> None:
    _, model = make_graft()
    model.connectors["image"][-1].forgotten = nn.Linear(2, 2)
    make_plan(model, settings())
    with pytest.raises(TrainingError, match=r"2 of 6 trainable tensors get no gradient: .*forgotten\.weight"):
        prove(losses(model), model, [batch_for(model)], backward, held(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_detached_encoder_is_found(make_graft: Make) -> None:
    """A stray no_grad around the encoder, as in many a training script."""
    _, model = make_graft()
    make_plan(model, settings(vision_encoder="full"))
    encode = model.encode
    model.encode = torch.no_grad()(encode)
    with pytest.raises(TrainingError, match=r"trainable tensors get no gradient: encoders\."):
        prove(losses(model), model, [batch_for(model)], backward, held(model))


def test_a_detached_loss_is_found(make_graft: Make) -> None:
    """A forward without any graph at all must be said in our words too."""
    _, model = make_graft()
    make_plan(model, settings())
    with pytest.raises(TrainingError, match="get no gradient"):
        prove(torch.no_grad()(losses(model)), model, [batch_for(model)], backward, held(model))


def test_what_the_model_trains_is_what_the_optimiser_holds(make_graft: Make) -> None:
    """A tensor that gets gradients and no updates, or updates and no gradients, is found either way."""
    _, model = make_graft()
    make_plan(model, settings())
    planned = held(model)
    stray = next(model.encoders.parameters()).requires_grad_(True)
    with pytest.raises(TrainingError, match="1 tensors are trained by the model and not by the optimiser, or the other way: encoders"):
        prove(losses(model), model, [batch_for(model)], backward, planned)
    stray.requires_grad_(False)
    with pytest.raises(TrainingError, match="or the other way: encoders"):
        prove(losses(model), model, [batch_for(model)], backward, [*planned, stray])


def test_the_weights_are_put_back_when_the_forward_fails(make_graft: Make) -> None:
    _, model = make_graft()
    make_plan(model, settings(head="lora"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError):
        prove(lambda batch: 1 / 0, model, [batch_for(model)], backward, held(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ── accumulation ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def gradients(model: Any, groups: list[Any]) -> dict[str, torch.Tensor]:
    """As the loop does it: every batch's sum over the count of all."""
    objective = CrossEntropy()
    model.zero_grad()
    total = sum(float(objective.counts(batch).sum()) for batch in groups)
    for batch in groups:
        (objective(model(batch), batch).sums.sum() / total).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_accumulation_equals_one_large_batch(make_graft: Make, cut: int) -> None:
    """Whatever the cut: texts of different lengths, so that a mean of means would differ."""
    _, model = make_graft(vision="resnet")
    make_plan(model, settings(head="full", vision_encoder="full"))
    set_training_mode(model)
    whole, parts = (
        gradients(model, [batch_for(model)]),
        gradients(model, [batch_for(model, slice(None, cut)), batch_for(model, slice(cut, None))]),
    )
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_a_mean_of_means_would_differ(make_graft: Make) -> None:
    """So that the test above can fail."""
    _, model = make_graft()
    make_plan(model, settings())
    halves = [batch_for(model, slice(None, 1)), batch_for(model, slice(1, None))]
    objective = CrossEntropy()
    one = gradients(model, [batch_for(model)])
    model.zero_grad()
    for batch in halves:
        loss = objective(model(batch), batch)
        (loss.sums.sum() / loss.counts.sum() / 2).backward()
    assert any(
        not torch.allclose(parameter.grad, one[name], rtol=1e-2)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    )


def test_padding_costs_nothing(make_graft: Make) -> None:
    """A row with nothing learned, and padding, leave loss and gradient as they are."""
    _, model = make_graft()
    make_plan(model, settings())
    batch = batch_for(model)
    silent = replace(batch, labels=batch.labels.clone())
    silent.labels[2:] = IGNORE
    short, long = gradients(model, [batch_for(model, slice(None, 2))]), gradients(model, [silent])
    for name, gradient in short.items():
        torch.testing.assert_close(long[name], gradient, rtol=1e-3, atol=1e-6)


def test_the_output_is_what_it_says(make_graft: Make) -> None:
    _, model = make_graft()
    output = model(batch_for(model))
    assert isinstance(output, Output)
    assert set(output.encoded) == {"image"}
    assert Lora().target_modules == "all-linear"


# ── objectives that read encoders, and new layers inside pretrained parts ────────────────────────────────────────────────────────────


class Reads(nn.Module):
    """Reads the encoder's tokens through a layer as wide as they are, against a copy that does not train."""

    reads = ("image",)

    def attach(self, model: Any) -> None:
        encoder = model.encoders["image"]
        self.adapted = any("lora" in name for name, _ in encoder.named_parameters())
        self.trained = sum(parameter.requires_grad for parameter in encoder.parameters())
        self.head, self.copy = nn.Linear(encoder.token_dim, 2), nn.Linear(encoder.token_dim, 2).requires_grad_(False)


@pytest.mark.parametrize("tune", ["lora", "full", {"mode": "last_n", "last_n": 1}])
def test_an_objective_that_reads_tokens_freezes_what_is_behind(make_graft: Make, tune: Any) -> None:
    _, model = make_graft()
    objective = Reads()
    plan = make_plan(model, settings(vision_encoder=tune), objective=objective)
    assert objective.trained == sum(name.startswith("encoders") for name in trainable(model)), "it meets the parts as they will train"
    assert objective.adapted == (tune == "lora")
    assert {name for name in trainable(model) if not name.startswith("encoders")} == set()
    rows = {row.part: row for row in plan.rows}
    assert {part: row.mode for part, row in rows.items() if not row.trainable} == {"connector": "frozen", "head": "frozen"}
    width = model.encoders["image"].token_dim
    assert (rows["objective"].trainable, rows["objective"].parameters) == (2 * width + 2, 4 * width + 4)
    assert [name for group in plan.groups if group["name"].startswith("objective/") for name in group["names"]] == [
        "objective.head.weight",
        "objective.head.bias",
    ]
    assert not [name for name in plan.saved if name.startswith(("objective", "head", "copy"))]
    table = plan.table()
    assert all(part in table for part in ("vision_encoder", "connector", "head", "objective"))


def test_tuning_what_an_objective_does_not_read_is_refused(make_graft: Make) -> None:
    _, model = make_graft()
    with pytest.raises(RecipeError, match=r"tune\.connector=full under objective .*, which reads vision_encoder") as caught:
        make_plan(model, settings(vision_encoder="full", connector="full"), objective=Reads())
    assert "stages.NAME.tune.connector=frozen" in caught.value.fix
    make_plan(model, settings(vision_encoder="full", connector="frozen"), objective=Reads())


def test_an_objective_of_a_frozen_encoder_is_refused(make_graft: Make) -> None:
    _, model = make_graft()
    with pytest.raises(RecipeError, match="vision_encoder is frozen: nothing that it learns would be kept") as caught:
        make_plan(model, settings(), objective=Reads())
    assert "set stages.NAME.tune.vision_encoder=full" in caught.value.fix
    words = Settings.model_validate({"freeze_backbone": True})
    with pytest.raises(RecipeError, match="vision_encoder is frozen") as caught:
        make_plan(model, words, objective=Reads())
    assert "freeze_backbone=false" in caught.value.fix


def test_an_objective_of_an_encoder_that_is_not_there(make_graft: Make) -> None:
    _, model = make_graft()
    objective = Reads()
    objective.reads = ("text",)
    with pytest.raises(RecipeError, match=r"reads tokens of text, but the model encodes image(.|\n)*text_encoder"):
        make_plan(model, settings(vision_encoder="full"), objective=objective)


STEM = {"encoders.image.extra_stem.weight", "encoders.image.extra_stem.bias"}


@pytest.mark.parametrize(("tune", "trains"), [("frozen", False), ("lora", True), ({"mode": "last_n", "last_n": 1}, True), ("full", True)])
def test_new_layers_train_wherever_the_pretrained_part_does(
    make_graft: Make, caplog: pytest.LogCaptureFixture, tune: Any, trains: bool
) -> None:
    """Clay's stem for extra maps lies in its first block, and outside of what adapters reach."""
    sensor = {"name": "two", "bands": [{"name": name, "wavelength_um": 10.0, "unit": "K"} for name in "ab"], "gsd_m": 2000.0}
    encoder = {"kind": "clay", "size": "tiny", "sensor": sensor, "extra_channels": ["dem"]}
    plain = {"vision_encoder": encoder, "pooling": {"kind": "mean"}, "connector": None, "fusion": {"kind": "concat"}}
    _, model = make_graft(**plain, head={"kind": "regressor"}, tasks={"ta": {"kind": "regress"}})
    with caplog.at_level("INFO", logger="eyegraft"):
        plan = make_plan(model, settings(vision_encoder=tune))
    assert (trainable(model) >= STEM) is trains
    assert plan.saved >= STEM, "no file of weights holds them"
    held = [name for group in plan.groups for name in group["names"]]
    assert len(held) == len(set(held))
    assert ("12,480 new numbers inside it stay as they are" in caplog.text) is not trains
    if tune in ("frozen", "lora"):
        assert {name for name in plan.saved if name.startswith("encoders")} == STEM
