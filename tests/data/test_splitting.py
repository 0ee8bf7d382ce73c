"""The samples that stratified splits draw."""

from collections import Counter
from pathlib import Path

from cxlp.data.dataset import Sample
from cxlp.data.splitting import draw_some


def samples(*counts: int) -> list[Sample]:
    return [Sample(Path(f"{label}-{k}.png"), label) for label, count in enumerate(counts) for k in range(count)]


def count(drawn: list[Sample]) -> dict[object, int]:
    return dict(Counter(sample.label for sample in drawn))


def test_class_proportions_are_kept_and_rare_classes_get_their_minimum() -> None:
    every = samples(200, 100, 10, 2)
    drawn = draw_some(every, 78, 4)  # a quarter
    assert count(drawn) == {0: 50, 1: 25, 2: 4, 3: 2}
    assert drawn == [sample for sample in every if sample in set(drawn)]  # in order
    assert drawn == draw_some(every, 78, 4) != draw_some(every, 78, 4, seed=1)
    assert [sample.path.name for sample in drawn[:50]] != [f"0-{k}.png" for k in range(50)]  # at random


def test_small_sets_are_used_completely() -> None:
    every = samples(3, 2)
    assert draw_some(every, 5, 4) == every == draw_some(every, 100, 1)


def test_samples_from_one_file_stay_together() -> None:
    every = [Sample(Path(f"{k // 3}.png"), k % 2, (k, 0, 5, 5)) for k in range(120)]
    drawn = draw_some(every, 60, 1)
    assert set(Counter(sample.path for sample in drawn).values()) == {3} and len(drawn) == 60


def test_the_rarest_of_several_labels_counts() -> None:
    every = [Sample(Path(f"{k}.png"), (1, 1 if k < 5 else -1)) for k in range(100)]
    assert sum(sample.label[1] == 1 for sample in draw_some(every, 10, 4)) == 4  # type: ignore[index]
