"""Windows add up, and what they say of known changes is right."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from torchvision.transforms.v2.functional import gaussian_blur

from detframe.monitoring.drift import (
    MAP_ERROR,
    Moved,
    causes_of,
    drift_of,
    estimated_map,
    expected_precision,
    suspicion,
    tail_shares,
)
from detframe.monitoring.signals import (
    OF_NETWORK,
    OF_PIXELS,
    detection_signals,
    network_signals,
    pixel_signals,
    watched,
)
from detframe.monitoring.window import (
    Window,
    WindowError,
    as_json,
    from_json,
    merged,
    read_window,
    scale_of,
    window_of,
    write_window,
)

NAMES = ["nut", "bolt"]
SIGNALS = [signal.name for signal in watched(NAMES)]


def values(images: int, seed: int) -> NDArray[np.float64]:
    """Signals ``[N, S]`` that chance makes, some of them unknown."""
    rng = np.random.default_rng(seed)
    columns = [
        rng.uniform(signal.edges[0], signal.edges[-1], images) * 0.2 + rng.normal(0, 0.01, images)
        for signal in watched(NAMES)
    ]
    found = np.stack(columns, axis=1)
    found[rng.random(found.shape) < 0.02] = np.nan
    return found


def profile_of(images: int, seed: int) -> Window:
    return window_of(NAMES, values(images, seed), None)


def softened(image: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    return np.asarray(gaussian_blur(torch.from_numpy(image).float(), [6 * math.ceil(sigma) + 1] * 2, [sigma] * 2))


@lru_cache(maxsize=256)
def photograph(seed: int, height: int = 120, width: int = 160) -> NDArray[np.uint8]:
    """Dark and light disks on a grey ground, a little soft and a little noisy, ``[3, H, W]``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.full((3, height, width), 130.0)
    for _ in range(12):
        inside = np.hypot(y - rng.uniform(0, height), x - rng.uniform(0, width)) < rng.uniform(5, 25)
        image[:, inside] = rng.uniform(40, 220, (3, 1))
    image = softened(image, 0.8) + rng.normal(0, 2.5, image.shape)
    return np.asarray(image.clip(0, 255).round(), dtype=np.uint8)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_windows_add_up_and_survive_their_file(sizes: list[int]) -> None:
    everything = values(sum(sizes), 0)
    scale = scale_of(profile_of(50, 1))
    whole = window_of(NAMES, everything, scale)
    parts = [window_of(NAMES, part, scale) for part in np.split(everything, np.cumsum(sizes)[:-1])]
    total = merged([from_json(json.loads(json.dumps(as_json(part))), "") for part in parts])
    assert total.images == whole.images
    for ours, theirs in zip(total.counts, whole.counts, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for name in ("sums", "squares", "features", "products"):
        np.testing.assert_allclose(getattr(total, name), getattr(whole, name), atol=1e-4)


def test_distances_are_those_of_scipy_but_for_the_bins() -> None:
    before, now = values(300, 0), values(80, 1) * 1.3
    profile = window_of(NAMES, before, None)
    found = {one.signal: one for one in drift_of(profile, window_of(NAMES, now, scale_of(profile))).moved}
    for place, name in enumerate(SIGNALS[:8]):
        one, other = (column[~np.isnan(column)] for column in (before[:, place], now[:, place]))
        assert found[name].distance == pytest.approx(ks_2samp(one, other).statistic, abs=0.1)
        assert found[name].before == pytest.approx(one.mean(), abs=1e-6)
        assert found[name].now == pytest.approx(other.mean(), abs=1e-6)
        assert found[name].shift == pytest.approx((other.mean() - one.mean()) / one.std(), rel=0.3, abs=0.05)


def test_what_is_alike_raises_no_alarm() -> None:
    profile = profile_of(150, 0)
    scale = scale_of(profile)
    alarms = [drift_of(profile, window_of(NAMES, values(64, seed), scale)).alarm for seed in range(1, 200)]
    assert np.mean(alarms) <= 0.02


def test_signals_that_move_together_only_are_seen_by_the_test_of_all() -> None:
    rng = np.random.default_rng(0)
    column = SIGNALS.index("brightness")

    def correlated(images: int, sign: float) -> NDArray[np.float64]:
        found = np.full((images, len(SIGNALS)), 0.5)
        shared = rng.uniform(-0.3, 0.3, images)
        for place in range(len(SIGNALS)):
            edges = watched(NAMES)[place].edges
            middle, reach = (edges[0] + edges[-1]) / 2, (edges[-1] - edges[0]) / 2
            found[:, place] = middle + reach * shared * (sign if place % 2 else 1)
        return found

    profile = window_of(NAMES, correlated(300, 1.0), None)
    drift = drift_of(profile, window_of(NAMES, correlated(64, -1.0), scale_of(profile)))
    assert drift.alarm
    assert drift.together < 0.01
    assert {one.signal: one.p_value for one in drift.moved}[SIGNALS[column]] > 0.01


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda image, rng: image * 0.55, "darker"),
        (lambda image, rng: image * 0.5 + 120, "brighter"),
        (lambda image, rng: (image - 130) * 0.3 + 130, "less contrast"),
        (lambda image, rng: image + rng.normal(0, 25, image.shape), "noisier"),
        (lambda image, rng: softened(image, 2.5), "blurred"),
        (lambda image, rng: image * np.array([1.25, 1.0, 0.7])[:, None, None], "another colour"),
        (lambda image, rng: np.repeat(np.repeat(image[:, ::4, ::4], 4, axis=1), 4, axis=2), "coarser pixels"),
    ],
)
def test_the_likely_cause_is_what_was_done(change: object, cause: str) -> None:
    assert callable(change)
    rng = np.random.default_rng(0)
    detections = np.zeros(len(SIGNALS) - len(OF_PIXELS))

    def looked(seeds: range, changed: bool) -> NDArray[np.float64]:
        rows = []
        for seed in seeds:
            image = photograph(seed)
            if changed:
                image = np.asarray(change(image.astype(np.float64), rng)).clip(0, 255).round().astype(np.uint8)
            rows.append(np.concatenate([pixel_signals(image), detections]))
        return np.array(rows)

    profile = window_of(NAMES, looked(range(50), False), None)
    scale = scale_of(profile)
    assert not drift_of(profile, window_of(NAMES, looked(range(50, 80), False), scale)).alarm
    drift = drift_of(profile, window_of(NAMES, looked(range(80, 112), True), scale))
    assert drift.alarm
    assert drift.causes[0].startswith(cause)


