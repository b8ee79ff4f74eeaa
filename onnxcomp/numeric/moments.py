"""Second moments of a layer's input patches and target outputs: all that the closed-form data-aware fits need.

With X the patches (d x N) and Y the targets (Co x N) of a layer, every least-squares fit Y ~ W X + b depends on the
data only through E[x x^T], E[y x^T], E[x] and E[y] (He et al. 2017, Zhang et al. 2016). The bias takes the means, so
that W is fitted on the covariances.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Covariance",
    "Moments",
    "channel_average",
    "predicted_error",
    "project_cross",
    "project_gram",
    "regularised",
    "squared_residual",
]

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Covariance:
    """Centred second moments.

    Attributes:
        xx: Covariance of the patches, (d, d).
        yx: Cross covariance of targets and patches, (Co, d).
        yy: Variance of each target, (Co,).
    """

    xx: Float
    yx: Float
    yy: Float


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """Uncentred averages over the sampled patches, float64.

    The targets are those of the original network while the patches may come from the already compressed one (the
    asymmetric form); without targets (`yx` is None) the layer's own weight supplies them, see :meth:`with_weight`.

    Attributes:
        xx: E[x x^T], (d, d), symmetric; d = channels x prod(kernel), channel-major as ``weight.reshape(Co, -1)``.
        mean_x: E[x], (d,).
        count: Number of patches.
        yx: E[y x^T], (Co, d), or None.
        mean_y: E[y], (Co,), or None.
        yy: E[y^2] of each output channel, (Co,), or None.
    """

    xx: Float
    mean_x: Float
    count: int
    yx: Float | None = None
    mean_y: Float | None = None
    yy: Float | None = None
    # Not handed on by dataclasses.replace: other moments have other covariances.
    _damped: dict[float, Covariance] = field(default_factory=dict[float, Covariance], repr=False, init=False)

    @property
    def has_targets(self) -> bool:
        """Whether there are statistics of the targets."""
        return self.yx is not None

    def with_weight(self, weight: NDArray[np.floating], bias: NDArray[np.floating] | None = None) -> Moments:
        """The moments whose targets are the layer's own outputs y = W x + b (the symmetric form).

        Args:
            weight: (Co, d) or (Co, Ci, *kernel).
            bias: (Co,); None means zero.
        """
        w = np.asarray(weight, np.float64).reshape(weight.shape[0], -1)
        b = np.zeros(len(w)) if bias is None else np.asarray(bias, np.float64)
        linear = w @ self.xx
        response = w @ self.mean_x
        return Moments(
            xx=self.xx,
            mean_x=self.mean_x,
            count=self.count,
            yx=linear + np.outer(b, self.mean_x),
            mean_y=response + b,
            yy=np.einsum("od,od->o", linear, w) + 2 * b * response + b * b,
        )

    def damped(self, weight: Float, damping: float) -> Covariance:
        """The covariances, pulled towards a weight (see `regularised`); computed once for all that are fitted to them.

        Args:
            weight: The layer's own, (Co, d) or (Co, Ci, *kernel); the same in every call.
            damping: As in `regularised`.
        """
        if damping not in self._damped:
            self._damped[damping] = regularised(self.centred(), weight.reshape(len(weight), -1), damping)
        return self._damped[damping]

    def centred(self) -> Covariance:
        """The covariances. Raises ValueError where there are no targets."""
        if self.yx is None or self.mean_y is None or self.yy is None:
            raise ValueError("the moments hold no targets; call with_weight() first")
        return Covariance(
            xx=self.xx - np.outer(self.mean_x, self.mean_x),
            yx=self.yx - np.outer(self.mean_y, self.mean_x),
            yy=np.maximum(self.yy - self.mean_y**2, 0.0),
        )


def regularised(covariance: Covariance, weight: Float, damping: float) -> Covariance:
    """Shrink a least-squares problem towards a known weight.

    The fit then minimises E|y - W x|^2 + lambda |W - W0|^2 with lambda = damping * mean(diag(xx)), which adds lambda I
    to the Gram and lambda W0 to the cross moment. In the symmetric form W0 stays the exact solution; in the asymmetric
    one, too few patches (N close to d) no longer overfit.

    Args:
        covariance: The empirical covariances.
        weight: W0, (Co, d).
        damping: Relative strength, 0 or more.
    """
    if damping < 0:
        raise ValueError(f"damping is {damping}, not 0 or more")
    strength = damping * float(np.mean(np.diagonal(covariance.xx)))
    xx = covariance.xx.copy()
    xx[np.diag_indices_from(xx)] += strength
    # The constant lambda |W0|^2 goes where it belongs, into the targets' energy, so that residuals stay non-negative.
    yy = covariance.yy + strength * np.einsum("od,od->o", weight, weight)
    return Covariance(xx, covariance.yx + strength * weight, yy)


def squared_residual(weight: Float, covariance: Covariance) -> float:
    """E|y - W x|^2 of centred variables, summed over the outputs; `weight` is (Co, d)."""
    quadratic = np.einsum("od,od->", weight @ covariance.xx - 2 * covariance.yx, weight)
    return float(max(quadratic + covariance.yy.sum(), 0.0))


def predicted_error(weight: NDArray[np.floating], bias: NDArray[np.floating] | None, moments: Moments) -> float:
    """Relative squared error E|y - (W x + b)|^2 / E|y - E[y]|^2 of a layer's output on the sampled patches.

    Args:
        weight: The replacement's weight, (Co, d) or (Co, Ci, *kernel).
        bias: The replacement's bias, (Co,); None means zero.
        moments: With targets.

    Returns:
        0 for exact, 1 where a constant would do as well; 0 where the targets are constant and hit, inf where they are
        missed.
    """
    w = np.asarray(weight, np.float64).reshape(weight.shape[0], -1)
    covariance = moments.centred()
    assert moments.mean_y is not None  # centred() has checked it
    offset = moments.mean_y - w @ moments.mean_x - (0.0 if bias is None else np.asarray(bias, np.float64))
    residual = squared_residual(w, covariance) + float(offset @ offset)
    energy = float(covariance.yy.sum())
    if energy > 0.0:
        return residual / energy
    return 0.0 if residual <= 1e-12 * float(moments.mean_y @ moments.mean_y) else float("inf")


def project_gram(gram: Float, first: Float | None) -> Float:
    """Gram of the patches after a 1x1 convolution: T gram T^T with T = first x I_taps, which is never formed.

    Args:
        gram: (d, d) with d = Ci * taps, channel-major.
        first: (r, Ci); None is the identity.

    Returns:
        (r * taps, r * taps), channel-major.
    """
    if first is None:
        return gram
    rank, channels = first.shape
    taps = len(gram) // channels
    half: Float = (first @ gram.reshape(channels, -1)).reshape(rank * taps, channels, taps)
    projected: Float = np.matmul(first, half).reshape(rank * taps, rank * taps)
    return projected


def project_cross(cross: Float, first: Float | None) -> Float:
    """Cross moments with the patches after a 1x1 convolution: (Co, Ci * taps) to (Co, r * taps)."""
    if first is None:
        return cross
    rank, channels = first.shape
    outputs, taps = len(cross), cross.shape[1] // channels
    projected: Float = np.matmul(first, cross.reshape(outputs, channels, taps)).reshape(outputs, rank * taps)
    return projected


def channel_average(gram: Float, taps: int) -> Float:
    """Channel Gram (Ci, Ci): the mean of the Ci x Ci blocks of a patch Gram that belong to one tap each."""
    channels = len(gram) // taps
    blocks: Float = np.einsum("ikjk->ij", gram.reshape(channels, taps, channels, taps))
    return blocks / taps
