"""Fuzzing with mangled input: each item ends with a result or one clear error, and none hangs.

    python -m tests.fuzz --items 500 --seed 0 [--kinds images lists configs checkpoints archives]

One process handles all items, each with a time limit. Defects are printed with the number that repeats them
(``--only KIND:NUMBER``), and the exit status is then 1.
"""

import argparse
import atexit
import contextlib
import io
import re
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from cxlp.data.cub200 import CUB200
from cxlp.data.datamodule import ImageDataModule
from cxlp.data.download import Archive, obtain
from cxlp.data.folder import Folder
from cxlp.data.h3d import H3D
from cxlp.data.mit67 import MIT67
from cxlp.data.voc2007 import VOC2007
from cxlp.deploy.loading import load
from cxlp.deploy.predictor import Predictor
from cxlp.runs.cli import parse, parts_of
from cxlp.utils.errors import CxlpError
from tests.editing import pack
from tests.generate import texture, write_cub200, write_folder, write_h3d, write_mit67, write_voc2007
from tests.networks import CLASSES, SMALL, build, write_checkpoint

#: Time limit of an item, seconds.
LIMIT = 20
#: Maximum number of lines of an error; those of a download explain how to do it by hand.
MOST_LINES = 12
#: Replacements for words.
AWKWARD = (
    "", "nan", "-1", "0", "1e999", "99999999999999999999", "../../x", "/", ".", "\0", "\ufeff", "\u202e", "é", "null",
    "[]", "{}", "- a", "true", "'", '"', "%s", "&a", "*a", "!!python/name:os.system", "0x1F", "1_0", "~", "x" * 5000,
)  # fmt: skip
Rng = np.random.Generator


# --- mangling


