"""Digests of code: they change with each edit, and only then."""

import shutil
import sys
from pathlib import Path

import pytest

from cxlp.utils import fingerprint
from cxlp.utils.fingerprint import LIBRARIES, code_digest, library_versions


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of two subpackages, which replaces the package."""
    for room in ("heads", "utils"):
        shutil.copytree(fingerprint._PACKAGE / room, tmp_path / "cxlp" / room)
    monkeypatch.setattr(fingerprint, "_PACKAGE", tmp_path / "cxlp")
    return tmp_path / "cxlp"


def test_an_edit_changes_the_digest(package: Path) -> None:
    before = code_digest(["heads"])
    assert code_digest(["heads"]) == before
    normalisation = package / "heads" / "normalisation.py"
    text = normalisation.read_text()
    normalisation.write_text(text.replace("clamp_min(eps)", "clamp_min(2 * eps)"))
    assert code_digest(["heads"]) != before
    normalisation.write_text(text)
    assert code_digest(["heads"]) == before  # by content, not by date
    (package / "heads" / "new.py").write_text("")
    assert code_digest(["heads"]) != before


def test_other_subpackages_do_not_change_the_digest(package: Path) -> None:
    before = code_digest(["heads"])
    (package / "utils" / "errors.py").write_text("")
    assert code_digest(["heads"]) == before
    assert code_digest(["heads", "utils"]) != before


def test_a_users_own_head_is_part_of_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for body in ("1.0", "2.0"):
        (tmp_path / "own_head_of_a_user.py").write_text(f"class Own:\n    scale = {body}\n")
        sys.modules.pop("own_head_of_a_user", None)
        from own_head_of_a_user import Own  # type: ignore[import-not-found]

        found.append(code_digest(["heads"], [Own]))
    assert found[0] != found[1] != code_digest(["heads"])


def test_versions_of_decoding_libraries_are_known() -> None:
    found = library_versions()
    assert (
        set(found) == set(LIBRARIES) >= {"torch", "torchvision", "opencv-python-headless", "pillow", "albumentations"}
    )
    assert "not installed by this name" not in found.values()
