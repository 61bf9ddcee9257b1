import numpy as np
import pytest
import torch

from pipeline.sam.tiny import WEIGHTS, build_vit_tiny_demo, load_vit_tiny_demo
from pipeline.sam.tiny_losses import initialize


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
