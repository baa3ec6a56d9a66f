"""What a newcomer reads: every line that a run prints is ours, whatever works for it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from popalign_core.models.quiet import LOGGERS, PREFECT_CONSOLE, VARIABLES

TOLD = (
    r"dropped: .*",
    r"\d+ stages, \d+ of them in \S+",
    r"[a-z-]+(:\w+)? \d+/\d+(, \d+\.\d/s, \d+:\d\d left)?",  # a stage's progress
)
NUMBER = r"-?\d+\.\d+ \[-?\d+\.\d+, -?\d+\.\d+\]"
PRINTED = (
    r"",
    r" +base +aligned +floor",
    rf"[\w ,-]+? +{NUMBER} +{NUMBER}( +\d\.\d+)?",
    r"No clear change in fairness|(Fairer|Less fair) .*",
    r"(Gender|Race) shown: .*; the target is .*\.",
    r"(Gender|Race) discrepancy: all prompts together .*; mean over prompts .*\.",
    r"(Better|Worse|No clear change): .*\.",
    r"⚠ These figures mean nothing: with so few images .*",
    r"Report: \S+/runs/smoke/report\.html",
    r"sample: sample/sample-v\d+-[0-9a-f]{32} in \S+",
)


def popalign(*words: str) -> "subprocess.CompletedProcess[str]":
    """The command as a user's shell runs it: none of the variables that this test run has set."""
    ours = {*VARIABLES, PREFECT_CONSOLE, "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"}
    env = {name: value for name, value in os.environ.items() if name not in ours}
    code = "from flows.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def strange(text: str, shapes: tuple[str, ...]) -> list[str]:
    """The lines that have none of the shapes."""
    return [line for line in text.splitlines() if not re.fullmatch("|".join(f"(?:{shape})" for shape in shapes), line)]


@pytest.mark.timeout(600)
def test_a_first_run_prints_progress_and_the_verdict_only(tmp_path: Path) -> None:
    done = popalign("run", "--preset", "smoke", "--root", str(tmp_path))
    assert strange(done.stderr, TOLD) == []
    assert strange(done.stdout, PRINTED) == []
    assert {"sample", "train", "report"} <= {line.split()[0] for line in done.stderr.splitlines()}
    assert "Report: " in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "runner",
    ["processes", pytest.param("dask", marks=pytest.mark.slow), pytest.param("ray", marks=pytest.mark.slow)],
)
def test_workers_print_nothing(runner: str, tmp_path: Path) -> None:
    pytest.importorskip({"dask": "prefect_dask", "ray": "prefect_ray"}.get(runner, "prefect"))
    settings = (f"runtime.runner={runner}", "runtime.n_workers=2", "runtime.shard_size=32")
    options = [word for setting in settings for word in ("--set", setting)]
    done = popalign("stage", "sample", "--preset", "smoke", "--root", str(tmp_path), *options)
    assert strange(done.stderr, TOLD) == []
    assert strange(done.stdout, PRINTED) == []
    assert "sample 58/58" in done.stderr


AS_WITH_AVX512 = """
import sys
from importlib.abc import MetaPathFinder

class Hook(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "bitsandbytes.backends.cpu.ops":
            sys.modules["bitsandbytes.functional"].has_avx512bf16 = lambda: True

sys.meta_path.insert(0, Hook())
{first}
import bitsandbytes
"""


@pytest.mark.slow
def test_bitsandbytes_says_nothing_of_the_kernels_it_lacks() -> None:
    """It does where the processor has AVX-512 and the package `kernels` is missing."""
    pytest.importorskip("bitsandbytes")
    said = {}
    for first in ("import tasks", ""):
        code = AS_WITH_AVX512.format(first=first)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
        said[first] = done.stderr
    assert "Failed to load CPU gemm_4bit_forward" in said[""]
    assert said["import tasks"] == ""


def test_errors_and_our_own_warnings_are_still_printed() -> None:
    code = (
        "import logging, tasks\n"
        "logging.getLogger('popalign_core.sampling.sampler').warning('ours')\n"
        f"for name in {LOGGERS!r}:\n"
        "    logging.getLogger(name).warning('theirs')\n"
        "    logging.getLogger(name + '.part').error(f'error of {name}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr.splitlines() == ["ours", *(f"error of {name}" for name in LOGGERS)]


def test_a_variable_that_is_set_already_wins() -> None:
    code = "import os, tasks; print(os.environ['TRANSFORMERS_VERBOSITY'], os.environ['TQDM_DISABLE'])"
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    env["TRANSFORMERS_VERBOSITY"] = "info"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split() == ["info", "1"]
