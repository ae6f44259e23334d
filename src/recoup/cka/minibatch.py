"""CKA from minibatches (2010.15327, section 3.1): HSIC_1 of each, averaged, then one quotient.

HSIC_1 of a minibatch is unbiased for the HSIC of all tokens, so its mean over minibatches is too, and its noise shrinks with
their number. A CKA of each minibatch would not be: the mean of quotients is no quotient of means. Cost is linear in tokens.

Tokens of one sequence resemble each other: shuffle tokens across sequences first, or what a minibatch's tokens have in
common is taken out with its mean.

    minibatches = MinibatchCka()
    for Xs, Ys in batches:
        minibatches.update(Xs, Ys)
    print(minibatches.map())

Shapes: B tokens of a minibatch, D and E widths, L and M layers.
"""

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from recoup.cka.maps import cka, hsic, resolution
from recoup.cka.sums import Sums, nothing
from recoup.cka.tokens import Products, Space, check_enough, choose, prepare
from recoup.errors import DataError


class MinibatchCka:
    """Mean HSIC_1 of every layer of one model with every layer of another, in float64; keeps memory for one minibatch."""

    def __init__(self, products: Products = "fp32") -> None:
        self.products = products
        self.num_batches = 0
        self.num_tokens = 0
        self._space = Space()
        self._unbiased: Sums | None = None  # sums over minibatches of HSIC_1
        self._sizes: Sums | None = None

    def update(
        self,
        X: Sequence[Float[Tensor, "B _"]],
        Y: Sequence[Float[Tensor, "B _"]],
        mask_B: Bool[Tensor, " B"] | None = None,
    ) -> None:
        """Add a minibatch: all layers of both models at the same tokens. Minibatches count the same, whatever their size.

        Raises:
            SourceError: a feature is NaN or infinite.
            DataError: fewer than 4 tokens count, or numbers of tokens or layers do not fit.
        """
        tokens = choose([*X, *Y], mask_B, None)
        check_enough(tokens)
        if self._unbiased is None or self._sizes is None:
            self._unbiased = self._sizes = nothing(len(X), len(Y))
        elif self._sizes.xy_LM.shape != (len(X), len(Y)):
            raise DataError(
                f"MinibatchCka: {len(X)} × {len(Y)} layers after {' × '.join(map(str, self._sizes.xy_LM.shape))}; "
                "give every minibatch the same layers"
            )
        ready_X, ready_Y = (
            prepare(side, tokens, name, self.products, self._space) for side, name in ((X, "X"), (Y, "Y"))
        )
        unbiased, sizes = hsic(ready_X, ready_Y, tokens, self._space)
        n = tokens.number
        self._unbiased = self._unbiased.plus(unbiased, 1 / (n * (n - 3)))
        self._sizes = self._sizes.plus(sizes, 1 / (n * (n - 3)))
        self.num_batches += 1
        self.num_tokens += n

    def map(self) -> Float[Tensor, "L M"]:
        """CKA of every layer of X (rows) with every layer of Y (columns), in float64.

        Raises:
            DataError: no minibatch was given, or a layer's tokens do not vary.
        """
        if self._unbiased is None or self._sizes is None:
            raise DataError("MinibatchCka: no minibatch was given; call update first")
        return cka(self._unbiased, self._sizes, resolution(self.products, self.num_tokens // self.num_batches))
