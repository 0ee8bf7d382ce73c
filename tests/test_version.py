"""The version of a build is the git tag; the version of a checkout is not a release's."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cxlp

ROOT = Path(__file__).parents[1]


def git(place: Path, *arguments: str) -> None:
    named = ("-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "tag.gpgSign=false")
    subprocess.run(["git", *named, *arguments], cwd=place, check=True, capture_output=True, timeout=60)


def built_version(place: Path) -> str:
    command = [sys.executable, "-m", "hatchling", "version"]
    return subprocess.run(command, cwd=place, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of this checkout without its tags, with the current build settings."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    git(tmp_path, "clone", "--quiet", "--no-tags", str(ROOT), "clone")
    for name in ("pyproject.toml", "requirements.txt", ".gitattributes", ".git_archival.txt"):
        (tmp_path / "clone" / name).write_bytes((ROOT / name).read_bytes())
    git(tmp_path / "clone", "add", "--all")
    git(tmp_path / "clone", "commit", "--quiet", "--allow-empty", "--no-verify", "-m", "as it stands")
    return tmp_path / "clone"


@pytest.mark.slow
def test_the_tag_is_the_version_of_a_build_and_of_an_archive(clone: Path, tmp_path: Path) -> None:
    assert ".dev" in built_version(clone)  # without tags
    git(clone, "tag", "v9.8.7")
    assert built_version(clone) == "9.8.7"
    git(clone, "archive", "--output", str(tmp_path / "source.zip"), "HEAD")
    shutil.unpack_archive(tmp_path / "source.zip", tmp_path / "source")
    assert built_version(tmp_path / "source") == "9.8.7"
    git(clone, "commit", "--quiet", "--allow-empty", "--no-verify", "-m", "later")
    assert built_version(clone).startswith("9.8.8.dev1+g")


def test_a_checkout_has_no_release_version(tmp_path: Path) -> None:
    assert cxlp.__version__ == "0+source" or Path(cxlp.__file__).parent != (ROOT / "cxlp")
    other = tmp_path / "cxlp-3.2.1.dist-info"  # of another installed cxlp
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: cxlp\nVersion: 3.2.1\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import cxlp; print(cxlp.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "0+source\n"
