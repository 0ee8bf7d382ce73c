"""Data sets of decoded and transformed samples."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cxlp.data.dataset import Draw, ImageDataset, Sample, list_defects
from cxlp.data.decode import read_image
from cxlp.data.transforms import AugmentConfig, Transform
from cxlp.utils.errors import CxlpError
from tests.generate import texture, write_image


# Slow: torch waits 5 s for a worker that has raised an error.
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_loader_names_the_image_that_cannot_be_decoded(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "spoilt.jpg"
    path.write_bytes(b"<html>404 Not Found</html>")
    data = ImageDataset([Sample(path, 0)], ["a"], Transform(16, "warp", AugmentConfig()))
    with pytest.raises(CxlpError, match=r"spoilt\.jpg"):
        list(DataLoader(data, num_workers=workers))


def test_one_pixel_is_enlarged(tmp_path: Path) -> None:
    write_image(tmp_path / "dot.png", np.full((1, 1, 3), (9, 99, 199), np.uint8))
    for aspect in ("warp", "crop"):
        data = ImageDataset([Sample(tmp_path / "dot.png", 0)], ["a"], Transform(32, aspect, AugmentConfig()))
        for draw in (Draw(0), Draw(0, 5)):
            assert data[draw]["image"].shape == (3, 32, 32)
        assert (data[0]["image"] == torch.tensor([9, 99, 199]).view(3, 1, 1)).all()


def test_images_are_decoded_at_the_size_that_the_transform_needs(tmp_path: Path) -> None:
    path = write_image(tmp_path / "large.jpg", texture(0, 1, np.random.default_rng(0), 240, 180))
    transform = Transform(32, "warp", AugmentConfig(crop_scale=0.5))
    data = ImageDataset([Sample(path, 0), Sample(path, 0, (20.0, 10.0, 200.0, 160.0))], ["a"], transform)
    for item, box in enumerate((None, (20.0, 10.0, 200.0, 160.0))):
        for draw, needed in ((Draw(item), 32), (Draw(item, 5), 53)):
            expected = transform(read_image(path, box, needed), draw.seed)
            assert torch.equal(data[draw]["image"], expected)
            assert not torch.equal(data[draw]["image"], transform(read_image(path, box), draw.seed))


def test_checking_labels_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "tensor", None)  # 300,000 images of 1,000 classes: 2.4 GB
    single = [Sample(Path(f"{i}"), i % 3) for i in range(9)]
    assert list(list_defects("abc", {"train": single, "test": [Sample(Path("t"), 0)]})) == []
    assert list(list_defects("abcd", {"train": single, "test": []})) == [
        "no training image of 1 of 4 classes: d",
        "there are no test images",
    ]
    several = [Sample(Path(f"{i}"), (1, -1, 0, i % 2 * 2 - 1)) for i in range(4)]
    assert list(list_defects("abcd", {"train": several, "test": single})) == [
        "no training image of 2 of 4 classes: b, c",
        "no training image lacks 2 of 4 classes: a, c",
        "4 images are in train and in test, such as 0: keep each once",
    ]
