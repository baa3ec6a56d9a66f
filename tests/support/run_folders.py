"""Folders of `runs/` as the pipeline leaves them, without a pipeline."""

from collections.abc import Mapping, Sequence

from storage.store import ArtifactRef, Store

CARD = "## A run\n\n**✔ Fairer on gender**\n\n- **Gender shown:** male 80% → 52%.\n"
PAGE = "<!DOCTYPE html><title>a report</title><style>h1 { color: rgb(1, 2, 3) }</style><h1>Report</h1>\n"
DIGITS = "0123456789abcdef0123456789abcdef"


def artifact(stage: str) -> ArtifactRef:
    return ArtifactRef(stage, f"{stage}-v1-{DIGITS}")


def put_run(
    store: Store, name: str, nodes: Sequence[str], files: Mapping[str, str] | None = None, *, is_done: bool = True
) -> None:
    """A run of some nodes; its files by name, a report with its card when not given."""
    folder, refs = store.run_folder(name), [artifact(node.partition(":")[0]) for node in nodes]
    folder.reserve(refs)
    for file, text in ({"report.html": PAGE, "report.md": CARD} if files is None else files).items():
        folder.write_text(file, text)
    if is_done:
        named = {node: str(ref) for node, ref in zip(nodes, refs, strict=True)}
        folder.record(refs, {"nodes": named, "config": {}})
