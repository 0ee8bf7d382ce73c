"""The paper's recipe on a data set of torchvision, with your own loaders.

python examples/frozen_torchvision.py          (downloads Oxford Flowers-102, 350 MB)
"""

import pytorch_lightning as pl
from torch.utils.data import DataLoader
from torchvision.datasets import Flowers102
from torchvision.transforms import v2

import cxlp


def main() -> None:
    """Fit PCA and SVMs in one pass over the training images, and test the network."""
    backbone = cxlp.Backbone("efficientnet_lite0", layers=("blocks.6.0", "conv_head"))
    network = cxlp.Network(backbone, cxlp.CrossLayerPooling(pca_dim=128), classes=102)

    # Inputs are square RGB images, uint8 or from 0 to 1. The network normalises them itself.
    transform = v2.Compose([v2.PILToTensor(), v2.Resize((network.image_size, network.image_size))])
    train, test = (
        DataLoader(Flowers102("data/torchvision", split, transform=transform, download=True), batch_size=32)
        for split in ("train", "test")
    )

    precision = cxlp.fastest_precision().name  # bfloat16 if the hardware supports it
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, precision=precision)
    task = cxlp.Frozen(network)
    trainer.fit(task, train)
    trainer.test(task, test)
    print("On the command line: python train.py --config flowers.yaml --config efficientnet_lite0.yaml")


if __name__ == "__main__":
    main()
