"""The statistical evidence in a comparison's table: paired tests, and combinations of systems."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cxlp.reports.outputs import Outputs
from cxlp.studies.combining import CombinedRow, combine
from cxlp.studies.paired import NOTE, Difference, compare
from cxlp.utils.errors import CxlpError
from cxlp.utils.progress import say

#: The note below every table.
CHOICE = (
    "Report the test column, but do not choose by it: the best system on the test images is best partly by luck. "
    "Choose by cv % or by val %. cv % is the cross-validated metric of the frozen fit: each training image is scored "
    "by SVMs that were fitted without it. It is empty if the tested network was trained by gradient descent, or its "
    "heads were fitted to the labels."
)


@dataclass(frozen=True)
class Evidence:
    """Paired tests and combinations that accompany the rows of a table.

    Attributes:
        paired: The comparison with the reference by the name of the row; ``None`` without a reference.
        combined: Combinations of systems, best first.
        notes: Notes about both.
    """

    paired: Mapping[str, Difference] | None = None
    combined: Sequence[CombinedRow] = ()
    notes: list[str] = field(default_factory=list)

    def cell(self, name: str, head: str) -> str:
        """Return the cell of a row in a column of the paired tests; empty if there is none."""
        return self.paired[name].cells.get(head, "") if self.paired and name in self.paired else ""


#: Default of tables without paired tests and combinations.
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
    """Combine systems, and test the difference of each system from the reference.

    Errors are printed on stderr and recorded in ``outputs``.

    Args:
        places: The folders of the results of each system's runs, by the system's name.
        metric: ``accuracy`` or ``mAP``.
        reference: The system that the others are compared with; ``None`` for no tests.
        most: Maximum number of systems in a combination; ``None`` for no combinations.
        store: The folder of the stored features.
        folder: The comparison's folder.
        outputs: Records secondary outputs that could not be written.
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
            _report("combinations", error, outputs)
    if reference is not None:
        tested = {row.name: (row.place,) for row in combined if row.place is not None}
        try:
            refused: dict[str, CxlpError] = {}
            paired = compare({**places, **tested}, reference, refused)
            notes.append(NOTE.format(metric=metric, reference=reference))
            notes += [
                f"{name}: {found.left_out:,} images are left out of the difference, because not all runs have them."
                for name, found in paired.items()
                if found.left_out
            ]
            for name, cause in refused.items():
                _report(f"paired test of {name}", cause, outputs)
        except CxlpError as error:
            _report("paired tests", error, outputs)
    return Evidence(paired, combined, notes)


def _report(what: str, error: CxlpError, outputs: Outputs) -> None:
    outputs.failed.append(what)
    print(f"error: no {what}: {error}", file=sys.stderr)  # noqa: T201
