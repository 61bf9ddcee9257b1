"""The SAMs that can be chosen, as far as a config asks: names, options, needs; without torch."""

from dataclasses import dataclass, replace

from pipeline.sam.options import FAST, REFERENCE, GeneratorOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class SamEntry:
    """What a config has to know of one SAM, or of what stands in for it."""

    options: GeneratorOptions
    """Thresholds that suit the model."""
    needs_checkpoint: bool
    """Whether one must be given; if not, the weights ship with the project or there are none."""
    has_network: bool = True
    """If not, options but `max_candidates` are unused."""

    def options_with(self, options: GeneratorOptions) -> GeneratorOptions:
        """Fill what is open by the entry's options, then, if it has a network, by the profile's."""
        filled = options.filled(self.options)
        if not self.has_network:
            return filled
        return filled.filled(FAST if filled.profile == "fast" else REFERENCE)


_TINY = GeneratorOptions(
    points_per_side=16,
    points_per_batch=16,  # what the decoder touches stays in the cache
    # Nearly off, because large background regions get the highest predicted IoU, and thin
    # parts are never stable: NMS alone leaves about 130 candidates.
    pred_iou_thresh=0.1,
    stability_score_thresh=0.0,
    box_nms_thresh=0.9,
    images_per_batch=1,
    profile="fast",
)
"""What suits the small SAM."""

_PUBLISHED = SamEntry(options=GeneratorOptions(), needs_checkpoint=True)
"""At the defaults of segment-anything's own mask generator."""

SAM_ENTRIES: dict[str, SamEntry] = {
    "vit_tiny_demo": SamEntry(options=_TINY, needs_checkpoint=False),
    "vit_tiny_regions": SamEntry(
        options=replace(_TINY, points_per_side=10),  # with regions more points find little more
        needs_checkpoint=False,
    ),
    "region_merging": SamEntry(
        options=GeneratorOptions(), needs_checkpoint=False, has_network=False
    ),
    "vit_b": _PUBLISHED,
    "vit_l": _PUBLISHED,
    "vit_h": _PUBLISHED,
    "hub_sam": _PUBLISHED,
    "hub_sam_hq": _PUBLISHED,
    # SAM 2's own mask generator keeps masks from a predicted IoU of 0.8.
    "hub_sam2": SamEntry(options=GeneratorOptions(pred_iou_thresh=0.8), needs_checkpoint=True),
}
"""Name of a SAM to its entry; how each is built is in `models.SAM_MODELS`, under the same name."""