def mangle_bytes(data: bytes, rng: Rng) -> bytes:
    """Change, truncate, repeat or overwrite some bytes."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        size = max(1, len(changed))
        at, length = int(rng.integers(size)), int(rng.integers(1, max(2, size // 8)))
        kind = rng.integers(6)
        if kind == 0:
            changed[at : at + 1] = rng.bytes(1)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            changed[at : at + length] = bytes(length)
        elif kind == 3:
            changed[at:at] = rng.bytes(length)
        elif kind == 4:
            changed[at:at] = changed[:length]
        else:  # near the beginning, where headers are
            changed[at % 64 : at % 64 + 2] = rng.bytes(2)
    return bytes(changed)


def mangle_text(text: str, rng: Rng, most: int = 3) -> bytes:
    """Change up to ``most`` words or lines, and sometimes the encoding."""
    lines = text.splitlines() or [""]
    for _ in range(int(rng.integers(1, most + 1))):
        i, j = (int(k) for k in rng.integers(len(lines), size=2))
        words = re.split(r"([\s,:{}\[\]]+)", lines[i])
        kind = rng.integers(7)
        if kind < 3:
            words[int(rng.integers(len(words)))] = AWKWARD[int(rng.integers(len(AWKWARD)))]
            lines[i] = "".join(words)
        elif kind == 3:
            lines.insert(j, lines[i])
        elif kind == 4 and len(lines) > 1:
            del lines[i]
        elif kind == 5:
            lines[i], lines[j] = lines[j], lines[i]
        else:
            lines[i] = " " * int(rng.integers(4)) + lines[i][: int(rng.integers(len(lines[i]) + 1))]
    whole = "\n".join(lines) + "\n"
    kind = rng.integers(12)
    if kind == 0:
        return whole.encode("utf-16", "surrogatepass")
    if kind == 1:
        return mangle_bytes(whole.encode(errors="surrogateescape"), rng)
    if kind == 2:
        return whole.replace("\n", "\r\n").encode("utf-8-sig", "surrogateescape")
    return b"" if kind == 3 else whole.encode(errors="surrogateescape")


#: Replacements for values.
WRONG: list[Any] = [None, -1, 0, "x", [], {}, float("nan"), True, 10**20, [[]], {"x": 1}]


def mangle_tree(tree: Any, rng: Rng, values: Sequence[Any]) -> None:
    """Replace or delete a value in nested dictionaries and lists."""
    found = list(places(tree))
    place, key = found[int(rng.integers(len(found)))]
    kind = int(rng.integers(len(values) + 1))
    if kind == len(values):
        del place[key]
    else:
        place[key] = values[kind]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield all positions in nested dictionaries and lists."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


# --- inputs: each function writes its input to an empty folder, and returns a function that processes it


@cache
def template() -> Path:
    """Return a folder with a valid input of each kind."""
    folder = Path(tempfile.mkdtemp(prefix="cxlp-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_cub200(folder, size=24)
    write_mit67(folder, size=24)
    write_voc2007(folder, (2, 1, 1), size=16)
    write_h3d(folder, 12, 9, size=24)
    write_folder(folder / "folder", size=24)
    write_checkpoint(folder / "whole.ckpt", build(backbone=SMALL, classes=CLASSES))
    pack(folder / "CUB.tgz", {"CUB_200_2011": folder / "CUB_200_2011"})
    pack(folder / "CUB.tar", {"CUB_200_2011": folder / "CUB_200_2011"})
    return folder


@cache
def predictor() -> Predictor:
    return load(template() / "whole.ckpt")


def image(folder: Path, rng: Rng) -> Callable[[], object]:
    """Mangle a picture for ``cxlp predict``."""
    form = str(rng.choice(["png", "jpg", "gif", "bmp", "webp", "tif", "ppm"]))
    mode = str(rng.choice(["RGB", "L", "RGBA", "P", "CMYK", "I;16", "1"]))
    picture = Image.fromarray(texture(0, 3, rng, 40, 40))
    try:
        picture = Image.new("I;16", (40, 40), 3000) if mode == "I;16" else picture.convert(mode)
        picture.save(folder / f"a.{form}")
    except (OSError, ValueError):  # the format does not support this mode
        Image.fromarray(texture(0, 3, rng, 40, 40)).save(folder / f"a.{form}")
    path = folder / f"a.{form}"
    path.write_bytes(mangle_bytes(path.read_bytes(), rng))

    def judge() -> None:
        (found,) = predictor().stream([str(path)])
        if found.error:
            raise CxlpError(found.error)
        assert len(found.classes) == len(CLASSES) and abs(sum(found.probabilities) - 1) < 1e-3

    return judge


DATA: dict[str, type[ImageDataModule]] = {
    "CUB_200_2011": CUB200, "mit67": MIT67, "VOCdevkit": VOC2007, "attributes_dataset": H3D, "folder": Folder,
}  # fmt: skip


def lists(folder: Path, rng: Rng) -> Callable[[], object]:
    """Mangle one of a data set's lists; for a folder, which has no lists, a name or a file."""
    name = list(DATA)[int(rng.integers(len(DATA)))]
    root = folder / name
    shutil.copytree(template() / name, root, symlinks=True)
    files = sorted(path for path in root.rglob("*.txt"))
    if files:
        path = files[int(rng.integers(len(files)))]
        path.write_bytes(mangle_text(path.read_bytes().decode(), rng))
    else:
        paths = sorted(root.rglob("*"))
        path = paths[int(rng.integers(len(paths)))]
        kind = rng.integers(4)
        if kind == 0:
            path.rename(
                path.with_name(
                    f"{AWKWARD[int(rng.integers(6, len(AWKWARD)))]}x"[:200].replace("\0", "").replace("/", "")
                )
            )
        elif kind == 1:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif kind == 2:
            path.with_name("loop").symlink_to(path.parent)
        else:
            path.with_name("gone.png").symlink_to("nowhere.png")

    def read() -> None:
        where = root / "VOC2007" if name == "VOCdevkit" else root
        data = DATA[name](where, validation=float(rng.choice([0.0, 0.34])))
        data.prepare_data()
        data.setup()
        assert all(len(split) for key, split in data.splits.items() if key != "val")

    return read


CONFIG = """\
seed_everything: 0
data:
  class_path: Folder
  init_args:
    root: {root}
    batch_size: 4
    num_workers: 0
    validation: 0.34
    augment:
      flip: 0.5
model:
  backbone:
    name: timm/test_resnet
    layers: [layer3.0.conv2, layer3]
    weights: null
    image_size: 32
  head:
    class_path: CrossLayerPooling
    init_args:
      pca_dim: 4
      sqrt: true
  frozen: {{c: auto, c_candidates: [1.0, 10.0], folds: 3}}
  optimizer: {{name: sgd, backbone_lr: 0.01}}
  ema: 0.5
trainer:
  max_epochs: 2
  accelerator: cpu
  devices: 1
  callbacks:
    - class_path: pytorch_lightning.callbacks.EarlyStopping
      init_args: {{monitor: val/accuracy, mode: max}}
run: {{wandb: "off", tags: [a, b]}}
"""


