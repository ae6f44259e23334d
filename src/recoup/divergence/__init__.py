"""Full-vocabulary divergences between a teacher and a student: from logits (`formulas`), or from hidden states (`fused`)."""

from recoup.divergence.formulas import forward_kl, jensen_shannon, overlap, reverse_kl
from recoup.divergence.fused import Compared, Rule, compare
from recoup.divergence.head import Head, HiddenTargets, Targets, TopKTargets
from recoup.divergence.topk import top_k

__all__ = [
    "Compared",
    "Head",
    "HiddenTargets",
    "Rule",
    "Targets",
    "TopKTargets",
    "compare",
    "forward_kl",
    "jensen_shannon",
    "overlap",
    "reverse_kl",
    "top_k",
]
