"""Secrets in every place where there can be one, and then looked for in all that comes out of a run."""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from llm_service import Reply, Service, completion, serving
from typer.testing import CliRunner

from flows.cli.app import app
from flows.pipeline import popalign
from popalign_core.config import LLMConfig, PipelineConfig, PromptsConfig, RuntimeConfig
from popalign_core.errors import ServiceError
from popalign_core.prompts import pacing
from storage.reviews.votes import ReviewDatabase

REPOSITORY = Path(__file__).resolve().parents[3]
KEY = "sk-key/never-seen-0123456789"
SECRETS = {
    "the key": KEY,
    "the database's password": "hunter2-of-the-database",
    "the password of an address": "hunter2-of-the-address",
    "the token": "token-of-the-operator-0123",
    "the token of a file": "token-of-the-file-0123456",
    "the token of Hugging Face": "hf_never_seen_0123456789",
    "the secret of AWS": "aws/never/seen/0123456789",
}

Find = Callable[..., list[str]]


@pytest.fixture
def find(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Find:
    """Where a secret, or the beginning of one, or one as JSON and addresses spell it, is to be found."""
    caplog.set_level(logging.INFO)

    def find(*said: str) -> list[str]:
        printed = capfd.readouterr()
        texts = {"said": "\n".join(said), "stdout": printed.out, "stderr": printed.err, "log": caplog.text}
        for path in tmp_path.rglob("*"):
            if path.is_file() and path.name != "token.txt":
                texts[str(path)] = path.read_bytes().decode(errors="replace")
        spelt = {name: {secret[:16], secret[-12:], secret.replace("/", "%2F")[:16]} for name, secret in SECRETS.items()}
        return [
            f"{name} in {where}"
            for where, text in texts.items()
            for name, spellings in spelt.items()
            if any(spelling in text.replace(r"\/", "/") for spelling in spellings)
        ]

    return find


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    for name, value in {
        **{"NO_PROXY": "127.0.0.1", "OUR_KEY": KEY, "HF_TOKEN": SECRETS["the token of Hugging Face"]},
        **{"AWS_ACCESS_KEY_ID": "AKIA0", "AWS_SECRET_ACCESS_KEY": SECRETS["the secret of AWS"]},
        "POPALIGN_REVIEW_TOKEN": SECRETS["the token"],
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pacing, "FIRST_WAIT_S", 0.001)
    with serving() as service:
        yield service


def asking(config: PipelineConfig, service: Service) -> PipelineConfig:
    llm = LLMConfig(base_url=service.url, model="m", themes=("work",), api_key_env="OUR_KEY", max_retries=1)
    prompts = config.prompts.model_dump() | {"source": "llm", "n_train": 2, "train_subjects": (), "llm": llm}
    return config.model_copy(update={"prompts": PromptsConfig.model_validate(prompts)})


def echo(service: Service) -> None:
    """An error that shows the key, an answer that does, in the `model` and in subjects too, and then good ones."""
    headers = {"Content-Type": "application/json", "x-echo": f"Bearer {KEY}"}
    escaped = json.dumps({"error": {"message": f"Authorization: Bearer {KEY}"}}).replace("/", r"\/")
    good = json.dumps({"subjects": ["roofer", "baker", f"owner of {KEY}", "judge"]})
    answered = json.loads(str(completion(good).body)) | {"model": KEY, "system_fingerprint": f"Bearer {KEY}"}
    script = [
        Reply(500, escaped, headers),
        completion(f"I am {KEY}"),
        Reply(200, json.dumps(answered), headers),
        Reply(200, json.dumps(answered).replace("/", r"\/"), headers),
    ]
    service.play(*script)


def test_a_whole_run_shows_no_secret(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path, service: Service, find: Find
) -> None:
    echo(service)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(asking(tiny_config, service).model_dump(mode="json")))
    how = ["--root", tiny_runtime.root, "--config", str(file), "--set", "runtime.device=cpu"]
    done = CliRunner().invoke(app, ["run", *how, "--name", "whole"])
    assert done.exit_code == 0, done.output
    assert service.authorization[0] == f"Bearer {KEY}"
    assert any("***" in path.read_text() for path in Path(tiny_runtime.root).glob("prompts/*/answers/*.json"))
    assert find(done.output) == []


