"""What a stage may read is what its key is made of: changed leaf by leaf, and watched through a whole run."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from leaves import changes, differing, dotted, leaves

from flows.plan.execution import call_directly
from flows.plan.planning import plan_run
from flows.plan.runs import run_pipeline
from popalign_core.config import Frozen, PipelineConfig, RuntimeConfig, SamplingConfig, merge_documents, parse_config
from popalign_core.config.sweeps import SweepPoint
from popalign_core.errors import PopAlignError
from storage.store import ArtifactRef, Build
from tasks.common.stage_object import Inputs, Progress, Request, Stage, keep_fields
from tasks.stages.attributes import read_attributes
from tasks.stages.benchmarks import add_benchmarks
from tasks.stages.calibration import calibrate_classifier
from tasks.stages.comparison import compare_statistics
from tasks.stages.encoding import EncodingView
from tasks.stages.evaluate import evaluate_system
from tasks.stages.identities import add_identities
from tasks.stages.imported import ImportedView, import_images
from tasks.stages.page_view import PageView
from tasks.stages.pairs import import_pairs
from tasks.stages.preferences import build_preferences
from tasks.stages.prompts import write_prompts
from tasks.stages.report import ReportView, write_report
from tasks.stages.sample import sample_images
from tasks.stages.scores import score_images
from tasks.stages.sweep import tabulate_sweep
from tasks.stages.train import train_model

PROMPTS, NAMED, IMAGES, READ, SCORED, SETS, TRAINED = (
    ArtifactRef(stage, f"{stage}-key")
    for stage in ("identities", "benchmarks", "sample", "attributes", "scores", "preferences", "train")
)
MEASURED = {"prompts": NAMED, "sample": IMAGES}
TRAINED_ON = {"preferences": SETS, "sample": IMAGES}
IN_ROUND = {"round_sample": IMAGES, "round_attributes": READ, "before": TRAINED}


def round_of(config: PipelineConfig) -> dict[str, int]:
    """Offline a training has no number."""
    return {"number": 1} if config.training.is_on_policy else {}


Ask = Callable[[PipelineConfig], Request[Any] | ArtifactRef]
ASKED: dict[str, Ask] = {
    "prompts": lambda c: write_prompts.request(c),
    "identities": lambda c: add_identities.request(c, prompts=PROMPTS),
    "benchmarks": lambda c: add_benchmarks.request(c, prompts=PROMPTS),
    "sample": lambda c: sample_images.request(c, prompts=PROMPTS, purpose="preferences"),
    "sample-eval": lambda c: sample_images.request(c, prompts=NAMED, purpose="evaluation"),
    "sample-trained": lambda c: sample_images.request(c, prompts=NAMED, model=TRAINED, purpose="evaluation"),
    "sample-round": lambda c: sample_images.request(c, prompts=PROMPTS, purpose="round", number=2),
    "attributes": lambda c: read_attributes.request(c, prompts=PROMPTS, sample=IMAGES),
    "attributes-round": lambda c: read_attributes.request(c, prompts=PROMPTS, sample=IMAGES, is_round=True),
    "attributes-eval": lambda c: read_attributes.request(c, **MEASURED),
    "calibration": lambda c: calibrate_classifier.request(c, prompts=PROMPTS, sample=IMAGES, attributes=READ),
    "preferences": lambda c: build_preferences.request(c, prompts=PROMPTS, sample=IMAGES, attributes=READ),
    "train": lambda c: train_model.request(c, **TRAINED_ON, prompts=PROMPTS, attributes=READ, **round_of(c)),
    "train-pairs": lambda c: train_model.request(c, **TRAINED_ON, **round_of(c)),
    "train-started": lambda c: train_model.request(c, **TRAINED_ON, attributes=READ, start=TRAINED, **round_of(c)),
    "train-round": lambda c: train_model.request(c, **TRAINED_ON, attributes=READ, **IN_ROUND, number=2),
    "scores": lambda c: score_images.request(c, **MEASURED),
    "evaluate": lambda c: evaluate_system.request(c, **MEASURED, attributes=READ, scores=SCORED, system="base"),
    "report": lambda c: write_report.ask(ReportView.of(c, {}), {"train": TRAINED}),
    "comparison": lambda c: compare_statistics.request(c, prompts=NAMED, systems=("base",), n_seeds=1, scale=1.0),
    "sweep": lambda c: tabulate_sweep.request(c, comparison=IMAGES, points=[POINT], failed={}),
    "pairs": lambda c: import_pairs.ask(EncodingView.of(c, []), {}),
    "imported": lambda c: import_images.ask(ImportedView(sources=(), sampling=size_of(c)), {"prompts": NAMED}),
}
"""Every stage, and those that see other parts of the configuration with other inputs once more."""
POINT = SweepPoint("a", "base", "training.beta", "20", 0)
NOT_CHANGED = {
    "*.kind": "says which other fields there are",
    "attributes.classifiers": "empty: the other configuration has some, as with the next three",
    "evaluation.scorers": "",
    "prompts.benchmarks": "",
    "systems": "",
    "sampling.sdedit": "None: the other configuration has one",
    "attributes.classifiers.*.axes": "of labels by people: no other axis is valid",
    "attributes.classifiers.zero.architecture": "of open-clip alone",
    "axes.1.name": "the benchmark names it",
    "model.storage": "training refuses it: see test_requests",
    "model.vae": "None: a folder that is there; its content is in the hash (test_replaced_parts), as with the next",
    "model.loras": "",
    "evaluation.second_classifier": "names a classifier that is described",
    "systems.*.aligned": "excludes what the systems change",
    "systems.*.images": "excludes what the systems change",
}
"""Leaves of which no other value is valid, and why."""
SHOWN_ALONE = {
    "evaluation.readings*": "a node of its own has it for its attributes",
    "systems.*": "a node of its own has what a system changes",
    "attributes.classifiers.idle.*": "does not read",
    "axes.1.phrase": "no prompt varies over the axis",
    "model.revision": "a folder has none, and a hub id is another test's",
}
"""Leaves that only pages see, since they print the whole configuration, and why."""


def size_of(config: PipelineConfig) -> SamplingConfig:
    return keep_fields(config.sampling, "width", "height")


@pytest.fixture
def files(tmp_path: Path, tiny_weights: Path) -> Path:
    """All that a configuration may name; keys look at the content alone, so that any content will do."""
    folder = tmp_path / "files"
    for name in (
        "layouts/a.png",
        "denoiser/config.json",
        "labels.csv",
        "things.txt",
        "network.onnx",
        "lora.safetensors",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a house"}\n' if path.suffix == ".json" else "a house\na tree\n")
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (folder / "checker").mkdir(exist_ok=True)
        (folder / "checker" / name).write_text("{}")
    for name in ("hps.pt", "aesthetics.pth", "reward.pt", "inception.pt", "open.pt"):
        (folder / name).write_text(name)
    shutil.copytree(tiny_weights / "clip", folder / "clip")
    shutil.copytree(tiny_weights / "pipeline", folder / "pipeline")
    return folder


def laid_over(config: PipelineConfig, **sections: Any) -> PipelineConfig:
    return parse_config(merge_documents(config.model_dump(mode="json"), sections))


def plain(config: PipelineConfig, files: Path) -> PipelineConfig:
    return laid_over(
        config,
        model={"name": str(files / "pipeline")},
        sampling={"scheduler": "ddim", "eta": 0.5},
        preferences={"strategy": "human", "curated": "curated-v1-key"},
        training={"probe": {"every": 2}},
    )


def rich(config: PipelineConfig, files: Path) -> PipelineConfig:
    """With nearly every part that may be left out."""
    axes = [
        {
            "name": "gender",
            "classes": ["male", "female"],
            "words": {"male": "manly"},
            "phrase": "{subject} who is {word}",
            "target": {"male": 0.25, "female": 0.75},
        },
        {
            "name": "age",
            "classes": ["young", "old"],
            "words": {"young": "youthful"},
            "target": {"young": 0.4, "old": 0.6},
            "of": "picture",
            "only_measured": True,
        },
    ]
    maps = {"gender": {"one": "male", "two": "female"}}
    return laid_over(
        config,
        axes=axes,
        model={
            "name": str(files / "pipeline"),
            "denoiser": str(files / "denoiser"),
            "lora": str(files / "lora.safetensors"),
            "lora_scale": 0.5,
        },
        prompts={
            "source": "llm",
            "n_train": 5,
            "llm": {"themes": ["law", "arts"], "requests_per_minute": 9, "max_tokens_total": 900},
            "train_lists": [str(files / "things.txt")],
            "eval_lists": ["couples"],
            "generic_lists": [str(files / "things.txt")],
            "retained_lists": [str(files / "things.txt")],
            "one_person": False,
            "benchmarks": {"aged": {"list": str(files / "things.txt"), "axes": ["age"], "n_images": 2}},
        },
        sampling={
            "guidance_interval": [0.2, 5.0],
            "dynamic_cfg": {},
            "cads": {},
            "sdedit": {"folder": str(files / "layouts")},
            "fair_diffusion": {"subjects": ["judge"]},
            "safety_checker": str(files / "checker"),
            "timestep_spacing": "trailing",
        },
        attributes={
            "classifier": ["labels", "network", "zero"],
            "age_bands": {"young": 0, "old": 50},
            "classifiers": {
                "labels": {"kind": "people", "path": str(files / "labels.csv"), "axes": {"gender": ["male", "female"]}},
                "network": {
                    "kind": "onnx",
                    "path": str(files / "network.onnx"),
                    "axes": maps,
                    "labels": ["one", "two"],
                },
                "zero": {"kind": "clip", "path": str(files / "clip"), "axes": {"gender": {"male": "a man"}}},
                "idle": {"kind": "people", "path": "nowhere", "axes": {"gender": ["male", "female"]}},
            },
        },
        training={
            "probe": {"stop_discrepancy": 0.1, "stop_clip_drop": 0.1},
            "normaliser_bins": 2,
            "normaliser": "batch",
            "lora_rank": 2,
            "lora_targets": ["to_q"],
            "timesteps": [1, 5],
        },
        evaluation={
            "second_classifier": "idle",
            "readings": {"sure": {"min_probability": 0.8}},
            "scorers": {
                "clip_score": {"kind": "clip", "path": str(files / "clip")},
                "open": {"kind": "open-clip", "path": str(files / "open.pt"), "architecture": "ViT-B-32"},
                "hps": {"kind": "hps", "path": str(files / "hps.pt"), "tokenizer": str(files / "clip")},
                "pick": {"kind": "pick-score", "path": str(files / "clip"), "processor": str(files / "clip")},
                "aesthetics": {
                    "kind": "aesthetics",
                    "path": str(files / "aesthetics.pth"),
                    "clip": str(files / "clip"),
                },
                "reward": {"kind": "image-reward", "path": str(files / "reward.pt"), "tokenizer": str(files / "clip")},
                "inception": {"kind": "inception", "path": str(files / "inception.pt")},
            },
        },
        systems={"more": {"training": {"objective": "sft"}, "start": "other"}, "other": {"training": {"beta": 2}}},
    )


Requests = dict[str, Request[Any] | ArtifactRef]


def ask_all(config: PipelineConfig) -> Requests | None:
    """What every stage is asked for; None when a file is missing or a setting is refused."""
    try:
        return {name: ask(config) for name, ask in ASKED.items()}
    except PopAlignError:
        return None


def is_among(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, name) or fnmatchcase(path, f"{name}.*") for name in patterns)


def compare(before: Requests, after: Requests) -> tuple[bool, list[str]]:
    """Whether any view but a page's differs, and the stages whose view and key do not change together."""
    is_seen, faults = False, []
    for name, one in before.items():
        other = after[name]
        if isinstance(one, ArtifactRef) or isinstance(other, ArtifactRef):
            is_seen |= one != other
            continue
        found = set(differing(one.view.model_dump(), other.view.model_dump()))
        hashed = {path for path in found if not is_among(path, one.view.unhashed())}
        if bool(hashed) != (one.payload != other.payload):
            faults.append(f"{name}: {sorted(found) or 'in the key and not in the view'}")
        is_seen |= bool(found) and not isinstance(one.view, PageView)
    return is_seen, faults


