"""A user's own tables: columns, values, splits, boxes, and messages about odd ones."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cxlp.data.checking import check
from cxlp.data.inspection import Kind
from cxlp.data.table import Table, _ordered
from cxlp.utils.errors import CxlpError
from tests.data.folders import fill, names

FILES = tuple(f"{name}.png" for name in "abcdefgh")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return fill(tmp_path, *FILES)


def write(photos: Path, text: str, name: str = "mine.csv", encoding: str = "utf-8") -> Path:
    path = photos / name
    path.write_bytes(text.encode(encoding))
    return path


def listed(table: Any, **options: Any) -> tuple[tuple[str, ...], dict[str, list[tuple[str, Any]]]]:
    """Return the classes, and the files with their labels by split."""
    module = Table(table, **options)
    classes, samples = module.read()
    return classes, {
        s: [(f, x.label) for f, x in zip(names(p, module.root), p, strict=True)] for s, p in samples.items()
    }


SPLITS = ("train", "train", "Training", "val", "validation", "test", "TEST", "testing")
SINGLE = {"train": [("a.png", 1), ("b.png", 0), ("c.png", 1)], "val": [("d.png", 0), ("e.png", 1)]} | {
    "test": [("f.png", 0), ("g.png", 1), ("h.png", 0)]
}


def single(delimiter: str = ",", heads: Sequence[str] = ("path", "label", "split")) -> str:
    rows = [heads, *((f, ("dog", "cat")[i % 2], SPLITS[i]) for i, f in enumerate(FILES))]
    return "\n".join(delimiter.join(row) for row in rows) + "\n"


def test_one_label_per_image(photos: Path) -> None:
    assert listed(write(photos, single())) == (("cat", "dog"), SINGLE)
    module = Table(photos / "mine.csv", image_size=8)
    module.setup()
    assert module.name == "mine" and not module.multi_label
    assert [len(module.splits[s]) for s in ("train", "val", "test")] == [3, 2, 3], "val is the held-out split"


@pytest.mark.parametrize(
    "heads", [("File", "Class", "SET"), ("image", "species", "subset"), ("filename", "category", "partition")]
)
def test_usual_column_names_are_recognised_in_any_case(photos: Path, heads: Sequence[str]) -> None:
    assert listed(write(photos, single(heads=heads))) == (("cat", "dog"), SINGLE)


def test_columns_may_have_any_name(photos: Path) -> None:
    path = write(photos, single(heads=("label", "what", "fold")))
    columns: dict[str, Any] = {"path_column": "label", "label_column": "What", "split_column": "fold"}
    assert listed(path, **columns) == (("cat", "dog"), SINGLE)
    with pytest.raises(CxlpError, match=r"data\.label_column: .*mine\.csv has no column 'wath'\. Did you mean 'what'"):
        Table(path, **{**columns, "label_column": "wath"})
    with pytest.raises(CxlpError, match=r"has no column of paths: .*columns are 'label', 'what', 'fold'"):
        Table(path)


@pytest.mark.parametrize(
    ("text", "name", "encoding"),
    [
        (single(), "a.csv", "utf-8-sig"),
        (single(), "a.csv", "utf-16"),
        (single().replace("\n", "\r\n"), "a.csv", "utf-8"),
        (single().replace("\n", "\r"), "a.csv", "utf-8"),
        (single(";"), "a.csv", "utf-8"),
        (single("\t"), "a.tsv", "utf-8"),
        (single("\t"), "a.txt", "utf-8"),
        (single(" , "), "a.csv", "utf-8"),
        (single('","').replace("\n", '"\n"').removesuffix('"').join(['"', ""]), "a.csv", "utf-8"),
        ("\n" + single().replace("\n", "\n,,\n"), "a.csv", "utf-8"),
        (single().strip(), "a.csv", "utf-8"),
    ],
    ids=["BOM", "UTF-16", "CRLF", "CR", "semicolons", "TSV", "tabs", "blanks", "quoted", "blank lines", "no newline"],
)
def test_files_as_spreadsheets_and_editors_write_them(photos: Path, text: str, name: str, encoding: str) -> None:
    assert listed(write(photos, text, name, encoding)) == (("cat", "dog"), SINGLE)


def test_another_encoding_can_be_set(photos: Path) -> None:
    path = write(photos, single().replace("cat", "kätzchen"), encoding="cp1252")
    with pytest.raises(CxlpError, match=r"mine\.csv, line 3: byte 0xe4 is not utf-8: .*data\.encoding: cp1252"):
        Table(path)
    assert listed(path, encoding="cp1252")[0] == ("dog", "kätzchen")
    with pytest.raises(CxlpError, match=r"data\.encoding is 'utf-9'"):
        Table(path, encoding="utf-9")


SEVERAL = {"train": [("a.png", (1, 1)), ("b.png", (-1, 1)), ("c.png", (1, -1))], "test": [("d.png", (-1, -1))]}


@pytest.mark.parametrize(
    ("sign", "options"), [(";", {}), ("|", {}), (" , ", {}), (" ", {}), (" and ", {"separator": "and"})]
)
def test_several_labels_in_a_cell(photos: Path, sign: str, options: dict[str, Any]) -> None:
    cells = [f"red{sign}blue", "red", "blue", ""]
    rows = [f'{f},"{c}",{s}' for f, c, s in zip(FILES, cells, ("train", "train", "train", "test"), strict=False)]
    path = write(photos, "\n".join(["path,tags,split", *rows]))
    module = Table(path, **options)
    assert module.multi_label
    classes, samples = module.read()
    assert classes == ("blue", "red")
    assert {s: [(x.path.name, x.label) for x in part] for s, part in samples.items()} == SEVERAL
    said = f"warning: labels are split at {(sign.strip() or ' ')!r}: to change this, set data.separator"
    assert module.remarks() == ([] if options else [said])


def test_labels_with_several_words_are_not_split(photos: Path) -> None:
    rows = [f"{f},{('black cat', 'white dog', 'grey mouse')[i % 3]}" for i, f in enumerate(FILES)]
    path = write(photos, "\n".join(["path,labels", *rows]))
    assert Table(path, test_fraction=0.4).read()[0] == ("black cat", "grey mouse", "white dog")


def test_a_column_for_each_class(photos: Path) -> None:
    text = """path,id,has hat,notes,is tall,split
