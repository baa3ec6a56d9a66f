from typing import Any

import pytest
import torch
from torch import Tensor, nn

from popalign_core.config import TrainingConfig
from popalign_core.training.reference import frozen_copy, reference_weights
from popalign_core.training.trainable_weights import choose_weights


def predict(unet: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    added = {"text_embeds": torch.ones((1, 32)), "time_ids": torch.ones((1, 6))}
    latents, text = torch.randn((1, 4, 8, 8), generator=generator), torch.ones((1, 16, 64))
    output: Tensor = unet(latents, 500, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]
    return output


@pytest.fixture
def adapted(tiny_pipeline: Any) -> Any:
    """A UNet with a LoRA adapter that changes what it predicts."""
    choose_weights(tiny_pipeline.unet, TrainingConfig(lora_rank=2))
    for name, weight in tiny_pipeline.unet.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(weight, 0.1)
    return tiny_pipeline.unet


def trained(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_frozen_copy_is_the_reference() -> None:
    policy = nn.Linear(2, 2)
    frozen = frozen_copy(policy)
    before = policy.weight.detach().clone()
    nn.init.zeros_(policy.weight)
    with reference_weights(policy, frozen) as reference:
        assert torch.equal(reference.weight, before)
        assert not reference(torch.ones(1, 2)).requires_grad
    assert trained(frozen) == set()
    assert trained(policy) == {"weight", "bias"}
    assert torch.equal(policy.weight, torch.zeros(2, 2))


def test_adapter_is_off_inside_and_on_again_outside(tiny_pipeline: Any, adapted: Any) -> None:
    with_adapter, trains = predict(adapted).detach(), trained(adapted)
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trains} == {"to_q", "to_k", "to_v", "0"}
    with reference_weights(adapted, None) as reference:
        base = predict(reference)
    assert not base.requires_grad
    assert float((base - with_adapter).abs().max()) > 1e-4
    assert torch.equal(predict(adapted), with_adapter)
    assert trained(adapted) == trains
    # the base is what it was before the adapter came
    adapted.unload_lora()
    torch.testing.assert_close(predict(adapted), base)


def test_policy_is_restored_when_the_block_raises(adapted: Any) -> None:
    with_adapter, trains = predict(adapted).detach(), trained(adapted)
    with pytest.raises(KeyboardInterrupt), reference_weights(adapted, None):
        raise KeyboardInterrupt
    assert torch.equal(predict(adapted), with_adapter)
    assert trained(adapted) == trains
    assert torch.is_grad_enabled()
