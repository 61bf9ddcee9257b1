"""Core: candidate masks without a network: small regions merged step by step, the best kept.

Hierarchical grouping after Selective Search (Uijlings et al., IJCV 2013) of the regions of
Felzenszwalb & Huttenlocher (IJCV 2004). Candidates are sets of leaves until they are painted.

Shape legend: H, W pixels; L leaves, N = 2 L - 1 nodes of a tree; M candidates of all trees.
"""

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.segmentation import felzenszwalb

from pipeline.sam.masks import Masks, masks_from_bits
from pipeline.sam.options import GeneratorOptions
from pipeline.sam.packed import boxes_of

VERSION = "region_merging 1"
"""Raised whenever the same image would give other masks or scores."""

LONGEST_SIDE = 1024
"""Larger images are segmented with their longer side at this many pixels, and masks enlarged."""
FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Border = dict[int, tuple[float, int]]
"""Of one region: neighbour -> sum of the contrast across the common border, and its length."""

_SCALES = (15, 120)  # of the segmentations; the second gives about half as many leaves
_NUM_TREES = 2 * len(_SCALES)  # without colour, shaded and patterned things unite
_BLUR = 0.5  # of the segmentations, pixels; more leaves strips along the sharp edges of drawings
_MIN_LEAF = 0.0005  # of the image, at least 20 pixels if it has 1000
_MIN_AREA = 0.001  # of the image, for candidates
_CHAIN = 0.95  # a node with more of the area of the nearest candidate above it is none itself
_SAME = 0.8  # IoU above which the worse of two candidates is dropped
_HALF_CONTRAST = 5.0  # distance in Lab at which contrast counts one half
_BINS = 25


