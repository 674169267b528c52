"""Data in: any supported dataset as one Arrow table with a text and, where known, its words."""

from actstore.data.dataset import Dataset
from actstore.data.readers import read_dataset

__all__ = ["Dataset", "read_dataset"]
