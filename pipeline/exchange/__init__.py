"""Masks that exist already, read from files: COCO, segment-anything, SemiRES, NumPy."""

from pipeline.exchange.formats import MASK_FORMATS as MASK_FORMATS
from pipeline.exchange.formats import ImportConfig as ImportConfig
from pipeline.exchange.formats import open_masks as open_masks
from pipeline.exchange.formats import source_sha256 as source_sha256
from pipeline.exchange.source import ImportedMasks as ImportedMasks
from pipeline.exchange.source import MaskSource as MaskSource
from pipeline.exchange.source import best_masks as best_masks
