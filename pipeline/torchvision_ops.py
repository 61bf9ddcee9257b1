"""Make torchvision importable beside a torch that its compiled operators do not match.

PyPI's torchvision wheel is built against PyPI's CUDA torch. Beside a CPU-only torch its
extension does not load, and `import torchvision` fails with `operator torchvision::nms does
not exist`, because torchvision registers fake kernels for two operators that nobody defined.
segment-anything and transformers' vision models import torchvision, so they fail with it.

Declaring the schemas of the two operators first lets the import pass. They have no kernel then:
calling `torchvision.ops.nms` still raises, and this project does not call it. Where torchvision is
whole, this module leaves everything as it is.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_LIBRARY: list[torch.library.Library] = []  # a Library takes its definitions back when collected


def compiled_ops_load() -> bool:
    """Tell whether torchvision's compiled operators can be loaded beside this torch."""
    spec = importlib.util.find_spec("torchvision")  # finds, does not import
    if spec is None or spec.origin is None:
        return True
    extension = next(Path(spec.origin).parent.glob("_C*.so"), None)
    if extension is None:
        return False
    try:
        torch.ops.load_library(str(extension))
    except OSError:
        return False
    return True


def ensure_importable() -> None:
    """Declare the two operators if nothing else does; call before importing torchvision.

    Idempotent, and without effect where torchvision's own operators load.
    """
    if _LIBRARY or hasattr(torch.ops.torchvision, "nms") or compiled_ops_load():
        return
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS.values():
        library.define(schema)
    _LIBRARY.append(library)
