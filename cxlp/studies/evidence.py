"""What a comparison's table has beside its runs' own results: combinations, and paired tests."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cxlp.reports.outputs import Outputs
from cxlp.studies.combining import CombinedRow, combine
from cxlp.studies.paired import NOTE, Difference, compare
from cxlp.utils.errors import CxlpError
from cxlp.utils.progress import say

#: What is shown of all tables.
CHOICE = (
    "The test column reports; it is not for choosing, since the best of several systems by its test images is partly "
    "lucky on them. Choose by cv % (the training images by cross-validation of the frozen fit, each scored by SVMs "
    "that have not seen it; empty: the tested network was trained by gradients, or its heads from the labels) or by "
    "val %."
)


@dataclass(frozen=True)
class Evidence:
    """Beside the rows of a table.

    Attributes:
        paired: Comparisons with a reference by the names of rows; ``None``: no reference was named.
        combined: Combinations of systems, the best first.
        notes: What to say of both.
    """

    paired: Mapping[str, Difference] | None = None
    combined: Sequence[CombinedRow] = ()
    notes: list[str] = field(default_factory=list)

    def cell(self, name: str, head: str) -> str:
        """What a column of paired tests says of a row; empty: nothing."""
        return self.paired[name].cells.get(head, "") if self.paired and name in self.paired else ""


#: A table without any.
NO_EVIDENCE = Evidence()


def gather(
    places: Mapping[str, Sequence[Path]],
    metric: str,
    reference: str | None,
    most: int | None,
    store: Path | None,
    folder: Path,
    outputs: Outputs,
) -> Evidence:
    """Combine systems, and compare all with the reference.

    Args:
        places: The folders of the results of each system's runs, by its name.
        metric: ``accuracy`` or ``mAP``.
        reference: What others are compared with; ``None``: nothing.
        most: How many systems a combination has at most; ``None``: there are none.
        store: Where features are kept.
        folder: The comparison's.
        outputs: Notes what could not be made, which stderr explains.
    """
    combined: list[CombinedRow] = []
    paired: dict[str, Difference] | None = None
    notes = [CHOICE]
    if most is not None and store is not None:
        try:
            combined, note = combine(
                {name: runs[0] for name, runs in places.items()}, store, most, folder, metric, outputs
            )
            notes.append(note)
            say(note)
        except CxlpError as error:
            _tell("combinations", error, outputs)
    if reference is not None:
        tested = {row.name: (row.place,) for row in combined if row.place is not None}
        try:
            refused: dict[str, CxlpError] = {}
            paired = compare({**places, **tested}, reference, refused)
            notes.append(NOTE.format(metric=metric, reference=reference))
            notes += [
                f"{name}: {found.left_out:,} images are left out of its difference, which not all of the runs have."
                for name, found in paired.items()
                if found.left_out
            ]
            for name, error in refused.items():
                _tell(f"paired test of {name}", error, outputs)
        except CxlpError as error:
            _tell("paired tests", error, outputs)
    return Evidence(paired, combined, notes)


def _tell(what: str, error: CxlpError, outputs: Outputs) -> None:
    outputs.failed.append(what)
    print(f"error: no {what}: {error}", file=sys.stderr)  # noqa: T201
