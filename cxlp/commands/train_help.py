"""``train.py --help``: a page with the daily keys, written without importing torch.

``--help-all`` and docs/configuration.md describe all keys.
"""

from textwrap import shorten

from cxlp.runs.arguments import CONFIGS, SEARCH
from cxlp.utils.program import train_program

_PAGE = """\
usage: {train} --config CONFIG [--config OVERLAY ...] [--KEY VALUE ...]

Train and test cross-convolutional-layer pooling, frozen as in the paper or fine-tuned end to end.

examples:
  {train} --config demo.yaml
  {train} --config cub200.yaml --data.bbox true --model.frozen.c auto
  {train} --config folder.yaml --data.root DIR --config finetune.yaml
  {train} --config runs/NAME/config.yaml --ckpt_path runs/NAME

configs (in {configs}; later ones override earlier ones, and keys on the command line override both):
{whole}
overlays:
{overlays}

images
  --data.root DIR                    the data set's folder
  --data.table FILE                  with table.yaml: a CSV, TSV or Parquet file of paths and labels
  --data torchvision --data.name X   a data set of torchvision
  --data.bbox true                   crop to boxes (CUB200, H3D, Table)
  --data.validation 0.1              held-out fraction of the training images; or official, or 0
  --data.on_broken skip              leave out broken files instead of stopping
  --data.batch_size 32               batch size per process
  --data.num_workers N               processes that load images
network
  --model.backbone.name NAME         a torchvision or timm network, caffenet, or an import path
  --model.backbone.layers "[A, B]"   the layers whose maps are pooled; auto: a ranking chooses them
  --model.backbone.weights FILE      default: ImageNet; null: random
  --model.backbone.image_size 448    side of the input image, pixels
  --model.head NAME                  CrossLayerPooling, BilinearPooling, AveragePooling, ...
  --model.head.pca_dim 256           dimensions of a local feature after PCA
  --model.test_views.kind flip       average the scores of an image and its mirror image
frozen fit
  --model.frozen.c 10                cost C of the SVMs; auto: chosen by cross-validation
  --model.frozen.features float16    data type of stored features
  --model.frozen.store DIR           store features for later runs
fine-tuning
  --trainer.max_epochs 30            epochs of gradient descent; 0: only the frozen fit
  --model.start runs/NAME            start from frozen, projection, scratch, or an earlier run
  --model.optimizer.backbone_lr 1e-3 also projection_lr, classifier_lr, weight_decay, ...
  --model.closing_fit true           fit PCA and SVMs again on the trained backbone's features
machine
  --trainer.devices 2                number of processes (GPUs); --trainer.accelerator cpu, gpu
  --trainer.precision 32-true        floating-point precision of the network
the run
  --run.name NAME                    name of the run's folder in --run.root (runs/)
  --run.resume auto                  continue the run of this name
  --run.wandb off                    auto, online, offline, off
  --run.refit true                   choose the epoch on held-out images, then train on all images
  --ckpt_path runs/NAME              continue a run: its folder, or a checkpoint in it
  --seed_everything 0                random seed
  --seeds 3                          repeat the run with this many seeds; report mean and deviation

more help
  --model.help, --data.help          the keys of a group; also model.frozen, run, trainer, ...
  --model.head.help NAME             the keys of a head; --data.help NAME: those of a data set
  --help-all                         all keys, as in docs/configuration.md
  docs/completion.md                 shell completion of keys and values
"""


def help_page() -> str:
    """Return the page."""
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