@pytest.mark.usefixtures("prefect_database")
def test_a_flow_that_fails_leaves_no_secret_in_prefects_database(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, service: Service, find: Find
) -> None:
    from prefect.client.orchestration import get_client

    service.play(Reply(418, json.dumps({"error": {"message": "x" * 150 + f" who is {KEY}?"}})))
    document = asking(tiny_config, service).model_dump(mode="json", exclude_none=True)
    with pytest.raises(ServiceError, match="answers HTTP 418"):
        popalign(config=document, runtime=tiny_runtime, name="fails")
    with get_client(sync_client=True) as client:
        deadline, logs = time.monotonic() + 30, []
        while not any("418" in log.message for log in logs) and time.monotonic() < deadline:
            logs = client.read_logs(limit=200)
            time.sleep(0.2)
        runs = [*client.read_flow_runs(), *client.read_task_runs()]
    said = [*(log.message for log in logs), *(run.model_dump_json() for run in runs)]
    assert any("418" in text for text in said)
    assert find(*said) == []


WRONG = {
    "a key where its variable is named": ("prompts.llm.api_key_env", KEY, "not the name of a variable"),
    "a key in a field that is not there": ("prompts.llm.api_key", KEY, "unknown field; did you mean `api_key_env`"),
    "a token in a field that is not there": ("runtime.token", SECRETS["the token"], "unknown field"),
    "a password in an address": (
        "prompts.llm.base_url",
        f"http://me:{SECRETS['the password of an address']}@host/v1",
        "holds a user or a password",
    ),
}


@pytest.mark.parametrize(("field", "value", "said"), WRONG.values(), ids=WRONG)
def test_a_secret_in_the_wrong_place_is_refused_and_not_printed(
    field: str, value: str, said: str, tmp_path: Path, find: Find
) -> None:
    words = ["--preset", "smoke", "--root", str(tmp_path / "store")]
    done = CliRunner().invoke(app, ["plan", *words, "--set", f"{field}={value}"])
    assert (done.exit_code, said in done.output) == (2, True), done.output
    assert find(done.output) == []


def test_a_databases_password_is_not_printed(tmp_path: Path, find: Find) -> None:
    url = "postgresql://me:" + SECRETS["the database's password"] + "@127.0.0.1:1/x"
    done = CliRunner().invoke(app, ["study", "list", "--root", str(tmp_path), "--database", url])
    assert (done.exit_code, "***" in done.output) == (5, True), done.output
    assert find(done.output) == []


@pytest.mark.parametrize("way", ["variable", "file"])
def test_the_review_apps_token_is_in_no_log_and_no_page(way: str, tmp_path: Path, find: Find) -> None:
    url, token = (
        f"sqlite:///{tmp_path}/reviews.sqlite",
        SECRETS["the token" if way == "variable" else "the token of a file"],
    )
    ReviewDatabase(url).close()
    (tmp_path / "token.txt").write_text(token)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    words = ["review", "--database", url, "--port", str(port)]
    words += ["--token-file", str(tmp_path / "token.txt")] if way == "file" else []
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)} | ({"POPALIGN_REVIEW_TOKEN": token} if way == "variable" else {})
    with (tmp_path / "review.log").open("wb") as stream:
        command = [sys.executable, "-c", "from flows.cli.app import main; main()", *words]
        process = subprocess.Popen(command, env=env, stdout=stream, stderr=stream)
    try:
        answers = log_in(f"http://127.0.0.1:{port}", token)
    finally:
        process.terminate()
        process.wait(30)
    assert [answer.status_code for answer in answers] == [200, 401, 200, 200]
    assert find(*(f"{answer.headers} {answer.text}" for answer in answers)) == []


def log_in(url: str, token: str) -> list[httpx.Response]:
    """What the app answers to nobody, to a wrong token, to the right one, and on its first page after that."""
    deadline = time.monotonic() + 60
    with httpx.Client(base_url=url, follow_redirects=True) as client:
        while True:
            try:
                first = client.get("/login")
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the app does not answer"
                time.sleep(0.1)
        tries = [client.post("/login", data={"operator_token": each}) for each in (f"wrong{token[:-3]}", token)]
        return [first, *tries, client.get("/")]