def _borders(labels: IntArray, smooth_lab: FloatArray) -> list[Border]:
    """Find the common borders of leaves, by the pixel edges between them."""
    count = int(labels.max()) + 1
    keys, steps = [], []
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        apart = labels[here] != labels[there]
        one, two = labels[here][apart], labels[there][apart]
        keys.append(np.minimum(one, two) * count + np.maximum(one, two))
        steps.append(np.sqrt(((smooth_lab[here] - smooth_lab[there])[apart] ** 2).sum(axis=1)))
    found, pair = np.unique(np.concatenate(keys), return_inverse=True)
    sums = np.bincount(pair, np.concatenate(steps), len(found)).tolist()
    lengths = np.bincount(pair, minlength=len(found)).tolist()
    borders: list[Border] = [{} for _ in range(count)]
    for key, contrast, length in zip(found.tolist(), sums, lengths, strict=True):
        borders[key // count][key % count] = borders[key % count][key // count] = contrast, length
    return borders


def _mean_contrast(border: Border) -> float:
    """Give the mean contrast along a region's outline; 0 where it has no neighbour."""
    return sum(s for s, _ in border.values()) / max(sum(n for _, n in border.values()), 1)


def _united_border(borders: list[Border], left: int, right: int) -> Border:
    """Put the union of two neighbours in their place and give its border; it is the next number."""
    united = borders[left]
    for other, (contrast, length) in borders[right].items():
        before = united.get(other, (0.0, 0))
        united[other] = before[0] + contrast, before[1] + length
    del united[left], united[right]
    for other, shared in united.items():
        borders[other].pop(left, None)
        borders[other].pop(right, None)
        borders[other][len(borders)] = shared
    borders[left] = borders[right] = {}
    return united


@dataclass(frozen=True, slots=True)
class _Tree:
    """One hierarchy: the leaves, then a node per merge, the root last; `_grow` fills it."""

    labels: IntArray  # the leaf of each pixel, (H, W)
    borders: list[Border]  # of each node with its neighbours, until the node is merged
    area: FloatArray  # pixels, (N,)
    box: FloatArray  # XYXY, half-open, pixels, (N, 4)
    colour: FloatArray  # histograms of L, a and b, summing to 1 over all three, (N, 75)
    contrast: list[float]  # mean distance in Lab across the outline, without the image's frame
    children: list[tuple[int, int]]  # of each merge, both less than the new node's number

    def sums(self, of_leaves: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Sum what leaves have, (L, ...), over the leaves of each node, (N, ...); bools unite."""
        total = np.empty((len(self.area), *of_leaves.shape[1:]), of_leaves.dtype)
        total[: len(of_leaves)] = of_leaves
        for node, (left, right) in enumerate(self.children, len(of_leaves)):
            np.add(total[left], total[right], out=total[node])
        return total

    def candidates(self) -> IntArray:
        """Give the nodes below the root that are large enough and unlike those above them."""
        first, smallest = len(self.children) + 1, _MIN_AREA * self.labels.size
        ceiling = np.full(len(self.area), _CHAIN * self.labels.size)
        chosen = []
        for node in range(len(self.area) - 1, -1, -1):
            if smallest <= self.area[node] <= ceiling[node]:
                chosen.append(node)
                ceiling[node] = _CHAIN * self.area[node]
            if node >= first:
                ceiling[list(self.children[node - first])] = ceiling[node]
        return np.asarray(chosen[::-1], np.int64)

    def costs(self, node: int, use_colour: bool) -> list[tuple[float, int, int]]:
        """Tell how unlike a node is to each of its neighbours, as (cost, neighbour, node).

        One minus Selective Search's similarities of size, fill and, if wanted, colour (histogram
        intersection), and the contrast along the common border, each in [0, 1], are added up.
        """
        border = self.borders[node]
        others = np.fromiter(border, np.int64, len(border))
        shared = np.asarray(list(border.values()), np.float64).reshape(-1, 2)
        step = shared[:, 0] / shared[:, 1]
        low = np.minimum(self.box[node, :2], self.box[others, :2])
        high = np.maximum(self.box[node, 2:], self.box[others, 2:])
        # (size of both) + (box around both - size of both), as shares of the image
        cost = np.prod(high - low, axis=1) / self.labels.size + step / (step + _HALF_CONTRAST)
        if use_colour:
            cost += 1 - np.minimum(self.colour[node], self.colour[others]).sum(axis=1)
        return [(c, other, node) for c, other in zip(cost.tolist(), border, strict=True)]

    def merge(self, left: int, right: int) -> None:
        """Make the next node of two neighbours."""
        node = len(self.borders)
        self.children.append((left, right))
        self.area[node] = self.area[left] + self.area[right]
        self.box[node, :2] = np.minimum(self.box[left, :2], self.box[right, :2])
        self.box[node, 2:] = np.maximum(self.box[left, 2:], self.box[right, 2:])
        share = self.area[left] / self.area[node]
        self.colour[node] = share * self.colour[left] + (1 - share) * self.colour[right]
        self.borders.append(_united_border(self.borders, left, right))
        self.contrast.append(_mean_contrast(self.borders[node]))


def _leaves(labels: IntArray, lab: FloatArray, smooth_lab: FloatArray) -> _Tree:
    """Measure the leaves of a tree, with empty rows for the nodes that merging adds."""
    num_leaves = int(labels.max()) + 1
    nodes, flat = 2 * num_leaves - 1, labels.ravel()
    area, box, colour = np.zeros(nodes), np.zeros((nodes, 4)), np.zeros((nodes, 3 * _BINS))
    area[:num_leaves] = np.bincount(flat)
    found = ndimage.find_objects(labels + 1)
    box[:num_leaves] = [(x.start, y.start, x.stop, y.stop) for y, x in found]
    unit = lab.reshape(-1, 3) / [100, 200, 200] + [0, 0.5, 0.5]
    bins = np.clip((unit * _BINS).astype(np.int64), 0, _BINS - 1) + np.arange(3) * _BINS
    bins += flat[:, None] * 3 * _BINS
    counts = np.bincount(bins.ravel(), minlength=num_leaves * 3 * _BINS).reshape(num_leaves, -1)
    colour[:num_leaves] = counts / area[:num_leaves, None] / 3
    borders = _borders(labels, smooth_lab)
    return _Tree(labels, borders, area, box, colour, [_mean_contrast(b) for b in borders], [])


def _grow(tree: _Tree, use_colour: bool) -> _Tree:
    """Merge the most alike neighbours until one region is left; ties go to the lower numbers."""
    heap = [cost for leaf in range(len(tree.borders)) for cost in tree.costs(leaf, use_colour)]
    heapq.heapify(heap)
    while heap:
        _, left, right = heapq.heappop(heap)
        if left in tree.borders[right]:  # else one of them is merged by now
            tree.merge(left, right)
            for cost in tree.costs(len(tree.borders) - 1, use_colour):
                heapq.heappush(heap, cost)
    return tree


def _reduced(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Scale an image down to `LONGEST_SIDE`, never up."""
    picture = Image.fromarray(image)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    return np.asarray(picture)


def _segmented(small: npt.NDArray[np.uint8], scale: float) -> IntArray:
    """Cut an image into small regions of one look, numbered from 0."""
    num_pixels = small[..., 0].size
    min_leaf = max(round(_MIN_LEAF * num_pixels), min(20, num_pixels // 50), 1)
    return np.asarray(felzenszwalb(small, scale, sigma=_BLUR, min_size=min_leaf), np.int64)


def _enlarged(labels: IntArray, size: tuple[int, int]) -> IntArray:
    """Scale labels to the size of the image, to the nearest pixel."""
    y, x = (np.arange(n) * m // n for n, m in zip(size, labels.shape, strict=True))
    return np.asarray(labels[np.ix_(y, x)], np.int64)


def small_regions_of(image: npt.NDArray[np.uint8]) -> IntArray:
    """Cut an image (H, W, 3) uint8 RGB into the smallest regions that are merged here.

    Returns:
        The region of every pixel, numbered from 0, shape (H, W), int64.
    """
    return _enlarged(_segmented(_reduced(image), _SCALES[0]), (image.shape[0], image.shape[1]))


def _trees(image: npt.NDArray[np.uint8]) -> list[_Tree]:
    """Segment at every scale, and grow one tree with and one without colour on each."""
    lab = rgb2lab(small := _reduced(image))
    smooth_lab = ndimage.gaussian_filter(lab, (1, 1, 0))
    maps = [_segmented(small, scale) for scale in _SCALES]
    return [_grow(_leaves(m, lab, smooth_lab), colour) for m in maps for colour in (True, False)]


def _ious(trees: list[_Tree], chosen: list[IntArray]) -> Float32Array:
    """Give the IoU of every two candidates, (M, M); pixels are counted exactly up to 2^24."""
    ends = np.cumsum([0, *map(len, chosen)])
    ious = np.zeros((ends[-1], ends[-1]), np.float32)
    for i, (tree, rows) in enumerate(zip(trees, chosen, strict=True)):
        for j, (other, columns) in enumerate(zip(trees[: i + 1], chosen, strict=False)):
            shape = (len(tree.children) + 1, len(other.children) + 1)
            pairs = tree.labels * shape[1] + other.labels
            leaves = np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
            half = tree.sums(leaves.astype(np.float32))[rows]
            both = other.sums(np.ascontiguousarray(half.T))[columns].T
            iou = both / (tree.area[rows, None] + other.area[columns] - both)
            ious[ends[i] : ends[i + 1], ends[j] : ends[j + 1]] = iou
            ious[ends[j] : ends[j + 1], ends[i] : ends[i + 1]] = iou.T
    return ious


def _agreement(ious: Float32Array, tree_of: IntArray) -> Float32Array:
    """Give the mean IoU of each candidate with the most alike one of every other tree, (M,)."""
    alike = np.stack([ious[:, tree_of == t].max(axis=1, initial=0) for t in range(_NUM_TREES)])
    alike[tree_of, np.arange(len(ious))] = 0
    return np.asarray(alike.sum(axis=0) / (_NUM_TREES - 1), np.float32)


def _quality(trees: list[_Tree], chosen: list[IntArray], agreement: Float32Array) -> Float32Array:
    """Rank candidates, (M,) in [0, 1]; the exponents were tried out on scenes and photos."""
    parts = []
    for tree, rows in zip(trees, chosen, strict=True):
        area, contrast = tree.area[rows], np.asarray(tree.contrast)[rows]
        fill = area / np.prod(tree.box[rows, 2:] - tree.box[rows, :2], axis=1)
        size = (area / tree.labels.size) ** 0.2
        parts.append(np.sqrt(fill) * contrast / (contrast + _HALF_CONTRAST) * size)
    return np.asarray(np.sqrt(agreement) * np.concatenate(parts), np.float32)


def _best_first(quality: Float32Array, ious: Float32Array) -> tuple[IntArray, Float32Array]:
    """Order candidates by quality times sqrt(1 - the highest IoU with a better one), the score."""
    score, nearest, rows, scores = quality.copy(), np.zeros_like(quality), [], []
    while (score >= 0).any():
        best = int(score.argmax())
        rows.append(best)
        scores.append(score[best])
        nearest = np.maximum(nearest, ious[best])
        score = np.where((score < 0) | (nearest > _SAME), -1, quality * np.sqrt(1 - nearest))
    return np.asarray(rows, np.int64), np.asarray(scores, np.float32)


def _inner_point(mask: npt.NDArray[np.bool_], box: npt.NDArray[np.int32]) -> tuple[int, int]:
    """Give the (x, y) of the first pixel that is farthest from the edge, in king's moves."""
    inside = np.pad(mask[box[1] : box[3], box[0] : box[2]], 1)
    y, x = np.divmod(ndimage.distance_transform_cdt(inside).argmax(), inside.shape[1])
    return int(x + box[0] - 1), int(y + box[1] - 1)


def _painted(
    trees: list[_Tree], tree_of: IntArray, nodes: IntArray, size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Paint nodes of trees at the size of the image, shape (M, *size)."""
    masks = np.zeros((len(nodes), *size), np.bool_)
    for number, tree in enumerate(trees):
        labels, rows = _enlarged(tree.labels, size), np.flatnonzero(tree_of == number)
        has_leaf = tree.sums(np.eye(len(tree.children) + 1, dtype=np.bool_))
        for row in rows:
            masks[row] = has_leaf[nodes[row]][labels]
    return masks


def region_masks(image: npt.NDArray[np.uint8], options: GeneratorOptions) -> Masks:
    """Find regions that may be objects or their parts, with no network and no weights.

    Departs from Selective Search: contrast along the common border takes the place of texture, two
    segmentations and two similarities that of six colour spaces, and regions are ranked by contrast
    along the outline, agreement, fill of the box and size, not by chance.

    Args:
        image: Shape (H, W, 3), RGB, of any size from 1 x 1.
        options: Only `max_candidates` is read; None keeps all.

    Returns:
        No two masks with an IoU above 0.8, best first; none for an image of one colour.
        `predicted_iou` is a score for ranking, in [0, 1], no estimate of an IoU: it is lower the
        more a better mask shows the same. `stability_score`, in [0, 1], is the mean IoU with the
        most alike region of each of the other three trees. `point` is a pixel far inside.

    Raises:
        ValueError: If the image has another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"expected an image (H, W, 3) of uint8, got {image.shape} {image.dtype}")
    trees = _trees(image)
    chosen = [tree.candidates() for tree in trees]
    tree_of, nodes = np.repeat(np.arange(_NUM_TREES), [*map(len, chosen)]), np.concatenate(chosen)
    ious = _ious(trees, chosen)
    stability = _agreement(ious, tree_of)
    kept, score = _best_first(_quality(trees, chosen, stability), ious)
    best = kept[: options.max_candidates]
    masks = _painted(trees, tree_of[best], nodes[best], (image.shape[0], image.shape[1]))
    bits = np.packbits(masks, axis=2)
    box = boxes_of(bits, image.shape[1])
    points = [_inner_point(*pair) for pair in zip(masks, box, strict=True)]
    return masks_from_bits(
        bits,
        image.shape[1],
        predicted_iou=score[: len(best)],
        stability_score=stability[best],
        point=np.asarray(points, np.float32).reshape(-1, 2),
        num_dropped=len(kept) - len(best),
    )
