"""The provenance that a run records."""

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from cxlp.data.folder import Folder
from cxlp.runs.provenance import PACKAGES, data_facts, git_state, versions
from tests.generate import write_folder
from tests.tasks.small import pictures


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.test"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_state_of_a_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "new.txt").write_text("of the user's own")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a.py").write_text("2\n")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_without_checkout_commit_or_git_there_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) is None
    (tmp_path / "installed").mkdir()
    assert git_state(tmp_path / "installed") is None  # the checkout around it is another one
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None


def test_versions_cover_the_requirements() -> None:
    found = versions()
    assert found["torch"] == version("torch")
    required = (Path(__file__).parents[2] / "requirements.txt").read_text()
    assert all(f"\n{name}>=" in required for name in PACKAGES)


def facts(root: Path, **options: object) -> dict[str, object]:
    data: Folder = pictures(root, image_size=32, **options)
    data.setup()
    return data_facts(data)


def test_the_digest_depends_on_the_images_but_not_on_their_folder(tmp_path: Path) -> None:
    first = facts(write_folder(tmp_path / "here"))
    assert {key: first[key] for key in ("classes", "train", "val", "test")} == {
        "classes": 3, "train": 18, "val": 0, "test": 9,
    }  # fmt: skip
    (tmp_path / "here").rename(tmp_path / "there")
    assert facts(tmp_path / "there") == {**first, "name": "there"}
    assert facts(tmp_path / "there", validation=0.34)["digest"] != first["digest"]
    image = tmp_path / "there" / "train" / "kind0" / "00.png"
    os.truncate(image, image.stat().st_size - 1)
    assert facts(tmp_path / "there")["digest"] != first["digest"]
    image.rename(image.with_name("99.png"))
    assert facts(tmp_path / "there")["train"] == 18
