"""The metrics of a benchmark, as torchmetrics objects (right under DDP, never the mean of batch means)."""

from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix


def single_label_metrics(classes: int, prefix: str) -> MetricCollection:
    """Top-1 accuracy over images, and the mean over classes of each class's accuracy.

    Args:
        classes: Number of classes.
        prefix: Such as ``"test/"``.
    """
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "mean_class_accuracy": MulticlassAccuracy(classes, average="macro"),
        },
        prefix=prefix,
    )


def confusion_matrix(classes: int) -> MulticlassConfusionMatrix:
    """Counts ``(true class, predicted class)``."""
    return MulticlassConfusionMatrix(classes)
