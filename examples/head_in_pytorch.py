"""The head in plain PyTorch: python examples/head_in_pytorch.py (downloads SqueezeNet's weights, 5 MB)."""

import torch
from torch.nn import Linear, functional
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import SqueezeNet1_0_Weights, squeezenet1_0
from torchvision.models.feature_extraction import create_feature_extractor

import cxlp
from cxlp.data.demo import Demo


def main() -> None:
    """Train a classifier on pooled features by gradient descent, and count its right predictions."""
    Demo().prepare_data()  # draws data/demo/{train,test}/<species>/*.jpg; use your own folder instead
    weights = SqueezeNet1_0_Weights.DEFAULT
    pictures = {split: ImageFolder(f"data/demo/{split}", weights.transforms()) for split in ("train", "test")}
    train, test = (DataLoader(pictures[split], batch_size=32, shuffle=split == "train") for split in pictures)

    layers = {"features.9": "lower", "features.10": "upper"}  # two layers whose maps have the same size
    trunk = create_feature_extractor(squeezenet1_0(weights=weights), layers).eval().requires_grad_(False)
    pool = cxlp.CrossLayerPooling(pca_dim=64).fit_pca(train, trunk)  # in one pass over the images
    classifier = Linear(pool.out_features, 10)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for epoch in range(3):
        for images, labels in train:
            loss = functional.cross_entropy(classifier(pool(*trunk(images).values())), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss:.2f}")
    right = sum(int((classifier(pool(*trunk(x).values())).argmax(1) == y).sum()) for x, y in test)
    print(f"{right} of {len(pictures['test'])} test images right")


if __name__ == "__main__":
    main()
