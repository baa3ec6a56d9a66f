"""DeepFace's head weights as files of its own format, with random numbers."""

import torch

from popalign_core.attributes.deepface_files import HEAD_WEIGHTS, prepare, weights_place


def write_heads(*, shared_trunk: bool) -> None:
    """Three files of 512 MB at `weights_place`; with one trunk, as training with it frozen leaves them, or one each."""
    prepare()
    from deepface.models.demography.pytorch import Age, Gender, Race

    torch.manual_seed(0)
    modules = {"gender": Gender, "race": Race, "age": Age}
    trunk: dict[str, torch.Tensor] = {}
    for axis, module in modules.items():
        network = module.base_model()
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):  # torch's default lets every picture end in the same features
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        state = network.state_dict()
        if shared_trunk:
            trunk = trunk or {name: value for name, value in state.items() if name.startswith("backbone.conv")}
            state |= trunk
        place = weights_place(HEAD_WEIGHTS[axis][0])
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, place)
