"""CITATION.cff and the BibTeX entry of the documentation name the same paper."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_both_name_the_paper() -> None:
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    entry = re.search(r"@inproceedings\{(.*?)\n\}", (ROOT / "docs" / "citing.md").read_text(), re.S)
    assert entry is not None
    fields = dict(re.findall(r"(\w+)\s*=\s*\{(.*)\}", entry[1]))
    assert fields["title"] == paper["title"] and fields["year"] == str(paper["year"])
    names = [f"{a.get('name-particle', '')} {a['family-names']}, {a['given-names']}".strip() for a in paper["authors"]]
    assert fields["author"] == " and ".join(names)