def test_causes_that_pixels_do_not_show() -> None:
    def moved(**shifts: float) -> list[Moved]:
        spaced = ("class_", "look_")
        named = {name.replace("_", " ") if name.startswith(spaced) else name: of for name, of in shifts.items()}
        return [
            Moved(name, 0.9 if name in named else 0.0, 1e-6 if name in named else 1.0, 0, 0, named.get(name, 0.0))
            for name in SIGNALS
        ]

    assert causes_of(moved(centre_x=2.0)) == ["misaligned camera"]
    assert causes_of(moved(class_nut=-1.0, class_bolt=1.0)) == ["new class mix: nut, bolt"]
    assert causes_of(moved(box_size=1.5)) == ["objects nearer"]
    assert causes_of(moved(top_score=-2.0)) == ["new objects or scenes"]
    assert causes_of(moved(look_3=-2.0)) == ["new objects or scenes"]
    assert causes_of(moved()) == ["something that no single signal shows"]


def test_what_is_watched_of_detections() -> None:
    boxes = np.array([[0.0, 0, 20, 20], [80, 60, 100, 100], [0, 0, 1, 1]])
    found = dict(
        zip(
            SIGNALS[len(OF_PIXELS) + len(OF_NETWORK) :],
            detection_signals(boxes, np.array([0.9, 0.6, 0.2]), np.array([0, 1, 1]), np.array([0.5, 0.5]), (100, 200)),
            strict=True,
        )
    )
    assert (found["candidates"], found["detections"], found["class nut"], found["class bolt"]) == (3, 2, 1, 1)
    assert (found["right"], found["wrong"]) == (pytest.approx(1.5), pytest.approx(0.5))
    assert found["expected"] == pytest.approx(1.7)
    assert found["score"] == pytest.approx(0.75)
    assert found["centre_x"] == pytest.approx((0.05 + 0.45) / 2)
    assert found["centre_y"] == pytest.approx((0.1 + 0.8) / 2)
    assert found["box_size"] == pytest.approx(np.log2([np.sqrt(0.1 * 0.2), np.sqrt(0.1 * 0.4)]).mean())
    nothing = detection_signals(np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int), np.array([0.5, 0.5]), (100, 200))
    assert np.isnan(nothing).sum() == 4
    assert np.isnan(pixel_signals(np.zeros((3, 5, 5), np.uint8))).sum() == 4  # too small for the fine ones
    for side in ((1, 3000), (3000, 1), (5, 900)):  # narrower than the step of the coarse grid
        assert np.isnan(pixel_signals(np.full((3, *side), 128, np.uint8))).sum() == 4


