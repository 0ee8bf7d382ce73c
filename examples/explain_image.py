"""Explain an image: split the score of its class exactly into shares of places and of pooling channels.

python train.py --config demo.yaml --run.name demo
python examples/explain_image.py runs/demo "data/demo/test/plain hedgefinch/00.jpg"
"""

import sys

import cxlp


def main(run: str, image: str) -> None:
    """Explain the best class of an image, in numbers and as a picture."""
    model = cxlp.load(run)
    found = model.explain(image)  # or target="a class", against="another"
    print(f"{image}: {found.target}, {found.probability:.1%}")

    evidence, bias = found.explanation.evidence, found.explanation.bias
    print(f"score {found.score:.3f} = evidence {evidence:.3f} + bias {bias:.3f}")
    shares = found.explanation.channels  # one per pooling channel; they add up to the evidence
    print("strongest channels: " + ", ".join(f"{k} ({shares[k]:+.3f})" for k in found.strongest))

    heat = found.map()  # an array with the evidence at each place of the image
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    print(f"the most evidence is at row {row}, column {column} of {heat.shape[0]} x {heat.shape[1]}")

    found.save("explained.png")
    print("picture: explained.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
