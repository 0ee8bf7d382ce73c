"""The ``model`` keys of a config, and which of them apply to gradient epochs only."""

from dataclasses import dataclass, field, fields

from jsonargparse import Namespace

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.frozen.config import FrozenConfig
from cxlp.heads import CrossLayerPooling, Head
from cxlp.heads.views import Views
from cxlp.models.network import Network
from cxlp.tasks.finetune import check_options
from cxlp.tasks.mixing import Mix
from cxlp.tasks.optim import OptimizerConfig
from cxlp.utils.errors import CxlpError


@dataclass(frozen=True)
class ModelConfig:
    """Options of the network and of the stages that fit it.

    A run fits the network without gradients, then trains it for ``trainer.max_epochs`` epochs by gradient descent (0:
    none), and then, with ``closing_fit``, fits it again without gradients. The stage or epoch that is best on the
    held-out images is tested.

    Attributes:
        backbone: The backbone, and the layers that it provides to the heads.
        head: The head that pools the maps into one vector, or a list of heads whose vectors are concatenated.
        test_views: Views of each image in validation, test and prediction; their scores are averaged. Training uses
            whole images.
        frozen: Options of the fit without gradients.
        optimizer: Options of gradient descent.
        start: Where gradient descent starts. ``frozen``: the frozen fit; ``projection``: the frozen fit with its
            classifier reset to zero (two-stage recipes); ``scratch``: pretrained backbone, random projection, zero
            classifier, no frozen fit. Or the path to a checkpoint of an earlier run with the same network and classes,
            which replaces the frozen fit.
        closing_fit: After the gradient epochs, fit PCA and SVMs again on the fine-tuned backbone's features (SVMs as
            in Lin et al., ICCV 2015), with the first fit's C and logit scale.
        cross_fit: Train backbone and heads with the SVMs of the frozen fit's cross-validation, each image with those
            that were not fitted to it, see :class:`~cxlp.frozen.folds.FoldClassifiers`. These SVMs and the classifier
            stay fixed until the closing fit, which is required. Checkpoints contain the SVMs: ``frozen.folds`` times
            the classifier's size.
        label_smoothing: Label smoothing factor of the cross-entropy, in [0, 1).
        mix: ``mixup``, ``cutmix`` or ``none``, see :class:`~cxlp.tasks.mixing.Mixing`; only for one label per image.
        mix_alpha: Parameter alpha of the Beta distribution of the mixing ratio.
        ema: Decay of a moving average of the weights, which is validated, tested and saved; 0: none.
        freeze_batch_norm: Keep the backbone's BatchNorm statistics fixed: small batches estimate them poorly, and the
            network at step 0 would not be the frozen solution.
        recompute: Use gradient checkpointing in the backbone: less memory for about a third more time, with the same
            results.
        compile: Compile backbone and heads with ``torch.compile``. Results are the same up to rounding.
    """

    backbone: BackboneConfig = BackboneConfig()
    head: Head | list[Head] = field(default_factory=CrossLayerPooling)
    test_views: Views = Views()
    frozen: FrozenConfig = FrozenConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    start: str = "frozen"
    closing_fit: bool = False
    cross_fit: bool = False
    label_smoothing: float = 0.0
    mix: Mix = "none"
    mix_alpha: float = 0.2
    ema: float = 0.0
    freeze_batch_norm: bool = True
    recompute: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        check_options(self.label_smoothing, self.mix_alpha, self.ema, self.recompute, self.compile)
        if self.cross_fit and not (self.closing_fit and self.start not in ("projection", "scratch")):
            raise CxlpError(
                "model.cross_fit trains with the classifiers of the frozen fit's cross-validation: set model.start: "
                "frozen and model.closing_fit: true (without it, the classifier of the first fit would remain)"
            )
        if self.closing_fit and self.start == "scratch":
            raise CxlpError(
                "model.closing_fit reuses the first fit's C and logit scale, but model.start is scratch: set "
                "model.start to frozen or projection"
            )

    @property
    def fits_first(self) -> bool:
        """Whether the run starts with its own frozen fit."""
        return self.start in ("frozen", "projection")

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the backbone and of the heads, as short labels."""
        return self.backbone.name, " + ".join(head.name for head in self.heads)

    @property
    def heads(self) -> list[Head]:
        """All heads, as a list."""
        return [self.head] if isinstance(self.head, Head) else list(self.head)

    def build(self, classes: tuple[str, ...] | None, multi_label: bool) -> Network:
        """Build the network; with ``classes=None`` it has no classifier.

        Raises:
            CxlpError: If ``start`` is ``scratch`` and a head has a part that gradient descent cannot fit.
        """
        for head in self.heads:
            if self.start == "scratch" and head.needs_fit:
                raise CxlpError(
                    f"model.start is scratch, but gradients cannot fit the codebook of {head.name}: set it to frozen"
                )
        backbone = Backbone.from_config(self.backbone)
        # Copies: a network modifies its heads, and the config keeps its own.
        heads = [Head.from_spec(head.spec()) for head in self.heads]
        return Network(backbone, heads, classes, multi_label, self.test_views)


#: Keys of ``model`` that apply to gradient epochs only.
GRADIENT_MODEL_KEYS = tuple(
    f.name for f in fields(ModelConfig) if f.name not in ("backbone", "head", "test_views", "frozen", "start")
)
#: Options of the Trainer that apply to gradient epochs only.
GRADIENT_TRAINER_KEYS = (
    "max_steps", "min_epochs", "min_steps", "max_time", "limit_train_batches", "val_check_interval",
    "check_val_every_n_epoch", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
    "reload_dataloaders_every_n_epochs", "sync_batchnorm",
)  # fmt: skip


def check_gradient_options(config: Namespace, defaults: Namespace) -> None:
    """Reject options of gradient descent in a run without gradient epochs.

    Raises:
        CxlpError: If such an option differs from its default; names the first one.
    """
    if config["trainer"]["max_epochs"]:
        return
    keys = [*(f"model.{k}" for k in GRADIENT_MODEL_KEYS), *(f"trainer.{k}" for k in GRADIENT_TRAINER_KEYS)]
    for key in keys:
        if config.get(key) != defaults.get(key):
            raise CxlpError(
                f"{key} is given, but trainer.max_epochs is 0: there are no gradient epochs. Set trainer.max_epochs to "
                f"1 or more, as finetune.yaml does, or leave out {key} and the config that sets it"
            )