def test_what_is_watched_of_the_network() -> None:
    rng = np.random.default_rng(0)
    alike, other = rng.normal(size=(2, 300))
    alike, other = alike / np.linalg.norm(alike), other / np.linalg.norm(other)
    raw, repeats, *looks = network_signals(np.array([60.0, 40.0]), alike, 10.0)
    assert (raw, repeats) == (pytest.approx(2, abs=1e-4), pytest.approx(1, abs=1e-4))
    assert np.abs(looks).max() < 4  # within the bins
    nearly = network_signals(np.zeros(2), alike + 0.001 * other, 0.0)[2:]
    assert np.abs(nearly - looks).max() < 0.01 < np.abs(network_signals(np.zeros(2), other, 0.0)[2:] - looks).max()


def test_the_precision_that_scores_promise_scatters_as_it_says() -> None:
    rng = np.random.default_rng(0)

    def window(images: int) -> Window:
        rows = []
        for _ in range(images):
            scores = rng.uniform(0.5, 1, rng.poisson(6)) ** rng.uniform(0.5, 2)
            boxes = np.tile([0.0, 0, 9, 9], (len(scores), 1))
            labels = np.zeros(len(scores), dtype=int)
            found = detection_signals(boxes, scores, labels, np.zeros(2), (20, 20))
            rows.append(np.concatenate([np.zeros(len(SIGNALS) - len(found)), found]))
        return window_of(NAMES, np.array(rows), None)

    whole = expected_precision(window(20_000)).precision
    parts = [expected_precision(window(64)) for _ in range(200)]
    assert np.mean([part.low <= whole <= part.high for part in parts]) == pytest.approx(0.95, abs=0.04)
    assert np.std([part.precision for part in parts]) == pytest.approx(
        np.mean([part.high - part.precision for part in parts]) / 1.96, rel=0.15
    )
    assert np.isnan(expected_precision(window_of(NAMES, np.zeros((3, len(SIGNALS))), None)).precision)


def found(images: int, scores: float | NDArray[np.float64]) -> Window:
    """Images with a sum of scores each."""
    rows = np.zeros((images, len(SIGNALS)))
    rows[:, SIGNALS.index("expected")] = scores
    return window_of(NAMES, rows, None)


def test_map_is_estimated_by_how_much_is_found() -> None:
    usual = found(50, 4.0)
    same = estimated_map(usual, found(10, 4.0), 0.6, False)
    assert same.map == pytest.approx(0.6)
    assert same.high - 0.6 == pytest.approx(1.96 * MAP_ERROR * 0.6)
    for less_or_more in (1.0, 16.0):  # a recall, or a precision, of a quarter
        assert estimated_map(usual, found(10, less_or_more), 0.6, False).map == pytest.approx(0.15)
    assert estimated_map(usual, found(10, 0.0), 0.6, False)[:2] == (0, 0)
    alarmed, quiet = (estimated_map(usual, found(10, 3.0), 0.6, alarm) for alarm in (True, False))
    assert alarmed.low == 0 < quiet.low
    assert np.isnan(estimated_map(found(50, 0.0), found(10, 2.0), 0.6, False)).all()
    assert np.isnan(drift_of(usual, usual).estimated).all()


@pytest.mark.parametrize("mean", [2.0, 7.0])
def test_the_estimate_of_map_scatters_as_its_interval_says(mean: float) -> None:
    usual = found(50, 4.0)
    scores = [np.random.default_rng(seed).gamma(mean, 1.0, 64) for seed in range(300)]
    parts = [estimated_map(usual, found(64, sums), 0.6, False) for sums in scores]
    spread = np.std([part.map for part in parts])
    stated = np.mean([np.sqrt(((part.high - part.map) / 1.96) ** 2 - (MAP_ERROR * 0.6) ** 2) for part in parts])
    assert spread == pytest.approx(stated, rel=0.15)


def test_an_odd_image_is_suspicious() -> None:
    profile = profile_of(200, 0)
    usual = values(1, 5)[0]
    odd = usual.copy()
    odd[SIGNALS.index("brightness")] = 1.0
    assert tail_shares(profile, odd)[SIGNALS.index("brightness")] == pytest.approx(2 / 201, abs=0.003)
    assert suspicion(tail_shares(profile, odd)) > suspicion(tail_shares(profile, usual))


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    other = window_of(["rivet"], values(9, 0)[:, :-1], None)
    with pytest.raises(WindowError, match="other classes"):
        merged([profile_of(9, 0), other])
    with pytest.raises(WindowError, match="rivet"):
        drift_of(profile_of(9, 0), other)
    with pytest.raises(WindowError, match="There is no window"):
        merged([])
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(WindowError, match="is no window of this version"):
        read_window(tmp_path / "a.json")
    write_window(profile_of(9, 0)._replace(artefact={"checkpoint_hash": "a"}), tmp_path / "b.json")
    assert read_window(tmp_path / "b.json").images == 9
