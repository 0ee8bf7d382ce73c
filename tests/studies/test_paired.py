"""The images of two runs that are compared, from the runs' files."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from cxlp.studies.paired import compare, p_as_text, read_image_results, results_folder
from cxlp.utils.errors import CxlpError


def left(folder: Path, rows: Sequence[tuple[str, str, int]], images: dict[str, int] | None = None) -> Path:
    """Write the files of a run's test: path, true class, right."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([["path", "true", "right", "class_1"], *((*row, "wren") for row in rows)])
    (folder / "metrics.json").write_text(json.dumps({"images": images or {"test": len(rows), "train": 4 * len(rows)}}))
    return folder


def images(right: Sequence[int], kinds: Sequence[str] = ("wren", "robin")) -> list[tuple[str, str, int]]:
    return [(f"{kinds[i % 2]}/{i}.jpg", kinds[i % 2], int(hit)) for i, hit in enumerate(right)]


A = [1, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1]
B = [1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0]


def test_images_are_matched_by_path_in_any_order_and_case(tmp_path: Path) -> None:
    one, other = left(tmp_path / "a", images(A)), left(tmp_path / "b", images(B, ("Wren", "Robin"))[::-1])
    with pytest.raises(
        CxlpError, match="no test images in common"
    ):  # the folders have different names, so the paths differ
        compare({"a": [one], "b": [other]}, "b")
    renamed = [(path.lower(), true, right) for path, true, right in images(B, ("Wren", "Robin"))][::-1]
    found = compare({"a": [one], "b": [left(tmp_path / "b", renamed)]}, "b")
    assert list(found) == ["a"] and found["a"].images == 12 and not found["a"].left_out
    assert found["a"].found.difference == pytest.approx(5 / 12)
    assert found["a"].found.p == pytest.approx(binomtest(1, 7).pvalue)
    assert found["a"].cells["difference"] == "+41.67"
    turned = compare({"a": [one], "b": [tmp_path / "b"]}, "a")["b"].found
    assert turned.difference == -found["a"].found.difference and turned.p == found["a"].found.p


def test_unshared_or_relabelled_images_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = images(B)
    rows[0] = ("wren/0.jpg", "robin", 1)
    found = compare({"a": [left(tmp_path / "a", images(A))], "b": [left(tmp_path / "b", rows[:10])]}, "a")["b"]
    assert found.images == 9 and found.left_out == 2 + 2 * 1
    assert found.found.difference == pytest.approx(np.mean(B[1:10]) - np.mean(A[1:10]))
    with pytest.raises(CxlpError, match=r"no test images in common: 1 paths are the same"):
        compare({"a": [tmp_path / "a"], "b": [left(tmp_path / "b", [("wren/0.jpg", "robin", 1)])]}, "a")


def test_boxes_in_one_image_are_a_group(tmp_path: Path) -> None:
    def boxes(right: Sequence[int]) -> list[tuple[str, str, int]]:
        return [("x.jpg", "wren", hit) for hit in right[:6]] + [("y.jpg", "robin", hit) for hit in right[6:]]

    found = compare({"a": [left(tmp_path / "a", boxes(A))], "b": [left(tmp_path / "b", boxes(B))]}, "b")["a"]
    assert found.images == 12 and found.found.p == pytest.approx(
        0.5
    )  # two groups, in both of which a is better: 2 of 4 sign changes
    # one run has fewer rows for an image, so it is unknown which rows correspond
    fewer = compare({"a": [tmp_path / "a"], "b": [left(tmp_path / "b", boxes(B)[1:])]}, "b")["a"]
    assert fewer.images == 6 and fewer.left_out == 11


def test_several_runs_with_the_same_images_are_random_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    systems = {
        name: [
            left(tmp_path / f"{name}{seed}", images([int(hit) for hit in rng.random(50) < rate])) for seed in range(3)
        ]
        for name, rate in (("a", 0.9), ("b", 0.6))
    }
    found = compare(systems, "b")["a"].found
    assert found.by == "3 runs x images, t" and found.p < 0.05
    with pytest.raises(CxlpError, match=r"a has 3 runs and b has 2: "):
        compare({**systems, "b": systems["b"][:2]}, "b")


def test_runs_share_a_split_despite_lost_or_reordered_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def runs(name: str) -> list[Path]:
        rows = [images([int(hit) for hit in rng.random(40) < 0.7]) for _ in range(3)]
        return [left(tmp_path / f"{name}{k}", each[:: 1 if k else -1]) for k, each in enumerate(rows)]

    whole, fewer = runs("a"), runs("b")
    rows = images([1] * 40)[1:]
    found = compare({"a": whole, "b": [*fewer[:2], left(tmp_path / "c", rows)]}, "b")["a"]
    assert found.found.by == "3 runs x images, t"
    assert found.images == 39 and found.left_out == 2 + 2 + 1


