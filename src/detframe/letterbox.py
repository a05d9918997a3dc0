"""Resizing to the network's input, and the way back: one place, shared by training and by every exported artefact.

torchvision's scripted resize rounds another way than its eager one (191 px where eager gives 192), so the target size
is computed here in integers and the interpolation is called with it.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from detframe.structures import Batch

PAD_VALUE = 114
"""Grey of the letterbox margin, 0..255: near the mean of natural images, the value that detectors commonly pad with."""


def letterbox_size(
    height: int, width: int, target_height: int, target_width: int, stretch: bool = False
) -> tuple[int, int]:
    """Size ``(height, width)`` of an image of ``height`` x ``width`` scaled to fit the target, aspect ratio kept.

    With ``stretch`` it is the target's.
    """
    if stretch:
        return target_height, target_width
    # The side that limits would come out as the target or more. No branch: exported programs have none.
    new_height = (2 * height * target_width + width) // (2 * width)
    new_width = (2 * width * target_height + height) // (2 * height)
    return _within(new_height, target_height), _within(new_width, target_width)


def _within(length: int, target: int) -> int:
    """A length of 1 pixel at least and of the target at most."""
    if torch.jit.is_scripting():
        limited = max(1, min(length, target))
    elif torch.compiler.is_exporting():
        limited = _found_at_run_time(torch.scalar_tensor(length, dtype=torch.int64).clamp(1, target), 1, target)
    else:
        limited = max(1, min(length, target))
    return limited


def _margin(length: int, target: int) -> int:
    """Pixels before what is centred."""
    if torch.jit.is_scripting():
        margin = (target - length) // 2
    elif torch.compiler.is_exporting():
        left = torch.scalar_tensor(target - length, dtype=torch.int64)
        margin = _found_at_run_time(left.div(2, rounding_mode="floor"), 0, target // 2)
    else:
        margin = (target - length) // 2
    return margin


@torch.jit.unused
def _found_at_run_time(number: Tensor, least: int, most: int) -> int:
    """A number that an exported program finds out when it runs.

    As an expression of the image's size it would be tied to what is true of the size that the program was traced with,
    such as whether there is a margin.
    """
    found: Any = number.item()
    torch._check(found >= least)
    torch._check(found <= most)
    return cast(int, found)


def letterbox(
    images: Tensor, target_height: int, target_width: int, stretch: bool = False, grey: int = PAD_VALUE
) -> tuple[Tensor, Tensor]:
    """Scale images of one size to the target size, centred on a grey margin where the aspect ratios differ.

    Args:
        images: ``[B, 3, H, W]``, uint8 0..255 or float 0..1.
        target_height: Height of the result in pixels.
        target_width: Width of the result in pixels.
        stretch: Fill the target instead, each side scaled on its own.
        grey: Of the margin, 0..255.

    Returns:
        The images ``[B, 3, target_height, target_width]`` in their type, and the transform ``[4]`` float32 of all, as
        :func:`letterbox_transform` gives it.
    """
    height, width = images.shape[2], images.shape[3]
    new_height, new_width = letterbox_size(height, width, target_height, target_width, stretch)
    images = _resized(images, new_height, new_width)
    top, left = _margin(new_height, target_height), _margin(new_width, target_width)
    value = float(grey) if images.dtype == torch.uint8 else grey / 255
    # Padding would tie an exported program to the margins of the image that it was traced with.
    canvas = images.new_full((images.shape[0], images.shape[1], target_height, target_width), value)
    canvas[:, :, top : top + new_height, left : left + new_width] = images
    return canvas, _transform(height, width, new_height, new_width, target_height, target_width)


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    """Antialiased. Images that have the size already are copied, not computed."""
    size = (height, width)
    if images.dtype == torch.uint8 and images.device.type != "cpu":  # where torch has no kernel for whole numbers
        smooth = functional.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
        return smooth.round().clamp(0, 255).to(torch.uint8)
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def letterbox_transform(
    height: int, width: int, target_height: int, target_width: int, stretch: bool = False
) -> Tensor:
    """What :func:`letterbox` does to the boxes of an image of ``height`` x ``width``, without its pixels.

    Returns:
        ``[4]`` float32 ``(scale_x, scale_y, offset_x, offset_y)`` with ``input = original * scale + offset``.
    """
    new_height, new_width = letterbox_size(height, width, target_height, target_width, stretch)
    return _transform(height, width, new_height, new_width, target_height, target_width)


def _transform(
    height: int, width: int, new_height: int, new_width: int, target_height: int, target_width: int
) -> Tensor:
    size = torch.tensor([new_width, new_height])
    margin = torch.tensor([target_width, target_height]) - size
    return torch.cat((size / torch.tensor([width, height]), (margin // 2).float()))


def to_input(boxes: Tensor, transforms: Tensor) -> Tensor:
    """Boxes ``[..., N, 4]`` of original images in input pixels, by the images' ``transforms`` ``[..., 4]``."""
    scale = transforms[..., None, :2]
    offset = transforms[..., None, 2:]
    return boxes * torch.cat((scale, scale), dim=-1) + torch.cat((offset, offset), dim=-1)


def resize_batch(batch: Batch, height: int, width: int) -> Batch:
    """A batch of float images in another size: pixels, target boxes and the transforms from the original.

    Args:
        batch: Images ``[B, 3, H, W]``.
        height: Of the result in pixels.
        width: Likewise.
    """
    down, across = height / batch.images.shape[2], width / batch.images.shape[3]
    scale = batch.transforms.new_tensor([across, down, across, down])
    smaller = min(down, across) < 1
    return batch._replace(
        images=functional.interpolate(
            batch.images, size=(height, width), mode="bilinear", align_corners=False, antialias=smaller
        ),
        targets=batch.targets._replace(boxes=batch.targets.boxes * scale),
        transforms=batch.transforms * scale,  # scales and offsets alike
    )


def to_original(boxes: Tensor, transforms: Tensor, original_sizes: Tensor) -> Tensor:
    """Boxes ``[..., N, 4]`` of the network's input in original pixels, clipped to the image.

    Args:
        boxes: xyxy in input pixels.
        transforms: ``[..., 4]``, as :func:`letterbox` gives them.
        original_sizes: ``[..., 2]``, (height, width).
    """
    scale = transforms[..., None, :2]
    offset = transforms[..., None, 2:]
    boxes = (boxes - torch.cat((offset, offset), dim=-1)) / torch.cat((scale, scale), dim=-1)
    height, width = original_sizes[..., 0, None, None], original_sizes[..., 1, None, None]
    limit = torch.cat((width, height, width, height), dim=-1).to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)
