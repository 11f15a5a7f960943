"""Record store to batches: pairs, augmentation, positives, and an order that can resume anywhere."""

from medvl.data.augment import Augment, VolumeAugment
from medvl.data.dataset import PairDataset, label_names
from medvl.data.draft import Draft, Pair
from medvl.data.loader import BatchOrder, BatchStream, in_order
from medvl.data.positives import PositivesMode, finding_similarity, positives

__all__ = [
    "Augment",
    "BatchOrder",
    "BatchStream",
    "Draft",
    "Pair",
    "PairDataset",
    "PositivesMode",
    "VolumeAugment",
    "finding_similarity",
    "in_order",
    "label_names",
    "positives",
]
