import numpy as np
import pytest
import torch

from pipeline.sam.tiny import WEIGHTS, build_vit_tiny_demo, load_vit_tiny_demo
from pipeline.sam.tiny_losses import initialize
from pipeline.torchvision_ops import ensure_importable

ensure_importable()

from segment_anything.modeling import (  # noqa: E402 - imports torchvision
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Several threads wait on each other where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sam():
    """The shipped small SAM."""
    assert WEIGHTS.exists()
    return load_vit_tiny_demo()


@pytest.fixture(scope="session")
def random_sam():
    """The small SAM with random weights, spread so that its masks vary."""
    torch.manual_seed(0)
    sam = build_vit_tiny_demo()
    initialize(sam)
    with torch.no_grad():
        for value in sam.parameters():
            value += 0.05 * torch.randn_like(value)
        for network in sam.mask_decoder.output_hypernetworks_mlps:
            network.layers[-1].weight *= 20
        sam.mask_decoder.iou_prediction_head.layers[-1].bias.fill_(0.7)
    return sam


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def original_sam():
    """segment-anything's own classes without any of ours, small, with random weights."""
    torch.manual_seed(1)
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=128,
            patch_size=8,
            embed_dim=32,
            depth=2,
            num_heads=2,
            out_chans=32,
            use_rel_pos=True,
            window_size=7,
            global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=32,
            image_embedding_size=(16, 16),
            input_image_size=(128, 128),
            mask_in_chans=4,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=4),
            transformer_dim=32,
        ),
    ).eval()
    with torch.no_grad():
        for value in sam.parameters():
            value += 0.1 * torch.randn_like(value)
        for network in sam.mask_decoder.output_hypernetworks_mlps:
            network.layers[-1].weight *= 400
        sam.mask_decoder.iou_prediction_head.layers[-1].weight *= 0.1
        sam.mask_decoder.iou_prediction_head.layers[-1].bias.fill_(0.6)
    return sam
