import torch
from torchvision.transforms.v2 import functional

from detframe.augment.color import RandomColorMatrix, color_matrix


def test_brightness_contrast_and_saturation_are_torchvisions() -> None:
    images = 0.3 + 0.4 * torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))  # nothing is clipped
    operator = RandomColorMatrix(p=1.0)
    one, zero = torch.ones(2), torch.zeros(2)
    parameters = {
        "brightness": one * 1.1,
        "contrast": one * 0.7,
        "saturation": one * 0.5,
        "hue": zero,
        "batch_prob": one,
    }
    expected = functional.adjust_brightness(images, 1.1)
    expected = torch.stack([functional.adjust_contrast(image, 0.7) for image in expected])
    expected = functional.adjust_saturation(expected, 0.5)
    torch.testing.assert_close(operator(images, params=parameters), expected, atol=2e-3, rtol=0)


def test_hue_turns_chroma_and_leaves_luma() -> None:
    color = torch.tensor([0.6, 0.3, 0.2])
    luma = torch.tensor([0.299, 0.587, 0.114])
    third = color_matrix(torch.ones(1), torch.ones(1), torch.full((1,), 2 * torch.pi / 3))[0]
    torch.testing.assert_close((third @ color) @ luma, color @ luma)
    torch.testing.assert_close(third @ third @ third, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(third @ torch.full((3,), 0.4), torch.full((3,), 0.4), atol=1e-5, rtol=0)


def test_the_gate_leaves_images_alone() -> None:
    images = torch.rand(64, 3, 4, 4)
    torch.manual_seed(0)
    after = RandomColorMatrix(p=0.5)(images)
    same = (after == images).flatten(1).all(1)
    assert 16 < int(same.sum()) < 48