a.png,17,1,,0,train
b.png,18,0,late,1,train
c.png,19,,,-1,train
d.png,20,yes,,1.0,test
"""
    module = Table(write(photos, text))
    classes, samples = module.read()
    assert classes == ("has hat", "is tall") and module.multi_label
    assert [s.label for s in samples["train"]] == [(1, -1), (-1, 1), (0, 0)]
    assert [s.label for s in samples["test"]] == [(1, 1)]
    assert module.remarks() == [
        "warning: unused columns: id, notes",
        "warning: -1, which occurs 1 times, means unspecified, and 0 means absent",
    ]
    assert Table(photos / "mine.csv", class_columns=["is tall"]).read()[0] == ("is tall",)
    with pytest.raises(CxlpError, match=r"mine\.csv, line 2: id is '17': it must be 1 \(present\), 0 \(absent\)"):
        Table(photos / "mine.csv", class_columns=["id"]).read()
    with pytest.raises(CxlpError, match=r"mine\.csv, line 3: is tall is 'often': it must be"):
        Table(write(photos, text.replace("late,1", "late,often"))).read()


def test_minus_one_is_absent_where_there_is_no_zero(photos: Path) -> None:
    module = Table(write(photos, "path,hat,split\na.png,1,train\nb.png,-1,train\nc.png,,test\n"))
    assert [s.label for s in module.read()[1]["train"]] == [(1,), (-1,)]
    assert module.remarks() == ["warning: -1 means absent, because 0 does not occur"]


def test_a_split_is_made_class_by_class_and_files_stay_together(photos: Path) -> None:
    rows = [f"{f},{i % 2},{x},0,2,2" for i, f in enumerate(FILES) for x in (0, 1)]
    path = write(photos, "\n".join(["path,label,x,y,w,h", *rows]))
    classes, samples = Table(path, test_fraction=0.25).read()
    assert classes == ("0", "1") and [sorted(s.label for s in samples["test"])] == [[0, 0, 1, 1]]
    assert len({s.path for s in samples["test"]}) == 2 and len(samples["train"]) == 12
    assert samples["train"][0].box == (0.0, 0.0, 2.0, 2.0)
    assert Table(path, test_fraction=0.25, split_seed=7).read()[1] == samples
    with pytest.raises(
        CxlpError, match=r"the DataFrame: cannot split it into train and test.* has 1\): each class needs two"
    ):
        Table(Frame([{"path": "a.png", "label": 1}, {"path": "b.png", "label": 2}]), root=photos).read()


def test_boxes(photos: Path) -> None:
    text = "path,label,split,X,Y,W,H\na.png,u,train,1,2,3,4.5\nb.png,v,train,,,,\nc.png,u,test,0,0,1,1\n"
    path = write(photos, text)
    samples = Table(path).read()[1]
    assert [s.box for s in samples["train"]] == [(1.0, 2.0, 3.0, 4.5), None]
    assert {s.box for s in Table(path, bbox=False).read()[1]["train"]} == {None}
    assert Table(write(photos, text.replace(",,,,", ",nan,NaN,,null"))).read()[1]["train"][1].box is None
    with pytest.raises(CxlpError, match=r"mine\.csv, line 3: expected 'x y width height', got '1   '"):
        Table(write(photos, text.replace("train,,,,", "train,1,,,"))).read()


HEAD = "path,label,split\n"
WRONG = {
    "a blank path": (HEAD + ",cat,train\n", "line 2: path is blank"),
    "a blank label": (HEAD + "a.png,cat,train\nb.png, ,train\n", "line 3: label is blank"),
    "a blank split": (HEAD + "a.png,cat,\n", "line 2: split is '': it must be train, val or test"),
    "an unknown split": (HEAD + "a.png,cat,trian\n", "line 2: split is 'trian': it must be"),
    "one split": (HEAD + "a.png,cat,train\n", "column split contains only train, .* train and test"),
    "no training": (HEAD + "a.png,cat,val\nb.png,cat,test\n", "column split contains only val, test,"),
    "too many fields": (
        HEAD + "a.png,cat, tabby,train\n",
        r"line 2: 4 fields, but the first line names 3 .* ','",
    ),
    "too few fields": (HEAD + '"a\nb.png",cat,train\nb.png,cat\n', "line 4: 2 fields, but the first line names 3"),
    "a lost quote": (HEAD + 'a.png,"cat,train\nb.png,dog,train\n', r"line 3: .*: is a quote missing\?"),
    "two labels": (
        HEAD + "a.png,cat,train\n./a.png,dog,train\n",
        r"line 3: \./a\.png has other labels than in .*line 2",
    ),
    "two splits": (HEAD + "a.png,cat,train\na.png,cat,test\n", "line 3: a.png is in test, but in train in .*line 2"),
    "the same name": ("path,label,Label\na.png,1,1\n", "several columns are called 'label'"),
    "no labels": ("path,size\na.png,17\n", "has no column of labels: .* columns are 'path', 'size'"),
    "nothing": ("", "has no rows"),
    "no rows": (HEAD, "has no rows"),
    "missing": (HEAD + "a.png,cat,train\nz.png,cat,train\n", r"line 3: image not found: .*z\.png; 1 of 2 are missing"),
}


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG)
def test_errors_name_the_line(photos: Path, text: str, said: str) -> None:
    with pytest.raises(CxlpError, match=rf"mine\.csv(,|:)? ?{said}"):
        Table(write(photos, text)).read()


def test_repeated_rows_are_counted(photos: Path) -> None:
    module = Table(write(photos, single() + "./a.png, dog ,train\n"), image_size=8)
    module.setup()
    assert module.remarks()[-1] == f"left out of {photos}: 1 repeated rows"
    assert len(module.splits["train"]) == 3


def test_labels_that_differ_only_in_case_are_reported(photos: Path) -> None:
    module = Table(write(photos, single().replace("a.png,dog", "a.png,Dog")))
    assert module.read()[0] == ("Dog", "cat", "dog")
    assert module.remarks() == ["warning: the labels 'Dog' and 'dog' differ only in case or in Unicode normalisation"]


def test_numbers_are_ordered_as_numbers(photos: Path) -> None:
    rows = [f"{f},{(2, 10)[i % 2]}" for i, f in enumerate(FILES)]
    assert Table(write(photos, "\n".join(["path,label", *rows]))).read()[0] == ("2", "10")


def test_labels_with_equal_numbers_are_ordered_and_reported(photos: Path) -> None:
    labels = ["0" * n + "1" for n in range(8)]  # a set has another order in each process
    assert _ordered(["2", *labels]) == (*labels[::-1], "2")
    rows = [f"{f},{('1', '01')[i % 2]}" for i, f in enumerate(FILES)]
    module = Table(write(photos, "\n".join(["path,label", *rows])))
    assert module.read()[0] == ("01", "1")
    assert module.remarks() == ["warning: the labels '01' and '1' are the same number"]


def test_labels_that_differ_only_in_unicode_form_are_reported(photos: Path) -> None:
    forms = "caf\u00e9", "cafe\u0301"
    rows = [f"{f},{forms[i % 2]}" for i, f in enumerate(FILES)]
    module = Table(write(photos, "\n".join(["path,label", *rows])))
    assert len(module.read()[0]) == 2 and "differ only in case or in Unicode normalisation" in module.remarks()[0]


@pytest.mark.parametrize("options", [{}, {"class_columns": ["X", "Y", "W", "H"]}])
def test_box_columns_must_be_numeric(photos: Path, options: dict[str, Any]) -> None:
    rows = [f"{f},{i % 2},0,{1 - i % 2},0,{s}" for i, (f, s) in enumerate(zip(FILES, SPLITS, strict=True))]
    classes, samples = Table(write(photos, "\n".join(["path,X,Y,W,H,split", *rows])), **options).read()
    assert classes == ("X", "Y", "W", "H") and samples["train"][0] == (photos / "a.png", (-1, -1, 1, -1), None)


def test_a_separator_line_is_not_a_row(photos: Path) -> None:
    text = "sep=;\n" + single(";") + "z.png;cat;nowhere\n"
    module = Table(write(photos, text))
    with pytest.raises(CxlpError, match="line 11: split is 'nowhere'"):
        module.read()
    assert listed(write(photos, "sep=,\r\n" + single().replace("\n", "\r\n"))) == (("cat", "dog"), SINGLE)


def test_paths_are_relative_to_the_table_or_the_root_or_absolute(photos: Path, tmp_path: Path) -> None:
    text = single().replace("a.png", str(photos / "a.png")).replace("b.png", "sub\\b.png")
    (photos / "sub").mkdir()
    (photos / "b.png").rename(photos / "sub" / "b.png")
    (tmp_path / "lists").mkdir()
    elsewhere = write(tmp_path / "lists", text)
    found = Table(elsewhere, root=photos).read()[1]
    assert names(found["train"], photos) == ["a.png", "sub/b.png", "c.png"]
    with pytest.raises(
        CxlpError, match=rf"line 3: image not found: .*7 of 8 are missing.* relative to {elsewhere.parent}"
    ):
        Table(elsewhere).read()


def test_missing_files_can_be_left_out(photos: Path) -> None:
    (photos / "a.png").unlink()
    module = Table(write(photos, single()), image_size=8, on_broken="skip")
    module.setup()
    assert len(module.splits["train"]) == 2 and module.left_out == {"missing": 1}


def test_the_check_accepts_tables(photos: Path) -> None:
    module = Table(write(photos, single()))
    report = check(module, workers=1)
    assert report.counts["train"].images == 3 and report.defects == 0
    for name in ("a.png", "g.png"):
        (photos / name).unlink()
    assert len(check(module, workers=1).findings[Kind.MISSING]) == 2


class Frame:
    """The interface of a pandas DataFrame that the code uses."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.columns, self._records = list(records[0]), records

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return self._records


