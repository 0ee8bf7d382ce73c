"""``train.py --help``: one page, made without torch; all keys are in docs/configuration.md and under ``--help-all``."""

from textwrap import shorten

from cxlp.runs.arguments import CONFIGS, SEARCH
from cxlp.utils.program import train_program

_PAGE = """\
usage: {train} --config CONFIG [--config OVERLAY ...] [--KEY VALUE ...]

Train and test cross-convolutional-layer pooling: frozen as in the paper, or fine-tuned end to end.

examples:
  {train} --config demo.yaml
  {train} --config cub200.yaml --data.bbox true --model.frozen.c auto
  {train} --config folder.yaml --data.root DIR --config finetune.yaml
  {train} --config runs/NAME/config.yaml --ckpt_path runs/NAME

configs (in {configs}; later ones change earlier ones, the command line has the last word):
{whole}
overlays:
{overlays}

images
  --data.root DIR                    the data set's folder
  --data.table FILE                  with table.yaml: a CSV, TSV or Parquet file of paths and labels
  --data torchvision --data.name X   a data set of torchvision
  --data.bbox true                   crop to boxes (CUB200, H3D, Table)
  --data.validation 0.1              held out from the training images: a part, official, or 0
  --data.on_broken skip              leave out broken files, instead of stopping
  --data.batch_size 32               images per process and step
  --data.num_workers N               processes that load images
network
  --model.backbone.name NAME         a torchvision or timm network, caffenet, or an import path
  --model.backbone.layers "[A, B]"   the layers whose maps are pooled; auto: a ranking chooses them
  --model.backbone.weights FILE      default: ImageNet; null: random
  --model.backbone.image_size 448    pixels
  --model.head NAME                  CrossLayerPooling, BilinearPooling, AveragePooling, ...
  --model.head.pca_dim 256           size of a projected local feature
  --model.test_views.kind flip       mean score over an image and its mirror image
frozen fit
  --model.frozen.c 10                cost C of the SVMs; auto: cross-validated
  --model.frozen.features float16    how features are stored
  --model.frozen.store DIR           keep features for later runs
fine-tuning
  --trainer.max_epochs 30            gradient epochs; 0: only the frozen fit
  --model.start runs/NAME            frozen, projection, scratch, or an earlier run
  --model.optimizer.backbone_lr 1e-3 and projection_lr, classifier_lr, weight_decay, ...
  --model.closing_fit true           fit PCA and SVMs once more behind the trained backbone
machine
  --trainer.devices 2                processes (GPUs); --trainer.accelerator cpu, gpu
  --trainer.precision 32-true        what the network computes in
the run
  --run.name NAME                    of its folder below --run.root (runs/)
  --run.resume auto                  go on with the run of this name
  --run.wandb off                    auto, online, offline, off
  --run.refit true                   choose the epoch on held-out images, then train on all
  --ckpt_path runs/NAME              go on with a run: its folder, or a checkpoint in it
  --seed_everything 0                seed of the run
  --seeds 3                          the run with so many seeds: mean and deviation

more help
  --model.help, --data.help          the keys of a group; also of model.frozen, run, trainer, ...
  --model.head.help NAME             the keys of a head; --data.help NAME: of a data set
  --help-all                         all keys; docs/configuration.md: the same as a page
  docs/completion.md                 have the shell complete keys and values
"""


def help_page() -> str:
    """Write the page."""
    whole: list[str] = []
    overlays: list[str] = []
    for file in (path for path in sorted(CONFIGS.glob("*.yaml")) if path.name != SEARCH):
        said = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        name, about = file.name, said.removeprefix("Overlay: ").partition(". ")[0].rstrip(".")
        (overlays if said.startswith("Overlay: ") else whole).append(
            f"  {name:<34} {shorten(about, 83, placeholder=' ...')}"
        )
    listed = {"whole": "\n".join(whole), "overlays": "\n".join(overlays)}
    return _PAGE.format(train=train_program(), configs=CONFIGS, **listed)
