"""Resizing to the network's input, and the way back: one place, shared by training and by every exported artefact.

torchvision's scripted resize rounds another way than its eager one (191 px where eager gives 192), so the target size
is computed here in integers and the interpolation is called with it.
"""

import torch
from torch import Tensor
from torch.nn import functional

from detframe.structures import Batch

PAD_VALUE = 114
"""Grey of the letterbox margin, 0..255: near the mean of natural images, the value that detectors commonly pad with."""


def letterbox_size(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """Size ``(height, width)`` of an image of ``height`` x ``width`` scaled to fit the target, aspect ratio kept."""
    if height * target_width >= width * target_height:  # the height is what limits
        return target_height, max(1, (2 * width * target_height + height) // (2 * height))
    return max(1, (2 * height * target_width + width) // (2 * width)), target_width


def letterbox_transform(
    height: int, width: int, target_height: int, target_width: int, stretch: bool = False
) -> list[float]:
    """What :func:`letterbox` does to the boxes of an image of ``height`` x ``width``, without its pixels.

    Returns:
        ``[scale_x, scale_y, offset_x, offset_y]`` with ``input = original * scale + offset``.
    """
    if stretch:
        new_height, new_width = target_height, target_width
    else:
        new_height, new_width = letterbox_size(height, width, target_height, target_width)
    top, left = (target_height - new_height) // 2, (target_width - new_width) // 2
    return [new_width / width, new_height / height, float(left), float(top)]


def letterbox(image: Tensor, target_height: int, target_width: int, stretch: bool = False) -> tuple[Tensor, Tensor]:
    """Scale one image to the target size, centred on a grey margin where the aspect ratios differ.

    Args:
        image: ``[3, H, W]``, uint8 0..255.
        target_height: Height of the result in pixels.
        target_width: Width of the result in pixels.
        stretch: Fill the target instead, each side scaled on its own.

    Returns:
        The image ``[3, target_height, target_width]``, uint8, and the transform ``[4]`` float32
        ``(scale_x, scale_y, offset_x, offset_y)`` with ``input = original * scale + offset``.
    """
    height, width = image.shape[-2], image.shape[-1]
    if stretch:
        new_height, new_width = target_height, target_width
    else:
        new_height, new_width = letterbox_size(height, width, target_height, target_width)
    if new_height != height or new_width != width:
        image = functional.interpolate(
            image[None], size=(new_height, new_width), mode="bilinear", align_corners=False, antialias=True
        )[0]
    top, left = (target_height - new_height) // 2, (target_width - new_width) // 2
    if new_height != target_height or new_width != target_width:
        margins = [left, target_width - new_width - left, top, target_height - new_height - top]
        image = functional.pad(image, margins, value=float(PAD_VALUE))
    return image, torch.tensor(letterbox_transform(height, width, target_height, target_width, stretch))


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