def test_a_frame(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = float("nan")
    records = [
        {"file": Path(f), "hat": v, "split": s} for f, v, s in zip(FILES, (1.0, 0.0, nan, None), SPLITS, strict=False)
    ]
    records[3]["split"] = "test"
    module = Table(Frame(records), root=photos)
    assert module.name == "table" and [s.label for s in module.read()[1]["train"]] == [(1,), (-1,), (0,)]
    with pytest.raises(CxlpError, match="the DataFrame, row 2: hat is 'x'"):
        Table(
            Frame([*records[:1], {**records[1], "hat": "x"}, *records[2:]]), root=photos, class_columns=["hat"]
        ).read()
    monkeypatch.chdir(photos)
    tags = [{"file": f, "tags": t} for f, t in zip(FILES, ([], ["u"], ["u", "v v"], ["v v"]) * 2, strict=True)]
    assert Table(Frame(tags), test_fraction=0.5).read()[0] == ("u", "v v")


def test_a_pandas_frame_and_parquet(photos: Path) -> None:
    frame = pd.read_csv(write(photos, single()))
    assert listed(frame, root=photos) == (("cat", "dog"), SINGLE)
    assert listed(frame.set_index("path"), root=photos) == (("cat", "dog"), SINGLE)
    for index in (None, False):  # with and without pandas' own column
        frame.to_parquet(photos / "mine.parquet", index=index)
        assert listed(photos / "mine.parquet") == (("cat", "dog"), SINGLE)
    twice = pd.concat([frame, frame["label"]], axis=1)
    with warnings.catch_warnings(), pytest.raises(CxlpError, match="the DataFrame: several columns are called 'label'"):
        warnings.simplefilter("error")
        Table(twice, root=photos)
    with pytest.raises(CxlpError, match="the DataFrame, row 2: label is blank"):
        Table(frame.assign(label=["cat", None, *["dog"] * (len(frame) - 2)]), root=photos).read()


@pytest.mark.parametrize(
    ("column", "found"),
    [
        (pd.Series(["b", "a"] * 4, dtype="category"), ("a", "b")),
        (pd.Series(["b", "a"] * 4, dtype="string[pyarrow]"), ("a", "b")),
        (pd.Series([10, 9] * 4, dtype="Int64"), ("9", "10")),
        (pd.Series([10.0, 9.0] * 4), ("9", "10")),
        (pd.Series([True, False] * 4), ("False", "True")),
    ],
)
def test_labels_of_each_kind_of_pandas_column(photos: Path, column: "pd.Series[Any]", found: tuple[str, ...]) -> None:
    frame = pd.DataFrame({"path": FILES, "label": column, "when": pd.Timestamp("2026-01-01")})
    frame.to_parquet(photos / "mine.parquet")
    for table in (frame, photos / "mine.parquet"):
        classes, samples = Table(table, root=photos, test_fraction=0.5).read()
        assert classes == found
        labels = [sample.label for part in samples.values() for sample in part]
        assert sorted(labels) == [0] * 4 + [1] * 4


@pytest.mark.parametrize("kind", ["float64", "Int64", "boolean"])
def test_unspecified_marks_of_pandas(photos: Path, kind: str) -> None:
    hat = pd.Series([1, 0, None, *[1] * (len(FILES) - 3)]).astype(kind)
    frame = pd.DataFrame({"path": FILES, "hat": hat, "split": ["train"] * 3 + ["test"] * (len(FILES) - 3)})
    frame.to_parquet(photos / "mine.parquet")
    for table in (frame, photos / "mine.parquet"):
        module = Table(table, root=photos)
        assert [sample.label for sample in module.read()[1]["train"]] == [(1,), (-1,), (0,)]


def test_lists_in_cells(photos: Path) -> None:
    frame = pd.DataFrame({"path": FILES, "tags": [[], ["u"], ["u", "v v"], ["v v"]] * 2})
    frame.to_parquet(photos / "mine.parquet")
    for table in (frame, photos / "mine.parquet"):
        assert Table(table, root=photos, test_fraction=0.5).read()[0] == ("u", "v v")


def test_parquet_without_its_package_names_it(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "mine.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        CxlpError, match=r"mine\.parquet: reading Parquet needs the package pyarrow: pip install pyarrow"
    ):
        Table(photos / "mine.parquet")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.csv", "table not found: "),
        ("mine.xlsx", "is a spreadsheet: save it as CSV"),
        (".", "is a folder, not a table"),
    ],
)
def test_files_that_are_not_tables_are_named(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(CxlpError, match=said):
        Table(tmp_path / name)


def test_two_kinds_of_labels_are_refused(photos: Path) -> None:
    with pytest.raises(CxlpError, match=r"data\.label_column, data\.labels_column and data\.class_columns"):
        Table(write(photos, single()), label_column="label", labels_column="label")


PIECES = (b"", b'"', b"\0", b"\xff", b"\xff\xfe", b"\r", b"\n\n", b",", b";", b"\t")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_tables_are_read_or_refused(photos: Path, data: st.DataObject) -> None:
    """Parts of the table are repeated, dropped, moved, or replaced by bytes with a meaning for parsers."""
    text = (single() + "a.png,dog,train\n").encode()
    for _ in range(data.draw(st.integers(1, 4))):
        i, j = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        piece = data.draw(st.sampled_from([*PIECES, text[i:j]]))
        text = text[:i] + piece + text[j if data.draw(st.booleans()) else i :]
    path = photos / "mine.csv"
    path.write_bytes(text)
    try:
        classes, samples = Table(path).read()
    except CxlpError as error:
        assert "mine.csv" in str(error)
    else:
        assert classes and samples["train"] and samples["test"]
