"""Decoders: what turns tokens into the logits of the next one, over a cache of keys and values.

`lean` computes the Llama-like layouts with few operations; `whole` runs any model's own forward pass. `choose` says which.
"""