def test_a_leaf_changes_the_key_of_a_stage_if_and_only_if_it_is_in_its_view(
    tiny_config: PipelineConfig, files: Path, tmp_path: Path
) -> None:
    """All leaves of two configurations that between them have every part."""
    changed, unchanged, seen, faulty = set[str](), set[str](), set[str](), {}
    for config in (plain(tiny_config, files), rich(tiny_config, files)):
        before = ask_all(config)
        assert before is not None
        for path in leaves(config):
            asked = (ask_all(other) for other in changes(config, path, tmp_path / "changed"))
            after = next((requests for requests in asked if requests is not None), None)
            (unchanged if after is None else changed).add(dotted(path))
            if after is not None:
                is_seen, faults = compare(before, after)
                faulty |= {dotted(path): faults} if faults else {}
                seen |= {dotted(path)} if is_seen else set()
    assert faulty == {}
    assert [path for path in sorted(unchanged - changed) if not is_among(path, NOT_CHANGED)] == []
    assert [path for path in sorted(changed - seen) if not is_among(path, SHOWN_ALONE)] == []
    assert len(changed) > 170


def test_the_same_files_elsewhere_leave_every_key(tiny_config: PipelineConfig, files: Path, tmp_path: Path) -> None:
    """Pages print paths, and are the same page whoever made it."""
    shutil.copytree(files, tmp_path / "elsewhere")
    here, there = (rich(tiny_config, folder) for folder in (files, tmp_path / "elsewhere"))
    before, after = ask_all(here), ask_all(there)
    assert before is not None
    assert here != there
    assert before == after


