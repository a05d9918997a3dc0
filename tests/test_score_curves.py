import io
import warnings

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detframe.score_curves import ScoreCurves, calibrate_scores, knots

SCORES = st.floats(0, 1, width=32)


def curves(*logits: torch.Tensor) -> ScoreCurves:
    return ScoreCurves(knots(), torch.stack(logits), torch.zeros(len(logits), dtype=torch.int64))


@given(st.lists(SCORES, max_size=20))
def test_identity_gives_the_scores_back(values: list[float]) -> None:
    scores = torch.tensor(values)
    labels = torch.zeros(len(values), dtype=torch.int64)
    torch.testing.assert_close(calibrate_scores(scores, labels, curves(knots())), scores, rtol=1e-6, atol=1e-7)


def test_each_class_has_its_curve() -> None:
    scores = torch.tensor([[0.2, 0.9], [0.2, 1e-30]], dtype=torch.float64)
    labels = torch.tensor([[0, 1], [1, 1]])
    both = calibrate_scores(scores, labels, curves(knots(), 0.5 * knots() - 1))
    expected = torch.sigmoid(0.5 * torch.logit(scores) - 1)
    expected[0, 0] = 0.2
    # Beyond the knots, the last of which is at -18, a logit adds 0.01.
    expected[1, 1] = torch.sigmoid(-9 - 1 + 0.01 * (torch.logit(scores[1, 1]) + 18))
    torch.testing.assert_close(both, expected)
    assert calibrate_scores(scores.float(), labels, curves(knots(), knots())).dtype == torch.float32


@settings(max_examples=100, deadline=None)
@given(SCORES, st.integers(0, 10**9))
def test_neighbouring_float32_scores_stay_apart_in_float64(score: float, seed: int) -> None:
    # A flat curve with one step in it, as isotonic regression gives, at the least slope.
    step = int(np.random.default_rng(seed).integers(0, len(knots())))
    flat = 0.01 * knots() + torch.where(torch.arange(len(knots())) < step, torch.tensor(-11.0), torch.tensor(11.0))
    low = np.float32(score)
    pair = torch.tensor(np.array([low, np.nextafter(low, np.float32(1))]))
    if pair[0] == pair[1]:
        return
    once = calibrate_scores(pair.double(), torch.zeros(2, dtype=torch.int64), curves(flat))
    assert once[0] < once[1]
    rounded = calibrate_scores(pair, torch.zeros(2, dtype=torch.int64), curves(flat))
    assert rounded[0] <= rounded[1]


def test_scripted_and_exported_equal_eager_and_a_checkpoint_keeps_curves() -> None:
    fitted = curves(0.7 * knots() - 1, knots().clamp(-2, 3) + 0.01 * knots())
    scores, labels = torch.rand(2, 50), torch.randint(0, 2, (2, 50))
    eager = calibrate_scores(scores, labels, fitted)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        scripted = torch.jit.script(calibrate_scores)
    assert torch.equal(scripted(scores, labels, fitted), eager)

    class Calibrated(torch.nn.Module):
        def forward(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return calibrate_scores(scores, labels, fitted)

    exported = torch.export.export(Calibrated(), (scores, labels)).module()
    assert torch.equal(exported(scores, labels), eager)
    buffer = io.BytesIO()
    torch.save(fitted._asdict(), buffer)
    buffer.seek(0)
    assert torch.equal(calibrate_scores(scores, labels, ScoreCurves(**torch.load(buffer, weights_only=True))), eager)
