"""Remarks on a data set for the user."""

from typing import TYPE_CHECKING

from cxlp.data.contents import name_broken

if TYPE_CHECKING:
    from cxlp.data.datamodule import ImageDataModule


def remarks_on(data: "ImageDataModule") -> list[str]:
    """Return one line per remark: notes, files that are left out, and test images that are training images."""
    notes = [f"warning: {note}" for note in data.notes]
    notes += [f"warning: {len(data.broken):,} files are left out:{name_broken(data.broken)}"] * bool(data.broken)
    if data.held_out_own and "val" in data.splits:
        part = "" if isinstance(data.validation, str) else f", not {data.validation:g} of the training images"
        own = f"{len(data.splits['val']):,} validation images of {data.name}{part}"
        notes.append(f"held out: the {own} (to train on them, set data.validation: 0)")
    used = {s.path for split in ("train", "test") if split in data.splits for s in data.splits[split].samples}
    if used and used <= data.contents.keys() and (trained := data.count_trained_test_images()):
        notes.append(f"warning: {trained:,} test images have the same content as training images")
    counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(data.left_out.items()))
    return [*notes, f"left out of {data.root}: {counts}"] if counts else notes
