from dataclasses import replace

import pytest
import torch

from popalign_core.errors import InputError
from popalign_core.training.data import PreferenceData, draw_pairs, draw_retained


@pytest.fixture
def data() -> PreferenceData:
    """Two prompts; set pair 7 has 2 preferred and 1 dispreferred samples, pair 3 has 1 and 3. Rows are shuffled."""
    return PreferenceData(
        latents=torch.arange(7.0).view(7, 1, 1, 1),
        preferred=torch.tensor([True, False, True, False, True, False, False]),
        prompt_index=torch.tensor([1, 0, 0, 0, 1, 1, 0]),
        set_index=torch.tensor([7, 3, 3, 3, 7, 7, 3]),
        prompt_embeds=torch.zeros((2, 4, 8)),
        pooled_prompt_embeds=torch.zeros((2, 8)),
        empty_prompt_embeds=torch.zeros((1, 4, 8)),
        empty_pooled=torch.zeros((1, 8)),
        retained_latents=torch.zeros((4, 1, 1, 1)),
        retained_prompt_index=torch.tensor([1, 0, 1, 1]),
        retained_generic=torch.tensor([False, True, False, False]),
    )


def test_pairs_are_of_one_set_pair_and_the_right_sides(data: PreferenceData) -> None:
    preferred, dispreferred = draw_pairs(data, 2000, torch.Generator().manual_seed(0))
    assert bool(data.preferred[preferred].all())
    assert not bool(data.preferred[dispreferred].any())
    assert torch.equal(data.set_index[preferred], data.set_index[dispreferred])
    # set pairs are equally likely whatever their sizes, and so are the samples of a side: 500 / 500, 1000 / 3 each
    n_drawn = torch.bincount(torch.cat([preferred, dispreferred]), minlength=7).tolist()
    assert n_drawn == pytest.approx([500, 333, 1000, 333, 500, 1000, 333], abs=75)


def test_retained_kinds_are_drawn_alike(data: PreferenceData) -> None:
    rows = draw_retained(data, 1200, torch.Generator().manual_seed(0))
    # one generic image, three of identity prompts
    assert torch.bincount(rows, minlength=4).tolist() == pytest.approx([200, 600, 200, 200], abs=60)


def test_the_generator_decides(data: PreferenceData) -> None:
    first, again, other = (draw_pairs(data, 16, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert not torch.equal(torch.stack(first), torch.stack(other))


def test_bad_data_is_named(data: PreferenceData) -> None:
    with pytest.raises(InputError, match=r"latents must be .* got \(0, 1, 1, 1\)"):
        replace(data, latents=data.latents[:0])
    with pytest.raises(InputError, match=r"preferred must be \[7\] torch.bool, got \(7,\) torch.int64"):
        replace(data, preferred=data.preferred.long())
    with pytest.raises(InputError, match=r"set_index must be \[7\]"):
        replace(data, set_index=data.set_index[:6])
    with pytest.raises(InputError, match=r"set pairs \[3, 7\] have no dispreferred"):
        replace(data, preferred=torch.ones(7, dtype=torch.bool))
    with pytest.raises(InputError, match=r"set pairs \[3\] mix prompts"):
        replace(data, prompt_index=torch.tensor([1, 0, 1, 0, 1, 1, 0]))
    with pytest.raises(InputError, match="prompt_index reaches 1, but there are 1 prompts"):
        replace(data, prompt_embeds=data.prompt_embeds[:1], pooled_prompt_embeds=data.pooled_prompt_embeds[:1])
    with pytest.raises(InputError, match="retained_prompt_index reaches 2, but there are 2 prompts"):
        replace(data, retained_prompt_index=data.retained_prompt_index + 1)
    with pytest.raises(InputError, match=r"retained_generic must be \[4\] torch.bool, got \(3,\)"):
        replace(data, retained_generic=data.retained_generic[:3])
    with pytest.raises(InputError, match=r"retained_latents must be \[R, 1, 1, 1\], got \(4, 1, 1\)"):
        replace(data, retained_latents=data.retained_latents[..., 0])
    with pytest.raises(InputError, match="2 prompt_embeds but 1 pooled_prompt_embeds"):
        replace(data, pooled_prompt_embeds=data.pooled_prompt_embeds[:1])
    with pytest.raises(InputError, match=r"empty_pooled must be \(1, 8\), got \(2, 8\)"):
        replace(data, empty_pooled=data.pooled_prompt_embeds)