def test_the_revision_of_a_hub_id_is_in_every_key_that_its_weights_are_in(tiny_config: PipelineConfig) -> None:
    one, other = (laid_over(tiny_config, model={"name": "owner/name", "revision": commit}) for commit in ("0a", "1b"))
    before, after = ask_all(one), ask_all(other)
    assert before is not None
    assert after is not None
    differ = {name for name, request in before.items() if request != after[name]}
    rounds = {"sample-round", "train-round"}
    assert differ == rounds | {
        *("sample", "sample-eval", "train", "train-pairs", "pairs", "report", "comparison", "sweep")
    }


@contextmanager
def watching(monkeypatch: pytest.MonkeyPatch, on_read: Callable[[Request[Any], type, str], None]) -> Iterator[None]:
    """Tell of every field of the configuration that a stage reads while it makes its artifact, by model and name."""
    making: list[Request[Any]] = []
    make = Stage.make

    def watched_make(stage: Stage[Any], request: Request[Any], *arguments: Any) -> ArtifactRef:
        def fill(view: Any, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
            making.append(request)
            stage.fill(view, inputs, build, runtime, on_progress)
            making.pop()

        return make(replace(stage, fill=fill), request, *arguments)

    def read(model: Frozen, name: str) -> Any:
        if making and name in type(model).model_fields and not isinstance(model, RuntimeConfig):
            on_read(making[-1], type(model), name)
        return object.__getattribute__(model, name)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "make", watched_make)
        patch.setattr(Frozen, "__getattribute__", read)
        yield


