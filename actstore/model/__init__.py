"""Models: what they are made of, how to load them, and the rows they give for token ids.

`architecture` and `packing` need no engine; the rest import torch and transformers.
"""
