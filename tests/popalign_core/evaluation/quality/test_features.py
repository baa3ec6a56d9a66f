"""Inception's features from a TorchScript file, called as StyleGAN's FID code calls it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from scorer_files import pictures
from torch import Tensor, nn

from popalign_core.errors import InputError, MissingWeightsError
from popalign_core.evaluation.quality.features import load_inception


class Features(nn.Module):
    """Means of the colours, if asked for features; else classes, as the published file."""

    def forward(self, pixels: Tensor, return_features: bool = False) -> Tensor:
        if return_features:
            return pixels.float().mean((2, 3))
        return torch.zeros(len(pixels), 1008)


class Broken(nn.Module):
    """Divides by zero."""

    def forward(self, pixels: Tensor, return_features: bool = False) -> Tensor:
        return pixels.float().mean((2, 3)) * float("nan")


class Other(nn.Module):
    """A network of something else."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels


@pytest.fixture
def script(tmp_path: Path) -> Callable[[nn.Module], Path]:
    def save(network: nn.Module) -> Path:
        path = tmp_path / "inception-2015-12-05.pt"
        torch.jit.script(network).save(str(path))
        return path

    return save


pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of writing the test's files


def test_features_are_asked_for_with_bytes(script: Callable[[nn.Module], Path]) -> None:
    shown = pictures(3)
    found = load_inception(script(Features()))(shown)
    expected = torch.stack([torch.from_numpy(picture).float().mean((0, 1)) for picture in shown])
    torch.testing.assert_close(found, expected)


def test_what_is_no_such_file_is_refused(script: Callable[[nn.Module], Path], tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"curl -L --output .*inception-2015-12-05\.pt https://nvlabs"):
        load_inception(tmp_path / "inception-2015-12-05.pt")
    with pytest.raises(InputError, match="does not take images"):
        load_inception(script(Other()))(pictures(1))
    with pytest.raises(InputError, match=r"gave no finite features .* but \(2, 3\)"):
        load_inception(script(Broken()))(pictures(2))
    path = script(Features())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="is not TorchScript, or is truncated"):
        load_inception(path)
