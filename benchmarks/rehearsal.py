"""A rehearsal: a model of a published one's layout with random weights goes through what users do with the real one.

Every stage is the command that a user types, in a process of its own: the weights are written, pairs are imported as
Pick-a-Pic has them, a LoRA is trained on them, the model samples, its images are read and scored, and the trained
model is evaluated. What comes out shows nothing; that it comes out, and what it takes, is the point.

    python benchmarks/rehearsal.py --family sdxl --scale small
    python benchmarks/rehearsal.py --family sdxl --scale full --px 1024 --steps 50 --device cuda --folder rehearsal

`peak memory` is the largest resident set of the stage's process, with the pages of weights that are mapped from the
disk; of a GPU's memory it says nothing. `disk` is what the stage left behind. `--scale full` is the published size
(SDXL: 2.57 billion parameters in the UNet, 6.9 GB on the disk in float16); `quarter` has a quarter of the widths and
all layers; `small` a tenth of the widths and an eighth of the layers. With `--folder` a killed rehearsal goes on where
it was, as its commands do.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
POPALIGN = "import popalign_core.command as command; command.start()"
FAMILIES, SCALES = ("sdxl", "sd15", "sd3", "flux"), ("full", "quarter", "small")
FLOW_FAMILIES = ("sd3", "flux")
PARAMETERS = "parameters.json"
"""How many each network has, written when all weights are there."""
_MIB = 2**20


@dataclass(frozen=True)
class Measured:
    """What a stage took.

    Attributes:
        stage: In words.
        seconds: From the start of its process to its end.
        peak_bytes: Its largest resident set.
        disk_bytes: What it left below the folder.
    """

    stage: str
    seconds: float
    peak_bytes: int
    disk_bytes: int


def rehearse(options: argparse.Namespace, folder: Path) -> Iterator[Measured]:
    """Run the stages, one after another.

    Args:
        options: Of the command line.
        folder: That holds model, pairs and store.
    """
    model, config = folder / "model", folder / "rehearsal.json"
    config.write_text(json.dumps(make_config(options, model), indent=1), encoding="utf-8")
    make = [str(Path(__file__).resolve()), "--make", str(model), "--family", options.family, "--scale", options.scale]
    yield measure("write the weights", make, folder)[0]
    write_pairs(folder / "pairs.parquet", options.pairs, options.px)
    given = ["--config", str(config), "--root", str(folder / "store"), "--set", f"runtime.device={options.device}"]
    for setting in options.set:
        given += ["--set", setting]

    def run(stage: str, *words: str) -> tuple[Measured, str]:
        return measure(stage, ["-c", POPALIGN, *words, *given], folder)

    imported, key = run("import pairs", "import", "pairs", str(folder / "pairs.parquet"))
    yield imported
    steps = f"train a LoRA, {options.train_steps} step(s)"
    yield run(steps, "train", key.strip(), "--name", "trained")[0]
    yield run(f"sample {options.images + 3} images", "stage", "sample-eval:base")[0]
    yield run("read attributes", "stage", "attributes-eval:base")[0]
    yield run("score", "stage", "scores:base")[0]
    trained = str(folder / "store" / "runs" / "trained" / "model")
    yield run("evaluate the trained model: sample, read, score", "evaluate", trained)[0]


def make_config(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """The configuration of all stages: one occupation, two genders, one thing."""
    by_flow = options.family in FLOW_FAMILIES
    return {
        "preset": "smoke",
        "axes": ["gender"],
        "model": {"name": str(model), "dtype": options.dtype},
        "prompts": {
            "train_subjects": ["doctor"],
            "eval_subjects": ["judge"],
            "generic_subjects": ["tree"],
            "retained_subjects": [],
        },
        "sampling": {
            "n_steps": options.steps,
            "guidance_scale": 3.5 if by_flow else 6.5,
            "scheduler": "euler",
            "width": options.px,
            "height": options.px,
        },
        "training": {
            "objective": "diffusion-dpo",
            "lora_rank": 8,
            "n_steps": options.train_steps,
            "n_warmup_steps": 0,
            "n_pairs": options.train_pairs,
            "checkpoint_every": max(1, options.train_steps),
            "retention": 0,
        },
        "evaluation": {"n_neutral": options.images, "n_specific": 1, "n_generic": 1},
    }


def measure(stage: str, words: list[str], folder: Path) -> tuple[Measured, str]:
    """Run Python in a child process.

    Args:
        stage: In words.
        words: Its arguments.
        folder: Whose growth is its disk.

    Returns:
        What it took, and what it printed.

    Raises:
        SystemExit: When the child fails.
    """
    before, start = size_of(folder), time.perf_counter()
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as wrong:
        child = subprocess.Popen([sys.executable, *words], cwd=REPOSITORY, stdout=said, stderr=wrong)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        said.seek(0)
        wrong.seek(0)
        if child.returncode:
            told = wrong.read().decode(errors="replace")[-4000:]
            raise SystemExit(f"stage {stage!r} ended with {child.returncode} after {seconds:.0f} s:\n{told}")
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB but on macOS
        peak = usage.ru_maxrss * unit
        return Measured(stage, seconds, peak, size_of(folder) - before), said.read().decode()


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def write_pairs(path: Path, n_pairs: int, px: int) -> None:
    """Pairs of noise in Pick-a-Pic's form, the lighter one preferred."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    rng = np.random.default_rng(0)

    def encoded(level: int) -> bytes:
        sink = io.BytesIO()
        pixels = rng.integers(level - 25, level + 25, (px, px, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(sink, format="JPEG")
        return sink.getvalue()

    rows = [
        {"caption": f"a photo of a judge, {number}", "jpg_0": encoded(200), "jpg_1": encoded(60), "label_0": 1.0}
        for number in range(n_pairs)
    ]
    pd.DataFrame(rows).to_parquet(path)


def table(options: argparse.Namespace, parameters: dict[str, int], rows: list[Measured]) -> str:
    """What was measured, in Markdown."""
    sizes = ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in parameters.items())
    lines = [
        f"{options.family}, scale {options.scale}, {options.px} px, {options.steps} sampling step(s), {options.dtype} "
        f"on {options.device}; parameters: {sizes}.",
        "",
        "| stage | seconds | peak memory, MiB | disk, MiB |",
        "|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.stage} | {row.seconds:.1f} | {row.peak_bytes / _MIB:,.0f} | {row.disk_bytes / _MIB:,.1f} |"
        )
    lines.append(
        f"| all | {sum(row.seconds for row in rows):.1f} | {max(row.peak_bytes for row in rows) / _MIB:,.0f} | "
        f"{sum(row.disk_bytes for row in rows) / _MIB:,.1f} |"
    )
    return "\n".join(lines) + "\n"


def parse_options(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, default="sdxl")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--px", type=int, default=128, help="of images and pairs; the family's own is 1024 or 512")
    parser.add_argument("--steps", type=int, default=2, help="of sampling")
    parser.add_argument("--images", type=int, default=2, help="of the neutral prompt; three more name who is shown")
    parser.add_argument("--pairs", type=int, default=4, help="imported")
    parser.add_argument("--train-steps", type=int, default=2)
    parser.add_argument("--train-pairs", type=int, default=1, help="a step")
    parser.add_argument("--dtype", default="bfloat16", help="float32, bfloat16 or float16; the files are in float16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as popalign takes it")
    parser.add_argument("--folder", type=Path, help="keeps model and store there; else all is deleted at the end")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main() -> None:
    """Run and print the table."""
    options = parse_options()
    if options.make is not None:
        from published_layouts import SCALES as sizes
        from published_layouts import write_model

        done = options.make.with_name(PARAMETERS)  # beside the model, which is known by all that lies in its folder
        if not done.is_file():
            options.make.mkdir(parents=True, exist_ok=True)
            parameters = write_model(options.family, sizes[options.scale], options.make)
            done.write_text(json.dumps(parameters), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for row in rehearse(options, folder):
            sys.stderr.write(f"{row.stage}: {row.seconds:.1f} s\n")
            rows.append(row)
        parameters = json.loads((folder / PARAMETERS).read_text(encoding="utf-8"))
        sys.stdout.write(table(options, parameters, rows))


if __name__ == "__main__":
    main()
