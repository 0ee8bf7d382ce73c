"""What a pooling head is, and how to write one."""

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
    """Makes one vector per image of the maps of one layer or several: the base class of all heads.

    A head of your own is a subclass, in any module that can be imported. It has

    - a constructor whose arguments are its options, plain values but for ``views``. It hands ``layers`` and ``views``
      on to this class and keeps each argument as an attribute of the same name, so that :meth:`options` finds them;
    - :attr:`takes`: how many layers it takes;
    - :meth:`build`: makes parameters and buffers once the maps' shapes are known, and sets ``out_features``;
    - ``forward(*maps, views=1)``: of a map ``(B * V, C, H, W)`` for each layer, the V views of an image one after
      another, it makes vectors ``(B, out_features)``. Unit length suits the SVMs and several heads side by side.

    and, where it has such things,

    - :meth:`start_fit`: what it learns from the training images without gradients, such as a PCA;
    - :meth:`explain`: how a score is the sum of what places contribute; it fits one ``forward`` only;
    - :attr:`onnx_obstacle`: why it cannot be written as ONNX.

    Args:
        layers: The backbone's layers that it takes, lower before upper; ``None``: its last ones, see :meth:`layers_of`.
        views: The views of an image that are encoded together.

    Attributes:
        out_features: Length D of the vector, once it is connected.
        view_count: V, views per image, once it is connected.

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

    #: How many layers it takes.
    takes: ClassVar[int] = 1
    #: Whether the head needs a codebook from :meth:`start_fit`, which then ends with :meth:`mark_fitted`.
    needs_fit: ClassVar[bool] = False
    #: Whether its fit takes the images' labels.
    needs_labels: ClassVar[bool] = False
    #: Why the head cannot be written as ONNX; ``None``: it can.
    onnx_obstacle: ClassVar[str | None] = None

    out_features: int
    fitted: Tensor

    def __init__(self, layers: Sequence[str] | None = None, views: Views = Views()) -> None:
        super().__init__()
        if isinstance(layers, str) or not isinstance(views, Views):
            named = f"layers is {layers!r}: name them in a list"
            raise CxlpError(named if isinstance(layers, str) else f"views is {views!r}: give Views(...)")
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
        """Call forward, see there.

        Raises:
            CxlpError: If the head is not connected.
        """
        if self._connected is None:
            raise CxlpError(
                f"{self.name} has no parameters yet: connect() it to the shapes (C, H, W) of its maps first"
            )
        vector: Tensor = super().__call__(*maps, views=views)
        return vector

    @property
    def name(self) -> str:
        """The name of its class."""
        return type(self).__name__

    # --- its inputs -------------------------------------------------------------------------------

    def layers_of(self, available: Sequence[str], named: Collection[str] = ()) -> tuple[str, ...]:
        """Name the layers that the head takes of a backbone's.

        Args:
            available: The backbone's layers.
            named: Those that the ``layers`` of other heads in the network name. A head without ``layers`` takes the
                backbone's last ones, if these include the last ones that no other head names; otherwise it takes the
                layers that no other head names.

        Raises:
            CxlpError: If the backbone does not give them, or the layers that no other head names are not as many as
                the head takes.
        """
        if self.layers is None:
            if len(available) < self.takes:
                raise CxlpError(
                    f"{self.name} takes {_count(self.takes)}, but the backbone's are {list(available)}: name more there"
                )
            last = tuple(available[-self.takes :])
            others = tuple(layer for layer in available if layer not in named)
            if set(others[-self.takes :]) <= set(last):
                return last
            if len(others) == self.takes:
                return others
            raise CxlpError(
                f"{self.name} names no layers, and besides those that other heads name, {sorted(named)}, the backbone "
                f"gives {list(others)}, not {self.takes}: name its own by its option layers"
            )
        for layer in self.layers:
            if layer not in available:
                raise CxlpError(
                    f"{self.name} takes layer {layer!r}, which the backbone does not give: add it to the backbone's "
                    f"layers. {did_you_mean(layer, available)}"
                )
        return self.layers

    def connect(self, *shapes: Sequence[int], views: int = 1) -> Self:
        """Make the head's parameters for maps of these shapes; done once, later calls must agree.

        Args:
            shapes: ``(C, H, W)`` of each layer that it takes.
            views: V, how many views of an image are encoded together.

        Returns:
            The head itself.

        Raises:
            CxlpError: If its options do not fit the shapes, or it is connected to others.
        """
        given = tuple((int(c), int(h), int(w)) for c, h, w in shapes), views
        if self._connected == given:
            return self
        if self._connected is not None:
            (made, made_views), (found, now) = self._connected, given
            raise CxlpError(
                f"{self.name} was made for maps of {made} of {made_views} views an image, these are {found} of {now}"
            )
        if len(shapes) != self.takes:
            raise CxlpError(f"{self.name} takes {_count(self.takes)}, but was given the shapes of {len(shapes)} maps")
        self.view_count = views
        self.build(given[0])
        if self.needs_fit:
            self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))  # so that checkpoints hold it
        self._connected = given
        return self

    @abstractmethod
    def build(self, shapes: Sequence[Shape]) -> None:
        """Make parameters and buffers for maps ``(C, H, W)``, and set ``out_features``."""

    # --- fit, explanation, export -----------------------------------------------------------------

    def start_fit(self, data: TrainingSet) -> HeadFit | None:
        """Begin to learn from the training images; ``None``: there is nothing to fit, as here.

        Raises:
            CxlpError: If there will be too few images for it.
        """
        return None

    def fit_pca(
        self,
        loader: Iterable[Any],
        backbone: Callable[[Tensor], Maps] | None = None,
        images: int | None = None,
        vectors: int = 100_000,
    ) -> Self:
        """Fit the PCA to a loader of images or maps in one pass, see :func:`~cxlp.heads.streamed.fit_pca`."""
        fit_pca(self, loader, backbone, images, vectors)
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether it can be used: always, but for a head that :attr:`needs_fit` and has not been fitted."""
        return not self.needs_fit or (self._connected is not None and bool(self.fitted))

    def mark_fitted(self) -> None:
        """Note that what :attr:`needs_fit` asks for is done; on all ranks."""
        if self.needs_fit:
            self.fitted.fill_(True)

    @property
    def explanation_obstacle(self) -> str | None:
        """Why scores cannot be split over places; ``None``: they can."""
        return "it has no explain()" if type(self).explain is Head.explain else None

    def explain(self, maps: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        """Split ``weights @ self(*maps)`` of one image over pooling channels and places, exactly.

        Args:
            maps: What forward takes, of one image: ``(V, C, H, W)`` of each layer, float64.
            weights: A class's weights of the head's vector: ``(out_features,)``, float64.

        Returns:
            Shares ``e_ik`` of K channels at h x w places of each view, ``(V, K, h, w)``, which add up to the product,
            and the channels' activations ``a_ik`` there, of the same shape.
        """
        raise CxlpError(f"{self.name} cannot be explained: {self.explanation_obstacle}")

    @property
    def unit_length(self) -> bool:
        """Whether its vectors have length 1, as where ``self.normalise`` is a :class:`Normalise` with ``l2``."""
        normalise = getattr(self, "normalise", None)
        return isinstance(normalise, Normalise) and normalise.steps["l2"]

    @property
    def signs_only(self) -> bool:
        """Whether the entries of a vector are signs times one number, as with ``sign`` and ``l2``."""
        normalise = getattr(self, "normalise", None)
        return isinstance(normalise, Normalise) and normalise.steps["sign"] and normalise.steps["l2"]

    # --- as plain values --------------------------------------------------------------------------

    def options(self) -> dict[str, Any]:
        """Read the constructor's arguments off the attributes of their names, as plain values.

        Raises:
            CxlpError: If there is no such attribute, or its value is not plain.
        """
        found = {}
        for name in constructor_arguments(type(self)):
            if not hasattr(self, name):
                raise CxlpError(f"{self.name} has an option {name!r}, but no attribute of that name: keep it as one")
            try:
                found[name] = plain(getattr(self, name))
            except TypeError as error:
                raise CxlpError(f"{self.name}'s option {name!r} is not a plain value: {error}") from error
        return found

    def spec(self) -> dict[str, Any]:
        """Describe the head by plain values, for :meth:`from_spec`: its class's name or import path, its options.

        Raises:
            CxlpError: If the class cannot be imported by its path, or an option is not plain.
        """
        import cxlp.heads

        cls = type(self)
        ours = getattr(cxlp.heads, cls.__name__, None) is cls
        return {"class_path": cls.__name__ if ours else import_path(cls), "init_args": self.options()}

    @staticmethod
    def from_spec(spec: Mapping[str, Any]) -> "Head":
        """Build a head, not connected yet.

        Args:
            spec: ``class_path``, the name of a class of :mod:`cxlp.heads` or the import path of any subclass of
                :class:`Head`, and perhaps ``init_args``, its options. The module of an import path is imported.

        Raises:
            CxlpError: If there is no such head, or it has no such option.

        Example:
            >>> Head.from_spec({"class_path": "AveragePooling", "init_args": {"sqrt": False}}).options()["sqrt"]
            False
        """
        return build_head(spec)


def _count(layers: int) -> str:
    return "one layer" if layers == 1 else f"{layers} layers, lower before upper"
