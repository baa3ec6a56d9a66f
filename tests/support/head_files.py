"""DeepFace's head weights as files of its own format, with random numbers."""

import torch

from popalign_core.attributes.weights import HEAD_WEIGHTS, prepare, weights_place


def write_heads(*, shared_trunk: bool) -> None:
    """Three files of 512 MB at `weights_place`; with one trunk, as the published training left them, or one each."""
    prepare()
    from deepface.models.demography.pytorch import Age, Gender, Race

    torch.manual_seed(0)
    modules = {"gender": Gender, "race": Race, "age": Age}
    trunk: dict[str, torch.Tensor] = {}
    for axis, module in modules.items():
        state = module.base_model().state_dict()
        if shared_trunk:
            trunk = trunk or {name: value for name, value in state.items() if name.startswith("backbone.conv")}
            state |= trunk
        # torch's default weights are too small for the classes of two pictures to differ
        state["predictions.weight"] *= 40
        place = weights_place(HEAD_WEIGHTS[axis][0])
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, place)
