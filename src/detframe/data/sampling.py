"""Which images an epoch takes, in which order, and how often: classes that few images have are seen more."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from detframe.data.annotations import AnnotationIndex


def repeat_factors(index: AnnotationIndex, threshold: float) -> NDArray[np.float64]:
    """How often each image is to be seen in an epoch, ``[M]``, 1 or more (Gupta et al. 2019, LVIS).

    A class ``c`` that a share ``f_c`` of the images has gets ``max(1, sqrt(threshold / f_c))``; an image gets the most
    of its classes, and 1 where it has none. Ignore boxes do not count.

    Args:
        index: Images and boxes.
        threshold: Share of the images below which a class is repeated, 0..1. LVIS takes 0.001.
    """
    owners = index.image_of_box()
    pairs = np.unique(np.stack((owners, index.labels), axis=1)[~index.ignore], axis=0)  # an image and a class it has
    images = np.bincount(pairs[:, 1], minlength=len(index.categories))
    of_class = np.sqrt(threshold * len(index) / images.clip(min=1)).clip(min=1)
    factors = np.ones(len(index))
    np.maximum.at(factors, pairs[:, 0], of_class[pairs[:, 1]])
    return factors


class RepeatFactorSampler(DistributedSampler[int]):
    """Takes image ``i`` its factor's floor or ceiling of times in an epoch, in random order.

    Every epoch has the same length, the rounded sum of the factors. Which images get the ceiling is drawn by systematic
    sampling over a random order, so that over many epochs each is seen as often as its factor says, to within half an
    image shared among all that have a fraction. Seed and epoch alone decide; several processes share one list, of which
    process ``r`` takes the places ``r``, ``r + num_replicas``, ...; what does not divide at its end is dropped.

    It yields *visits*: ``visit % M`` is the position of an image, and the visit itself a number that no other place of
    no other epoch has, from which the data set draws what is random about it. torch's own random sampler and the random
    numbers of loader processes would depend on how many of these there are.

    Args:
        factors: ``[M]``, 1 or more; see :func:`repeat_factors`. Ones take each image once an epoch.
        num_replicas: Processes that share the list.
        rank: Which of them this is, 0..num_replicas-1.
        seed: The same on all of them.
    """

    def __init__(self, factors: NDArray[np.float64], num_replicas: int = 1, rank: int = 0, seed: int = 0) -> None:
        # torch's own class for what several processes share: Lightning calls its `set_epoch` and leaves it in place.
        super().__init__(factors, num_replicas, rank, seed=seed, drop_last=True)  # type: ignore[arg-type] # of a length
        self.factors = np.asarray(factors, dtype=np.float64)
        self.total = round(float(self.factors.sum()))

    def __len__(self) -> int:
        """Count the images of this process."""
        return self.total // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        """Visits of images."""
        generator = np.random.default_rng([self.seed, self.epoch])
        whole = np.floor(self.factors).astype(np.int64)
        order = generator.permutation(len(whole))
        ends = np.cumsum((self.factors - whole)[order])
        whole[order] += _systematic(ends, self.total - int(whole.sum()), float(generator.random()))
        images = generator.permutation(np.repeat(np.arange(len(whole)), whole))
        visits = images + len(whole) * (self.epoch * self.total + np.arange(self.total))
        yield from visits[self.rank :: self.num_replicas][: len(self)].tolist()


def _systematic(ends: NDArray[np.float64], count: int, draw: float) -> NDArray[np.int64]:
    """How many of ``count`` points, 1 apart, fall between ``ends``: 0 or 1 each, as none is wider than 1.

    Args:
        ends: ``[M]`` ascending; the first interval starts at 0. ``count`` is the last of them, rounded either way.
        count: Points to place.
        draw: Places the first of them, 0..1.
    """
    if not count:
        return np.zeros(len(ends), dtype=np.int64)
    rest = ends[-1] - np.floor(ends[-1])
    # The first point's place decides whether as many fit as the whole part says, or one more.
    first = draw * rest if count > ends[-1] else rest + draw * (1 - rest)
    points = np.minimum(first + np.arange(count), np.nextafter(ends[-1], 0))
    return np.bincount(np.searchsorted(ends, points, side="right"), minlength=len(ends))
