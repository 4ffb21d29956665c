"""Self-distillation without labels (DINO, Caron et al. 2021): two views of a picture are to be sorted alike into clusters nobody has named.

A student, the encoder with a projection head, must say of one view what its teacher says of another. The teacher is the student's moving
average. Its answers are sharpened by a low temperature and centred by their running mean; the one keeps all answers from becoming flat, the
other from becoming the same. Whether that holds is written beside the loss: `teacher_entropy` (0: every picture in one cluster, ln K: all
answers flat) and `feature_variance` of the encoder's features, normalised to length 1 (0: all alike).

Patches lose time and place in every view: an encoder that reads them would know from them alone which views belong together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eyegraft.config import Fraction, NonNegative, Positive, Rate, Strict
from eyegraft.errors import PartError
from eyegraft.objectives._average import Average
from eyegraft.objectives._pixels import MODALITY, layout, present
from eyegraft.objectives._views import PatchViews, PictureViews, patch_view, picture_view
from eyegraft.types import Batch, Inputs, Loss, Output, Tokens

GLOBAL_VIEWS = 2
"""Both are shown to the teacher; the student answers for each view what the teacher says of the other."""


class Config(Strict):
    """Attributes:
    num_prototypes: K, clusters at most. hidden_dim, bottleneck_dim: of the projection head, which is left behind with the stage.
    momentum: of the teacher at the start of the stage; it rises to 1 by a cosine. The paper takes 0.996 over 100 epochs of ImageNet.
    student_temperature, teacher_temperature: the lower, the sharper.
    centre_momentum: of the running mean of the teacher's answers.
    num_local_views: smaller views that the student sees besides, each a forward more.
    pooling: the vector of a picture: `cls` its class token, `mean` the mean of its tokens, `auto` the class token where there is one.
    patch_views, picture_views: how views differ.
    """

    num_prototypes: Positive = 1024
    hidden_dim: Positive = 512
    bottleneck_dim: Positive = 128
    momentum: Fraction = 0.99
    student_temperature: Rate = 0.1
    teacher_temperature: Rate = 0.04
    centre_momentum: Fraction = 0.9
    num_local_views: NonNegative = 0
    pooling: Literal["auto", "cls", "mean"] = "auto"
    patch_views: PatchViews = PatchViews()
    picture_views: PictureViews = PictureViews()


class ProjectionHead(nn.Module):
    """Features [B, D] -> cosines to the prototypes [B, K]."""

    def __init__(self, in_dim: int, hidden_dim: int, bottleneck_dim: int, num_prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, bottleneck_dim)
        )
        self.prototypes = nn.Parameter(torch.randn(num_prototypes, bottleneck_dim))

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(self.layers(features), dim=-1), F.normalize(self.prototypes, dim=-1))


class DINO(nn.Module):
    """Cross-entropy of the student's answers against the teacher's, mean over all pairs of different views. A sample counts 1."""

    reads = (MODALITY,)
    centre: Tensor
    head: ProjectionHead
    teacher: Average
    teacher_head: Average
    takes_class_token: bool

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.num_views = GLOBAL_VIEWS + config.num_local_views
        self.register_buffer("centre", torch.zeros(config.num_prototypes))

    def attach(self, model: Any) -> None:
        encoder, config = model.encoders[MODALITY], self.config
        if getattr(encoder.spec, "classes", ()):
            raise PartError(
                "objective dino with an encoder that is told the class of a map, by which it would know which views belong together",
                "an encoder that reads pixels alone",
                "set objective.kind=mae, or another vision_encoder",
            )
        has_class_token = layout(model, "dino").num_prefix > 0
        self.takes_class_token = config.pooling == "cls" or (config.pooling == "auto" and has_class_token)
        if self.takes_class_token and not has_class_token:
            raise PartError(
                "objective dino with pooling=cls, but the encoder gives no class token", "pooling=mean", "set objective.pooling=mean"
            )
        self.head = ProjectionHead(encoder.token_dim, config.hidden_dim, config.bottleneck_dim, config.num_prototypes)
        self.teacher, self.teacher_head = Average(encoder), Average(self.head)

    def counts(self, batch: Batch) -> Tensor:
        return present(batch)

    def prepare(self, batch: Batch) -> Batch:
        """The batch with V views of each picture, view by view: [V · B, …]."""
        given = batch.inputs[MODALITY]
        made = [self._view(given, local=place >= GLOBAL_VIEWS) for place in range(self.num_views)]
        there = present(batch).bool().repeat(self.num_views)
        return replace(batch.with_input(MODALITY, _together(made)), present={**batch.present, MODALITY: there})

    def _view(self, given: Inputs, local: bool) -> Inputs:
        if isinstance(given, Mapping):
            return patch_view(given, self.config.patch_views, local=local)
        return picture_view(given, self.config.picture_views, local=local)

    def forward(self, output: Output, batch: Batch) -> Loss:
        config, there = self.config, present(batch)
        features = self._pooled(output.encoded[MODALITY])  # [V · B, D]
        student = self.head(features).float().unflatten(0, (self.num_views, -1))  # [V, B, K]
        shown = _first(batch.inputs[MODALITY], GLOBAL_VIEWS * len(batch))
        teacher = self.teacher_head(self._pooled(self.teacher(shown))).float().unflatten(0, (GLOBAL_VIEWS, -1))  # [2, B, K]
        wanted = ((teacher - self.centre) / config.teacher_temperature).softmax(-1)
        log_p = (student / config.student_temperature).log_softmax(-1)
        pairs = [(one, other) for one in range(GLOBAL_VIEWS) for other in range(self.num_views) if one != other]
        losses = torch.stack([-(wanted[one] * log_p[other]).sum(-1) for one, other in pairs]).mean(0)  # [B]
        notes = {
            "teacher_entropy": -torch.special.xlogy(wanted, wanted).sum(-1).mean(0) * there,
            "feature_variance": _variance(features.detach().float().unflatten(0, (self.num_views, -1)), there),
            "centre": teacher.mean(0) * there[:, None],
        }
        return Loss(losses * there, there, notes)

    def _pooled(self, tokens: Tokens) -> Tensor:
        if self.takes_class_token:
            return tokens.values[:, 0]
        real = tokens.mask.unsqueeze(-1)
        return tokens.values.where(real, 0.0).sum(1) / real.sum(1).clamp(min=1)

    def after_step(self, done: float, means: Mapping[str, Tensor]) -> None:
        momentum = teacher_momentum(self.config.momentum, done)
        self.teacher.update(momentum)
        self.teacher_head.update(momentum)
        begun = bool(self.centre.any())  # the first mean is taken whole: until a centre is known, all that is taught is one cluster
        self.centre.lerp_(means["centre"], 1 - self.config.centre_momentum if begun else 1.0)


def teacher_momentum(start: float, done: float) -> float:
    """From `start` to 1 along half a cosine, `done` being the share of the stage's steps."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * done)) / 2


def _variance(features: Tensor, there: Tensor) -> Tensor:
    """Squared distance of each sample's normalised features [V, B, D] from their mean over the batch: [B], mean over views."""
    unit, weight = F.normalize(features, dim=-1), there[:, None] / there.sum().clamp(min=1)
    return (unit - (unit * weight).sum(1, keepdim=True)).square().sum(-1).mean(0) * there


def _together(views: list[Inputs]) -> Inputs:
    if isinstance(views[0], Mapping):
        return {key: torch.cat([view[key] for view in views]) for key in views[0]}
    return torch.cat(views)


def _first(given: Inputs, rows: int) -> Inputs:
    return {key: values[:rows] for key, values in given.items()} if isinstance(given, Mapping) else given[:rows]


def build(config: Config) -> DINO:
    return DINO(config)
