"""What a run trains and how: the keys below ``model``, and which of them belong to gradient descent."""

from dataclasses import dataclass, field, fields

from jsonargparse import Namespace

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.frozen.fit import FrozenConfig
from cxlp.heads import CrossLayerPooling, Head
from cxlp.heads.views import Views
from cxlp.models.network import Network
from cxlp.tasks.finetune import check_options
from cxlp.tasks.mixing import Mix
from cxlp.tasks.optim import OptimizerConfig
from cxlp.utils.errors import CxlpError


@dataclass(frozen=True)
class ModelConfig:
    """A network, and the stages that fit it.

    A run fits the network without gradients, then for ``trainer.max_epochs`` epochs by gradient descent (0: not at
    all), then, with ``closing_fit``, once more without gradients. The best of these on the held-out images is tested.

    Attributes:
        backbone: The network, and the layers that heads may take.
        head: The head that turns the maps into one vector, or a list of heads, whose vectors are concatenated.
        test_views: Views of an image that is scored (validation, test, prediction): the mean of their scores counts.
            Training sees whole images.
        frozen: The fit without gradients.
        optimizer: Gradient descent.
        start: Where gradient descent starts. ``frozen``: the frozen fit; ``projection``: the frozen fit, but its
            classifier is put back to zero (two-stage recipes); ``scratch``: pretrained backbone, random projection,
            zero classifier, no frozen fit. Or the checkpoint of an earlier run with the same network and classes, which
            takes the place of the frozen fit.
        closing_fit: After the gradient epochs, fit PCA and SVMs once more to what the backbone gives now (SVMs, after
            Lin et al., ICCV 2015), with the first fit's C and scale of the logits.
        cross_fit: Train backbone and heads by the SVMs of the frozen fit's cross-validation, each image by those that
            have not seen it, see :class:`~cxlp.frozen.folds.FoldClassifiers`. They stay as they are, as does the
            classifier, until the closing fit, which this needs. Checkpoints hold them: ``frozen.folds`` times the size
            of the classifier.
        label_smoothing: Label smoothing factor of the cross-entropy, in [0, 1).
        mix: ``mixup``, ``cutmix`` or ``none``, see :class:`~cxlp.tasks.mixing.Mixing`; one label per image only.
        mix_alpha: Parameter alpha of the Beta distribution of the proportions.
        ema: Decay of a moving average of the weights, which is what is validated, tested and saved; 0: none.
        freeze_batch_norm: Keep the backbone's BatchNorm statistics: small batches estimate them badly, and step 0 would
            not be the frozen solution.
        recompute: Gradient checkpointing of the backbone: less memory for about a third more time. Changes no value.
        compile: Have ``torch.compile`` make faster code for backbone and heads. Values stay up to rounding.
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
                "model.cross_fit trains by the frozen fit's cross-validation: it takes start: frozen, and closing_fit: "
                "true (else the classifier stays that of the first fit)"
            )
        if self.closing_fit and self.start == "scratch":
            raise CxlpError(
                "model.closing_fit takes C and the scale of the logits from a first fit, but model.start is scratch: "
                "start from frozen or projection"
            )

    @property
    def fits_first(self) -> bool:
        """Whether the run begins with a frozen fit of its own."""
        return self.start in ("frozen", "projection")

    @property
    def labels(self) -> tuple[str, ...]:
        """What it is called in short: backbone and head."""
        return self.backbone.name, " + ".join(head.name for head in self.heads)

    @property
    def heads(self) -> list[Head]:
        """All heads."""
        return [self.head] if isinstance(self.head, Head) else list(self.head)

    def build(self, classes: tuple[str, ...] | None, multi_label: bool) -> Network:
        """Build the network; without classes, it has no classifier.

        Raises:
            CxlpError: If nothing would fit a part of it that gradients cannot.
        """
        for head in self.heads:
            if self.start == "scratch" and head.needs_fit:
                raise CxlpError(
                    f"model.start is scratch, but the codebook of {head.name} is fitted, not trained: start from frozen"
                )
        backbone = Backbone.from_config(self.backbone)
        # Not the config's own heads: a network makes them its own.
        heads = [Head.from_spec(head.spec()) for head in self.heads]
        return Network(backbone, heads, classes, multi_label, self.test_views)


#: Keys of the model that only gradient epochs use.
GRADIENT_MODEL_KEYS = tuple(
    f.name for f in fields(ModelConfig) if f.name not in ("backbone", "head", "test_views", "frozen", "start")
)
#: Options of the Trainer that only gradient epochs use.
GRADIENT_TRAINER_KEYS = (
    "max_steps", "min_epochs", "min_steps", "max_time", "limit_train_batches", "val_check_interval",
    "check_val_every_n_epoch", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm",
    "reload_dataloaders_every_n_epochs", "sync_batchnorm",
)  # fmt: skip


def check_gradient_options(config: Namespace, defaults: Namespace) -> None:
    """Refuse options of gradient descent in a run without gradient epochs.

    Raises:
        CxlpError: Names the first one that is not at its default.
    """
    if config["trainer"]["max_epochs"]:
        return
    keys = [*(f"model.{k}" for k in GRADIENT_MODEL_KEYS), *(f"trainer.{k}" for k in GRADIENT_TRAINER_KEYS)]
    for key in keys:
        if config.get(key) != defaults.get(key):
            raise CxlpError(
                f"{key} is given, but trainer.max_epochs is 0: there are no gradient epochs. Give trainer.max_epochs, "
                "or add --config finetune.yaml"
            )
