"""A user's own random augmentations: by import path, seeded, and checked."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxlp.data.changes import build_change
from cxlp.data.transforms import AugmentConfig, Transform
from cxlp.utils.errors import CxlpError
from tests.data.listed import ready

PICTURE = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
ALBUMENTATIONS = {"class_path": "albumentations.RandomGamma", "init_args": {"gamma_limit": [50, 150], "p": 1.0}}
NESTED = {"class_path": "albumentations.OneOf", "init_args": {"transforms": [ALBUMENTATIONS], "p": 1.0}}
TORCHVISION = {"class_path": "torchvision.transforms.v2.RandomRotation", "init_args": {"degrees": 30}}
OWN = {"class_path": "tests.data.test_changes.Noise"}
STILL: dict[str, Any] = {"crop_scale": 1.0, "flip": 0.0, "colour": 0.0}


class Noise(nn.Module):
    """Draws numbers from all three generators."""

    def forward(self, image: Tensor) -> Tensor:
        assert image.shape == (3, 24, 24) and image.dtype == torch.uint8
        drawn = torch.randint(0, 50, ()) + random.randrange(50) + int(np.random.randint(50))
        return image // 2 + drawn.to(torch.uint8)


class Smaller(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image[:, 1:]


@pytest.mark.parametrize("described", [ALBUMENTATIONS, NESTED, TORCHVISION, OWN])
def test_draws_depend_on_the_seed_alone(described: dict[str, Any]) -> None:
    def draws() -> list[bytes]:
        change = build_change(described, "key")
        return [change(PICTURE.copy(), seed).tobytes() for seed in (1, 2, 1)]

    random.seed(5)
    torch.manual_seed(5)
    np.random.seed(5)
    state = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    first = draws()
    assert first[0] == first[2] != first[1] and PICTURE.tobytes() not in first
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])
    assert np.random.get_state()[1].tolist() == state[2], "other random draws are not affected"  # type: ignore[index]
    random.seed(6)
    torch.manual_seed(6)
    np.random.seed(6)
    assert draws() == first


def test_custom_transforms_follow_the_built_in_ones_in_training_only() -> None:
    own = Transform(24, "warp", AugmentConfig(**STILL, custom=(TORCHVISION, OWN)))
    plain = Transform(24, "warp", AugmentConfig(**STILL))
    assert torch.equal(own(PICTURE, None), plain(PICTURE, None))
    rotated = build_change(OWN, "key")(build_change(TORCHVISION, "key")(PICTURE, 3), 3)
    assert np.array_equal(own(PICTURE, 3).permute(1, 2, 0).numpy(), rotated)


def test_workers_and_epochs_draw_as_one_process_does(tmp_path: Path) -> None:
    def epoch(workers: int, number: int) -> Tensor:
        augment = AugmentConfig(**STILL, custom=(OWN, ALBUMENTATIONS))
        module = ready(tmp_path, image_size=24, batch_size=4, num_workers=workers, augment=augment)
        loader = module.train_dataloader()
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        return torch.cat([batch["image"] for batch in loader])

    alone = epoch(0, 0)
    assert torch.equal(alone, epoch(2, 0)) and not torch.equal(alone, epoch(0, 1))


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (
            {"class_path": "albumentations.RandomGama"},
            r"albumentations .* has no 'RandomGama'\. Did you mean 'RandomGamma'",
        ),
        ({"class_path": "nowhere.Noise"}, "there is no module 'nowhere'"),
        ({"class_path": "torchvision.transforms.v2.RandomRotation"}, "RandomRotation .* init_args: .*degrees"),
        ({**TORCHVISION, "init_args": {"degrees": -3}}, "RandomRotation .* init_args: .*degrees"),
        ({"class_path": "subprocess.Popen"}, "Popen is neither a transform of albumentations nor an nn.Module"),
        ({"class_path": "os.getcwd"}, "getcwd is neither a transform"),
        ({"path": "x"}, "{'path': 'x'}: .*class_path"),
    ],
)
def test_invalid_augmentations_are_refused_at_construction(described: dict[str, Any], said: str) -> None:
    with pytest.raises(CxlpError, match=rf"data\.augment\.custom:? .*{said}"):
        AugmentConfig(custom=(described,))


@pytest.mark.parametrize(
    ("described", "said"),
    [
        (
            {"class_path": "tests.data.test_changes.Smaller"},
            r"Smaller returns uint8 \(23, 24, 3\) for .* \(24, 24, 3\)",
        ),
        ({"class_path": "albumentations.Normalize"}, r"Normalize returns float32 \(24, 24, 3\)"),
        ({"class_path": "torchvision.transforms.v2.ToPILImage"}, "ToPILImage returns Image"),
    ],
)
def test_a_transform_must_keep_shape_and_type(described: dict[str, Any], said: str) -> None:
    with pytest.raises(CxlpError, match=said):
        build_change(described, "key")(PICTURE, 0)


class Fails(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        raise RuntimeError("no\nluck")


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"class_path": "tests.data.test_changes.Fails"}, r"key: .*Fails fails on .*\(24, 24, 3\): no luck"),
        ({"class_path": "albumentations.CenterCrop", "init_args": {"height": 99, "width": 99}}, "CenterCrop fails on"),
    ],
)
def test_a_failing_transform_is_named_with_its_key(described: dict[str, Any], said: str) -> None:
    with pytest.raises(CxlpError, match=said):
        build_change(described, "key", resizes=True)(PICTURE, 0)


def test_the_image_that_a_transform_fails_on_is_named(tmp_path: Path) -> None:
    data = ready(tmp_path, transform=({"class_path": "tests.data.test_changes.Fails"},))
    with pytest.raises(CxlpError, match=rf"data\.transform: .*no luck \(image {tmp_path}"):
        _ = data.splits["train"][0]


PADDED = {"class_path": "albumentations.PadIfNeeded", "init_args": {"min_height": 48, "min_width": 48, "fill": 255}}


def test_all_images_are_prepared_before_they_are_made_square() -> None:
    wide = np.zeros((24, 48, 3), np.uint8)
    transform = Transform(24, "warp", AugmentConfig(**STILL), (PADDED,))
    for seed in (None, 3):
        made = transform(wide, seed)
        assert made.shape == (3, 24, 24) and made[:, :4].min() > 250 and made[:, 8:16].max() < 5
    assert transform.needed(None) is None, "the effect on parts of the picture is unknown"
    assert torch.equal(transform.at(12)(wide, None), Transform(12, "warp", AugmentConfig(), (PADDED,))(wide, None))
    assert transform.prepared(wide).shape == (48, 48, 3)
    with pytest.raises(CxlpError, match=r"data\.transform: .*Normalize returns float32 .*: it must be uint8, with 3"):
        Transform(24, "warp", AugmentConfig(), ({"class_path": "albumentations.Normalize"},))(wide, None)


def test_data_transform_changes_the_digest(tmp_path: Path) -> None:
    plain, padded = (ready(tmp_path, transform=changes) for changes in ((), (PADDED,)))
    assert plain.digest("train") != padded.digest("train") == ready(tmp_path, transform=(PADDED,)).digest("train")
    assert not torch.equal(plain.splits["test"][0]["image"], padded.splits["test"][0]["image"])
    plain.resize(16, 32)
    padded.resize(16, 32)
    assert not torch.equal(plain.splits["test"][0]["image"], padded.splits["test"][0]["image"])
