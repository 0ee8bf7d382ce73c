"""Why an image has its class: the score split exactly over places and pooling channels.

python train.py --config demo.yaml --run.name demo
python examples/explain_image.py runs/demo data/demo/test/gull/00.jpg
"""

import sys
from pathlib import Path

import cxlp
from cxlp.explain.attribution import explain
from cxlp.reports.overlays import draw_explanation


def main(run: str, image: str) -> None:
    """Explain the best class of an image, in numbers and as a picture."""
    model = cxlp.load(run)
    picture = model.picture(image)
    (found,) = explain(model.network, picture[None])

    print(f"{image}: {model.classes[found.target]}, {found.probabilities[found.target]:.1%}")
    shares = found.channels  # one for each pooling channel; with the bias they add up to the score
    print(f"score {found.score:.3f} = evidence {shares.sum():.3f} + bias {found.bias:.3f}")
    strongest = shares.abs().topk(8).indices.tolist()
    print("strongest channels: " + ", ".join(f"{k} ({shares[k]:+.3f})" for k in strongest))

    Path("explained.png").write_bytes(draw_explanation(picture, 1.0, found, strongest, model.classes))
    print("drawn in explained.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
