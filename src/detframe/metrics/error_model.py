"""A small network that tells kinds of labels apart, learned anew for each data set from errors put into it.

Small, because a data set has few labels and what is put into it repeats them; several, because small networks differ;
by folds, because it must not be asked about an image that it has learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

HIDDEN, STEPS, BATCH, RATE, DECAY = 16, 300, 512, 0.02, 0.1
FOLDS, MEMBERS = 4, 4

_FAR = 8.0  # deviations beyond which a figure says no more


class ErrorModel(NamedTuple):
    """Networks for each fold, which have not seen its images."""

    mean: Tensor  # [F]
    spread: Tensor  # [F]
    layers: tuple[tuple[Tensor, Tensor], ...]  # weights [FOLDS * MEMBERS, in, out] and biases [FOLDS * MEMBERS, 1, out]


class Examples(NamedTuple):
    """What a model learns from, or is asked about."""

    figures: Tensor  # [n, F] float32
    targets: Tensor  # [n] int64, 0..K-1
    folds: Tensor  # [n] int64, 0..FOLDS-1


def fit_error_model(examples: Examples, classes: int, seed: int) -> ErrorModel:
    """Fit by cross-entropy, each fold's networks on all examples but its own.

    Args:
        examples: No fold may hold all.
        classes: ``K``.
        seed: Of the first weights and the batches.
    """
    figures, targets, folds = examples
    generator = torch.Generator().manual_seed(seed)
    mean, spread = figures.mean(dim=0), figures.std(dim=0).clamp(min=1e-3)
    inputs = _normalised(figures, mean, spread)
    count = FOLDS * MEMBERS
    widths = [figures.shape[1], HIDDEN, HIDDEN, classes]
    layers = tuple(
        (
            (torch.randn(count, wide, narrow, generator=generator) / wide**0.5).requires_grad_(),
            torch.zeros(count, 1, narrow, requires_grad=True),
        )
        for wide, narrow in pairwise(widths)
    )
    parameters = [tensor for layer in layers for tensor in layer]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    pools = [(folds != fold).nonzero().flatten() for fold in range(FOLDS) for _ in range(MEMBERS)]
    with torch.enable_grad():
        for _ in range(STEPS):
            rows = torch.stack([pool[torch.randint(len(pool), (BATCH,), generator=generator)] for pool in pools])
            logits = _forward(inputs[rows], layers)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[rows].flatten())
            optimizer.zero_grad()
            (loss * count).backward()
            optimizer.step()
            schedule.step()
    return ErrorModel(mean, spread, tuple((weight.detach(), bias.detach()) for weight, bias in layers))


def predict_errors(model: ErrorModel, figures: Tensor, folds: Tensor) -> Tensor:
    """Probability of each class by the networks that have not seen the row's fold, ``[n, K]``."""
    inputs = _normalised(figures, model.mean, model.spread)
    result = inputs.new_zeros(len(figures), model.layers[-1][1].shape[2])
    for fold in range(FOLDS):
        rows = (folds == fold).nonzero().flatten()
        own = slice(fold * MEMBERS, (fold + 1) * MEMBERS)
        layers = [(weight[own], bias[own]) for weight, bias in model.layers]
        result[rows] = _forward(inputs[rows].expand(MEMBERS, -1, -1), layers).softmax(dim=2).mean(dim=0)
    return result


def _normalised(figures: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
    return ((figures - mean) / spread).clamp(-_FAR, _FAR)


def _forward(inputs: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Outputs ``[M, n, K]`` of ``M`` networks for inputs ``[M, n, F]``."""
    hidden = inputs
    for weight, bias in layers[:-1]:
        hidden = torch.nn.functional.silu(torch.baddbmm(bias, hidden, weight))
    weight, bias = layers[-1]
    return torch.baddbmm(bias, hidden, weight)
