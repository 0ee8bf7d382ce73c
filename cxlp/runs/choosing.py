"""The first run of ``run.refit: true``, which chooses the epoch on its held-out images."""

from collections.abc import Sequence

from cxlp.runs.epochs import title
from cxlp.runs.folder import refit_folder
from cxlp.runs.launch import launched_rank
from cxlp.runs.places import REFIT
from cxlp.runs.refit import Choice, find_refit, read_chosen
from cxlp.runs.stages import Run
from cxlp.utils.progress import say


def choose_epoch(run: Run, arguments: Sequence[str]) -> list[str]:
    """Fit the first run of ``run.refit: true``.

    Args:
        run: The first run, which has held-out images.
        arguments: The arguments of the first run.

    Returns:
        The arguments of the second run, which uses all training images.
    """
    chosen = run.fit()
    folder = refit_folder(run.folder)
    best = str(run.folder / chosen.checkpoint)
    saved = read_chosen(best)
    choice, recipe = Choice.of(best, saved), saved["cxlp_run"]["recipe"]
    if launched_rank() == 0:
        if run.experiment is not None:
            run.experiment.finish()
        say(f"{run.folder} has chosen: {title(choice.stage, choice.epoch)}. Refitting, with all images, in {folder}")
    last = find_refit(folder, choice, recipe)
    place = ["--run.root", str(folder.parent), "--run.name", REFIT]
    resumed = "null" if last is None else str(folder)
    # Use the schedule of the chosen epoch, even if the run was made longer later.
    given = ["--run.refit", best, "--data.validation", "0", "--trainer.max_epochs", str(recipe["trainer.max_epochs"])]
    return [*arguments, *place, *given, "--ckpt_path", resumed]
