"""Record store to batches: pairs, augmentation, positives, and an order that can resume anywhere."""

from medvl.data.augment import Augment
from medvl.data.dataset import Pair, PairDataset, collate, label_names
from medvl.data.loader import BatchOrder, BatchStream, in_order
from medvl.data.positives import PositivesMode, finding_similarity, positives

__all__ = [
    "Augment",
    "BatchOrder",
    "BatchStream",
    "Pair",
    "PairDataset",
    "PositivesMode",
    "collate",
    "finding_similarity",
    "in_order",
    "label_names",
    "positives",
]
