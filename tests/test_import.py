"""``import cxlp``: its names, and the modules that it does not import."""

import subprocess
import sys

import pytest

import cxlp


def test_importing_the_package_imports_nothing_large() -> None:
    code = "import sys, cxlp; dir(cxlp); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "PIL", "pytorch_lightning", "matplotlib", "pandas"} & set(modules)
    assert [name for name in modules if name.partition(".")[0] == "cxlp"] == ["cxlp"]


def test_its_public_names_exist() -> None:
    assert dir(cxlp) == sorted(cxlp.__all__) and len(set(cxlp.__all__)) == len(cxlp.__all__)
    for name in cxlp.__all__:
        assert getattr(cxlp, name) is not None
    with pytest.raises(AttributeError, match="module 'cxlp' has no attribute 'nothing'"):
        cxlp.nothing  # noqa: B018
