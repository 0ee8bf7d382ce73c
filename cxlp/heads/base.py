"""The base class of pooling heads."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from cxlp.heads.description import build_head, changed_options, constructor_arguments, import_path, plain
from cxlp.heads.fitting import HeadFit, TrainingSet
from cxlp.heads.normalisation import Normalise
from cxlp.heads.streamed import Maps, fit_pca
from cxlp.heads.views import Views
from cxlp.utils.errors import CxlpError, did_you_mean

#: Channels, height and width of a map.
Shape = tuple[int, int, int]


class Head(nn.Module, ABC):
    """Base class of pooling heads, which turn the maps of one or more layers into one vector per image.

    To write a head, subclass this class in an importable module and define

    - a constructor whose arguments are the head's options, plain values except ``views``. It passes ``layers`` and
      ``views`` to this class and stores each argument as an attribute of the same name, which :meth:`options` reads;
    - :attr:`takes`, the number of layers that the head uses;
    - :meth:`build`, which creates parameters and buffers for maps of known shapes and sets ``out_features``;
    - ``forward(*maps, views=1)``, which receives one map ``(B * V, C, H, W)`` per layer, where the V views of an image
      are adjacent, and returns vectors ``(B, out_features)``. Vectors of unit length work best with the SVMs and in
      combination with other heads.

    The following members are optional:

    - :meth:`start_fit`, which fits the head to the training images without gradients, for example a PCA;
    - :meth:`explain`, which splits a score into the contributions of places; it must match ``forward``;
    - :attr:`onnx_obstacle`, the reason why the head cannot be exported to ONNX.

    Args:
        layers: Names of the backbone's layers that the head uses, lower before upper. ``None``: the backbone's last
            layers, see :meth:`layers_of`.
        views: The views of an image that are encoded together.

    Attributes:
        out_features: Length D of the vector. Set by :meth:`connect`.
        view_count: Number V of views per image. Set by :meth:`connect`.

    Example:
        >>> import torch
        >>> class MaxPooling(Head):
        ...     def __init__(self, scale: float = 1.0, layers=None, views=Views()):
        ...         super().__init__(layers, views)
        ...         self.scale = scale
        ...     def build(self, shapes):
        ...         self.out_features = shapes[0][0]
        ...     def forward(self, features, views=1):
        ...         best = features.amax(dim=(2, 3))  # (B V, C)
        ...         return self.scale * best.view(-1, views, self.out_features).amax(dim=1)
        >>> head = MaxPooling(scale=2.0).connect((8, 13, 13))
        >>> head(torch.rand(4, 8, 13, 13)).shape
        torch.Size([4, 8])
        >>> head.options()["scale"]
        2.0
    """

    #: Number of layers that the head uses.
    takes: ClassVar[int] = 1
    #: Whether the head is unusable before it is fitted, as with a codebook. Its fit calls :meth:`mark_fitted`.
    needs_fit: ClassVar[bool] = False
    #: Whether the fit uses the images' labels.
    needs_labels: ClassVar[bool] = False
    #: Why the head cannot be exported to ONNX; ``None`` if it can.
    onnx_obstacle: ClassVar[str | None] = None

    out_features: int
    fitted: Tensor

    def __init__(self, layers: Sequence[str] | None = None, views: Views = Views()) -> None:
        super().__init__()
        if isinstance(layers, str) or not isinstance(views, Views):
            named = f"layers is {layers!r}: pass a list of layer names"
            raise CxlpError(named if isinstance(layers, str) else f"views is {views!r}: pass a Views(...) object")
        self.layers = None if layers is None else tuple(layers)
        self.views = views
        self.view_count = 1
        self._connected: tuple[tuple[Shape, ...], int] | None = None
        if self.layers is not None and len(self.layers) != self.takes:
            raise CxlpError(f"layers is {list(self.layers)}: {self.name} takes {_count(self.takes)}")

    def __repr__(self) -> str:
        shapes = self._connected[0] if self._connected else ()
        maps = ", ".join(" x ".join(map(str, shape)) for shape in shapes)
        made = f": {maps} -> {self.out_features:,}{'' if self.is_fitted else ', not fitted'}" if shapes else ""
        return f"{self.name}({changed_options(type(self), self.options())}){made}"

    def __call__(self, *maps: Tensor, views: int = 1) -> Tensor:
        """Call :meth:`forward`.

        Raises:
            CxlpError: If :meth:`connect` was not called before.
        """
        if self._connected is None:
            raise CxlpError(
                f"{self.name} has no parameters yet: call connect() with the shapes (C, H, W) of its maps first"
            )
        vector: Tensor = super().__call__(*maps, views=views)
        return vector

    @property
    def name(self) -> str:
        """Name of the head's class."""
        return type(self).__name__

    # --- inputs -----------------------------------------------------------------------------------

    def layers_of(self, available: Sequence[str], named: Collection[str] = ()) -> tuple[str, ...]:
        """Return the names of the backbone's layers that the head uses.

        Args:
            available: The backbone's layers.
            named: The layers that other heads of the network name in their ``layers``. A head without ``layers`` uses
                the backbone's last layers, if these include the last ones that no other head names, and otherwise the
                layers that no other head names.

        Raises:
            CxlpError: If the backbone does not return these layers, or the number of layers that no other head names
                differs from :attr:`takes`.
        """
        if self.layers is None:
            if len(available) < self.takes:
                raise CxlpError(
                    f"{self.name} takes {_count(self.takes)}, but the backbone returns only {list(available)}: name "
                    "more of the backbone's layers"
                )
            last = tuple(available[-self.takes :])
            others = tuple(layer for layer in available if layer not in named)
            if set(others[-self.takes :]) <= set(last):
                return last
            if len(others) == self.takes:
                return others
            raise CxlpError(
                f"{self.name} has no option layers and takes {_count(self.takes)}, but other heads name "
                f"{sorted(named)} and the backbone's remaining layers are {list(others)}: set layers of {self.name}"
            )
        for layer in self.layers:
            if layer not in available:
                raise CxlpError(
                    f"{self.name} takes layer {layer!r}, which the backbone does not return: add it to the backbone's "
                    f"layers. {did_you_mean(layer, available)}"
                )
        return self.layers

    def connect(self, *shapes: Sequence[int], views: int = 1) -> Self:
        """Create the head's parameters for maps of the given shapes; repeated calls must agree and do nothing.

        Args:
            shapes: ``(C, H, W)`` of each layer that the head uses.
            views: Number V of views of an image that are encoded together.

        Returns:
            The head itself.

        Raises:
            CxlpError: If the head's options do not fit the shapes, or the head is connected to other shapes.
        """
        given = tuple((int(c), int(h), int(w)) for c, h, w in shapes), views
        if self._connected == given:
            return self
        if self._connected is not None:
            (made, made_views), (found, now) = self._connected, given
            raise CxlpError(
                f"{self.name} was built for maps of {made} and {made_views} views per image, but these are {found} and "
                f"{now}: build a new head for them"
            )
        if len(shapes) != self.takes:
            raise CxlpError(f"{self.name} takes {_count(self.takes)}, but connect() got {len(shapes)} shapes")
        self.view_count = views
        self.build(given[0])
        if self.needs_fit:
            self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))  # a buffer, so that checkpoints hold it
        self._connected = given
        return self

    @abstractmethod
    def build(self, shapes: Sequence[Shape]) -> None:
        """Create parameters and buffers for maps ``(C, H, W)`` and set ``out_features``."""

    # --- fit, explanation, export -----------------------------------------------------------------

    def start_fit(self, data: TrainingSet) -> HeadFit | None:
        """Return the head's fit to the training images, or ``None`` (the default) if there is none.

        Raises:
            CxlpError: If there are too few training images.
        """
        return None

    def fit_pca(
        self,
        loader: Iterable[Any],
        backbone: Callable[[Tensor], Maps] | None = None,
        images: int | None = None,
        vectors: int = 100_000,
    ) -> Self:
        """Fit the PCA in one pass over a loader of images or maps, see :func:`~cxlp.heads.streamed.fit_pca`."""
        fit_pca(self, loader, backbone, images, vectors)
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether the head can be used: it is fitted, or :attr:`needs_fit` is not set."""
        return not self.needs_fit or (self._connected is not None and bool(self.fitted))

    def mark_fitted(self) -> None:
        """Mark the head as fitted. All ranks must call this method."""
        if self.needs_fit:
            self.fitted.fill_(True)

    @property
    def explanation_obstacle(self) -> str | None:
        """Why scores cannot be split over places; ``None`` if they can."""
        return "it has no explain()" if type(self).explain is Head.explain else None

    def explain(self, maps: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        """Split the score ``weights @ self(*maps)`` of one image exactly over pooling channels and places.

        Args:
            maps: The arguments of ``forward`` for one image: ``(V, C, H, W)`` for each layer, float64.
            weights: Weights of one class for the head's vector: ``(out_features,)``, float64.

        Returns:
            Shares ``e_ik`` of K channels at h x w places of each view, ``(V, K, h, w)``, whose sum is the score, and
            the channels' activations ``a_ik`` at these places, of the same shape.
        """
        raise CxlpError(f"{self.name} cannot be explained: {self.explanation_obstacle}")

    @property
    def unit_length(self) -> bool:
        """Whether the vectors have unit length: ``self.normalise`` is a :class:`Normalise` with ``l2``."""
        normalise = getattr(self, "normalise", None)
        return isinstance(normalise, Normalise) and normalise.steps["l2"]

    @property
    def signs_only(self) -> bool:
        """Whether all nonzero entries of a vector have the same absolute value: ``sign`` and ``l2`` are on."""
        normalise = getattr(self, "normalise", None)
        return isinstance(normalise, Normalise) and normalise.steps["sign"] and normalise.steps["l2"]

    # --- configuration ----------------------------------------------------------------------------

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values, read from the attributes of the same names.

        Raises:
            CxlpError: If an attribute is missing, or its value is not plain.
        """
        found = {}
        for name in constructor_arguments(type(self)):
            if not hasattr(self, name):
                raise CxlpError(f"{self.name} has an option {name!r}, but no attribute of that name: set self.{name}")
            try:
                found[name] = plain(getattr(self, name))
            except TypeError as error:
                raise CxlpError(f"{self.name}'s option {name!r} is not a plain value: {error}") from error
        return found

    def spec(self) -> dict[str, Any]:
        """Return the head's class name or import path and its options as plain values, for :meth:`from_spec`.

        Raises:
            CxlpError: If the class cannot be imported by its path, or an option is not plain.
        """
        import cxlp.heads

        cls = type(self)
        ours = getattr(cxlp.heads, cls.__name__, None) is cls
        return {"class_path": cls.__name__ if ours else import_path(cls), "init_args": self.options()}

    @staticmethod
    def from_spec(spec: Mapping[str, Any]) -> "Head":
        """Build a head from its specification. The head is not connected yet.

        Args:
            spec: ``class_path``, the name of a class of :mod:`cxlp.heads` or the import path of any subclass of
                :class:`Head`, and optionally ``init_args``, its options. The module of an import path is imported.

        Raises:
            CxlpError: If there is no such head, or the head has no such option.

        Example:
            >>> Head.from_spec({"class_path": "AveragePooling", "init_args": {"sqrt": False}}).options()["sqrt"]
            False
        """
        return build_head(spec)


def _count(layers: int) -> str:
    return "one layer" if layers == 1 else f"{layers} layers, lower before upper"