def config(folder: Path, rng: Rng) -> Callable[[], object]:
    """Mangle the text or the values of a config, which is parsed and instantiated."""
    path, text = folder / "mine.yaml", CONFIG.format(root=template() / "folder")
    if rng.integers(4):
        tree = yaml.safe_load(text)
        mangle_tree(tree, rng, [*WRONG, *AWKWARD[:12], -3, 0.5])
        path.write_text(yaml.safe_dump(tree))
    else:
        path.write_bytes(mangle_text(text, rng, most=1))
    return lambda: parts_of(parse(["--config", str(path)]))


def checkpoint(folder: Path, rng: Rng) -> Callable[[], object]:
    """Mangle the bytes or the content of a checkpoint."""
    path = folder / "mine.ckpt"
    if rng.integers(2):
        path.write_bytes(mangle_bytes((template() / "whole.ckpt").read_bytes(), rng))
        return lambda: load(path)
    saved: Any = torch.load(template() / "whole.ckpt", weights_only=True)
    values = [value for value in WRONG if value is not True]  # Python treats it as 1 nearly everywhere
    mangle_tree(saved, rng, [*values, torch.zeros(2)])
    torch.save(saved, path)

    def predict() -> None:
        found = load(path).predict(np.zeros((40, 40, 3), np.uint8))
        assert found.classes

    return predict


def archive(folder: Path, rng: Rng) -> Callable[[], object]:
    """Mangle the archive of a data set that the user has placed."""
    name = str(rng.choice(["CUB.tgz", "CUB.tar"]))
    (folder / name).write_bytes(mangle_bytes((template() / name).read_bytes(), rng))
    file = Archive(
        urls=("http://127.0.0.1:9/",), file=name, checksum=None, size="small", folders=("CUB_200_2011",),
        marker="images.txt",
    )  # fmt: skip

    def unpack() -> None:
        root = folder / "CUB_200_2011"
        try:
            obtain((file,), root, "CUB-200-2011", allowed=False)
        finally:
            left = {path.name for path in folder.iterdir()} - {name}
            assert left <= ({root.name} if (root / "images.txt").exists() else set()), left

    return unpack


KINDS: dict[str, Callable[[Path, Rng], Callable[[], object]]] = {
    "images": image, "lists": lists, "configs": config, "checkpoints": checkpoint, "archives": archive,
}  # fmt: skip


# --- items


@dataclass(frozen=True)
class Outcome:
    """The outcome of an item: ``result``, ``refused``, or in capitals a defect of cxlp; and the message."""

    verdict: str
    said: str = ""


def attempt(kind: str, number: int, seed: int = 0) -> Outcome:
    """Process an item."""
    rng = np.random.default_rng((seed, list(KINDS).index(kind), number))
    folder = Path(tempfile.mkdtemp(prefix="cxlp-fuzz-item-"))
    earlier = signal.signal(signal.SIGALRM, _stop)
    try:
        work = KINDS[kind](folder, rng)
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            work()
        return Outcome("result")
    except CxlpError as error:
        said = str(error)
        clear = said.strip() and "Traceback" not in said and said.count("\n") < MOST_LINES
        return Outcome("refused" if clear else "UNCLEAR", said)
    except _TooLongError:
        return Outcome("HANGS", "".join(traceback.format_exc()[-1500:]))
    except Exception:
        return Outcome("RAISES", traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
        shutil.rmtree(folder, ignore_errors=True)


class _TooLongError(BaseException):
    """An item has exceeded the time limit."""


def _stop(*_: object) -> None:
    raise _TooLongError


def main() -> int:
    """Process items; return 1 if there are defects."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--items", type=int, default=500, metavar="N", help="number of items (default: 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--only", metavar="KIND:NUMBER", help="repeat an item, and print its message")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.only:
        kind, _, number = args.only.partition(":")
        found = attempt(kind, int(number), args.seed)
        print(found.verdict, found.said, sep="\n")  # noqa: T201
        return int(found.verdict.isupper())
    counts: Counter[tuple[str, str]] = Counter()
    for i in range(args.items):
        kind, number = args.kinds[i % len(args.kinds)], i // len(args.kinds)
        found = attempt(kind, number, args.seed)
        counts[kind, found.verdict] += 1
        if found.verdict.isupper():
            last = found.said.strip().splitlines()[-1:]
            print(f"{found.verdict} {kind}:{number} {last}", flush=True)  # noqa: T201
    for kind in args.kinds:
        print(f"{kind}: {', '.join(f'{n} {verdict}' for (k, verdict), n in sorted(counts.items()) if k == kind)}")  # noqa: T201
    return int(any(verdict.isupper() for _, verdict in counts))


if __name__ == "__main__":
    sys.exit(main())
