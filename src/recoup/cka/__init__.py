"""Linear CKA (1905.00414) of language models' hidden states: exact, debiased, in memory that does not grow with tokens squared.

    linear_cka, debiased_cka   two sets of features
    cka_map                    every layer of one model with every layer of another, of any depths and widths
    cka_pairs                  layer l with layer l, with a bootstrap over prompts
    Moments, update, ...       streamed: exact over tokens that are not kept
    MinibatchCka               an average over minibatches (2010.15327)
    rbf_cka                    with a Gaussian kernel
    relative_l2, ...           what CKA cannot see

`linear_cka` (HSIC_0) is biased upward where n is not much larger than the widths: independent features of width 576 read 0.36
at 1,000 tokens. All others use HSIC_1 (Song et al. 2012), whose null is 0, unless told otherwise. Two things are the caller's:
pads have to be masked, and the first token of a sequence (an attention sink, hundreds of times longer than the others) has to
be left out or looked at apart, for with it everything reads 1.

NaN raises, and no value is clamped, so that 1 + 1e-7 can be met: float32 rounding. Shapes: N tokens, D and E widths.
"""

from recoup.cka.companions import effective_rank, procrustes_distance, relative_l2
from recoup.cka.hsic import RESOLUTION
from recoup.cka.kernel import rbf_cka
from recoup.cka.maps import cka_map
from recoup.cka.minibatch import MinibatchCka
from recoup.cka.moments import Moments, biased, debiased, update
from recoup.cka.pairs import CkaPairs, cka_pairs, debiased_cka, linear_cka
from recoup.cka.tokens import MIN_TOKENS, Products

__all__ = [
    "MIN_TOKENS",
    "RESOLUTION",
    "CkaPairs",
    "MinibatchCka",
    "Moments",
    "Products",
    "biased",
    "cka_map",
    "cka_pairs",
    "debiased",
    "debiased_cka",
    "effective_rank",
    "linear_cka",
    "procrustes_distance",
    "rbf_cka",
    "relative_l2",
    "update",
]