def test_several_splits_are_corrected_for_shared_training_images(tmp_path: Path) -> None:
    def runs(name: str, shares: Sequence[float], train: int = 150) -> list[Path]:
        counts = {"test": 50, "train": train}
        return [
            left(tmp_path / f"{name}{k}", [(f"{k}-{i}.jpg", "wren", int(i < 50 * s)) for i in range(50)], counts)
            for k, s in enumerate(shares)
        ]

    systems = {"a": runs("a", (0.9, 0.8, 0.84)), "b": runs("b", (0.8, 0.74, 0.76))}
    found = compare(systems, "b")["a"].found
    assert found.by == "3 splits, corrected t" and found.difference == pytest.approx(0.08)
    variance = np.var([0.1, 0.06, 0.08], ddof=1) * (1 / 3 + 1 / 3)
    assert (found.high - found.low) / 2 == pytest.approx(4.302653 * variance**0.5)
    (systems["b"][0] / "metrics.json").write_text("{}")
    with pytest.raises(CxlpError, match=r"b0/metrics\.json .*images"):
        compare(systems, "b")


def test_p_values_are_adjusted_for_all_rows(tmp_path: Path) -> None:
    places = {name: [left(tmp_path / name, images(right))] for name, right in (("a", A), ("b", B), ("c", A[::-1]))}
    found = compare(places, "a")
    assert found["b"].adjusted == min(1, 2 * found["b"].found.p)
    assert found["c"].adjusted == max(found["b"].adjusted, found["c"].found.p)


def test_a_system_without_predictions_does_not_affect_other_tests(tmp_path: Path) -> None:
    places = {name: [left(tmp_path / name, images(right))] for name, right in (("a", A), ("b", B), ("c", B))}
    (tmp_path / "c" / "predictions.csv").unlink()
    refused: dict[str, CxlpError] = {}
    found = compare(places, "a", refused)
    assert [*found] == ["b"] and found["b"].adjusted == found["b"].found.p
    assert [*refused] == ["c"] and str(tmp_path / "c") in str(refused["c"])
    with pytest.raises(CxlpError, match=str(tmp_path / "c")):
        compare(places, "a")
    with pytest.raises(CxlpError, match=str(tmp_path / "c")):
        compare(places, "c", refused)


def scored(folder: Path, scores: Any, labels: Any, classes: Sequence[str]) -> Path:
    folder.mkdir()
    (folder / "predictions.csv").write_text("path,true,unspecified,class_1\n")
    paths = np.array([f"{i}.jpg" for i in range(len(scores))])
    np.savez(folder / "scores.npz", scores=scores, labels=labels, paths=paths, classes=np.array(classes))
    return folder


def test_scores_of_several_labels_are_matched_by_class_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 2, (80, 3)).astype(np.int8)
    good, bad = labels + rng.normal(size=(2, 80, 3)) * np.array([0.5, 3.0])[:, None, None]
    one = scored(tmp_path / "a", good.astype(np.float32), labels, ["hat", "jeans", "glasses"])
    turned = [2, 0, 1]
    other = scored(tmp_path / "b", bad[:, turned].astype(np.float32), labels[:, turned], ["glasses", "hat", "jeans"])
    found = compare({"a": [one], "b": [other]}, "b")["a"].found
    assert found.by == "paired bootstrap" and found.difference > 0.1 and found.p < 0.01
    with pytest.raises(CxlpError, match="only one of them has several labels"):
        compare({"a": [one], "b": [left(tmp_path / "c", images(A))]}, "a")


def test_names_with_any_bytes_are_read(tmp_path: Path) -> None:
    rows = [("wr\udcff.jpg", "<wren>, small", 1), ('a "b".jpg', "<wren>, small", 0)]
    found = read_image_results(left(tmp_path / "a", rows))
    assert found.keys == (("wr\udcff.jpg", 0), ('a "b".jpg', 0)) and found.results.tolist() == [True, False]


@pytest.mark.parametrize("text", [None, "path,true,right\n1,2\n", "path,true,right\na,b,yes\n", "nothing\n"])
def test_missing_or_broken_predictions_are_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(CxlpError, match=r"predictions\.csv|scores\.npz"):
        read_image_results(tmp_path)


def test_the_results_of_a_refit_come_from_its_second_run(tmp_path: Path) -> None:
    assert results_folder(tmp_path) == tmp_path
    assert results_folder(left(tmp_path / "refit", images(A)).parent) == tmp_path / "refit"


@pytest.mark.parametrize(("p", "text"), [(0.0004, "<0.001"), (0.0123, "0.012"), (0.5, "0.50"), (1.0, "1.00")])
def test_p_values_have_two_digits(p: float, text: str) -> None:
    assert p_as_text(p) == text
