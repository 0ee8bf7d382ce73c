"""Nearest neighbours by pooled features, without labels: the images of a folder that are most similar to an image.

python examples/nearest_neighbours.py [FOLDER]
"""

import sys
from pathlib import Path

import cxlp
from cxlp.data.demo import Demo


def main(folder: str | None = None) -> None:
    """Embed a folder of images, and find the nearest neighbours of a few of them."""
    if folder is None:
        Demo().prepare_data()
        folder = "data/demo/test"
    paths = sorted(str(path) for path in Path(folder).rglob("*.jpg"))

    # Without PCA, the head needs no fit. A count sketch keeps the vectors short.
    backbone = cxlp.Backbone("efficientnet_lite0", layers=("blocks.6.0", "conv_head"))
    model = cxlp.Predictor(cxlp.Network(backbone, cxlp.CrossLayerPooling(pca_dim=None, sketch=4096)))
    features = model.embed(paths)  # (n, 4096) of unit length, so dot products are cosine similarities
    similarity = features @ features.T

    for query in range(0, len(paths), max(1, len(paths) // 3)):
        nearest = [k for k in (-similarity[query]).argsort() if k != query][:3]
        print(paths[query])
        for k in nearest:
            print(f"  {similarity[query, k]:.3f}  {paths[k]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
