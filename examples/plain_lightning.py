"""A frozen fit, and fine-tuning from its solution, with Lightning's own Trainer, logger and callbacks.

python examples/plain_lightning.py
"""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

import cxlp
from cxlp.data.demo import Demo


def main() -> None:
    """Fit, fine-tune, and test the best epoch."""
    pl.seed_everything(0)
    data = Demo(validation=0.2)  # or any DataModule or DataLoader that yields (image, label)
    backbone = cxlp.Backbone("efficientnet_lite0", layers=("blocks.6.0", "conv_head"))
    network = cxlp.Network(backbone, cxlp.CrossLayerPooling(pca_dim=128), classes=10)

    # As in the paper: one pass over the images, PCA, one SVM per class. The SVMs become the network's weights.
    pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False).fit(cxlp.Frozen(network), data)

    # Fine-tune the whole network by gradient descent.
    best = ModelCheckpoint(monitor="val/accuracy", mode="max")
    patience = EarlyStopping(monitor="val/accuracy", mode="max", patience=2)
    trainer = pl.Trainer(max_epochs=3, logger=CSVLogger("runs", "plain_lightning"), callbacks=[best, patience])
    trainer.fit(cxlp.FineTune(network), data)
    trainer.test(datamodule=data, ckpt_path="best")

    again = cxlp.FineTune.load_from_checkpoint(best.best_model_path)
    print(f"{best.best_model_path} holds {again.network.out_features:,} features of {again.network.backbone.layers}")


if __name__ == "__main__":
    main()