def fields_of(model: Any) -> Iterator[str]:
    """Every field of a model and of those in it, as `Model.field`; of those that hold models theirs."""
    if isinstance(model, Frozen):
        for name in type(model).model_fields:
            held = list(fields_of(getattr(model, name)))
            yield from held or [f"{type(model).__name__}.{name}"]
    elif isinstance(model, Mapping):
        for each in model.values():
            yield from fields_of(each)
    elif isinstance(model, tuple):
        for each in model:
            yield from fields_of(each)


UNREAD = {
    "AttributesConfig.age_bands": "of deepface",
    "AttributesConfig.classifiers": "the run has none",
    "AttributesConfig.detector_backend": "of deepface",
    "AttributesConfig.several_faces": "the run's classifier sees one face at most",
    "Axis.only_measured": "decides which axes are in a view",
    "EvaluationConfig.n_generic": "how many images there are decides the sample; the next two too",
    "EvaluationConfig.n_neutral": "",
    "EvaluationConfig.n_specific": "",
    "EvaluationConfig.readings": "at its default in every view",
    "EvaluationConfig.second_classifier": "at its default in every view",
    "PopulationConfig.advantage": "of rounds and the objectives on advantages; the others too",
    "PopulationConfig.clip": "",
    "PopulationConfig.faceless": "",
    "PopulationConfig.n_images": "",
    "PopulationConfig.round_batch": "",
    "PopulationConfig.smoothing": "",
    "PopulationConfig.target_of": "",
    "PreferencesConfig.mcmc_steps": "of strategy mcmc",
    "PreferencesConfig.n_neutral": "how many images there are decides the sample; the next two too",
    "PreferencesConfig.n_retained": "",
    "PreferencesConfig.n_specific": "",
    "PromptsConfig.benchmarks": "the run has none",
    "PromptsConfig.llm": "of source llm",
    "PromptsConfig.n_train": "of source llm",
    "SampleView.is_trained": "read by the key alone",
    "SamplingConfig.eta": "of ddim",
    "TrainingConfig.alpha": "of a normaliser that the run does not have",
    "TrainingConfig.kl_weight": "of cgm-relax",
    "TrainingConfig.lora_targets": "the run has no LoRA",
    "TrainingConfig.normaliser_decay": "of a normaliser that the run does not have",
}
"""In some key, and never read in the run: why."""


def test_a_run_reads_what_is_in_its_views_and_nothing_else(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, strays = set[str](), set[str]()

    def on_read(request: Request[Any], model: type, name: str) -> None:
        if isinstance(request.view, PageView):
            return  # pages show the whole configuration
        reads.add(f"{model.__name__}.{name}")
        if model is PipelineConfig:
            strays.add(f"{request.stage.name} reads {name}")

    config = laid_over(tiny_config, training={"probe": {"every": 2}})
    planned = plan_run(config, tiny_runtime)
    with watching(monkeypatch, on_read):
        run_pipeline(config, tiny_runtime, "watched", call=call_directly(), planned=planned)
    views = [node.request.view for node in planned if node.request is not None]
    in_views = {field for view in views if not isinstance(view, PageView) for field in fields_of(view)}
    assert strays == set()
    assert in_views - reads == UNREAD.keys()
