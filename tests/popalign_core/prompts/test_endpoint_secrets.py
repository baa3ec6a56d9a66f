"""Keys and passwords: in no message, no log and no kept answer."""

import json
import logging
from pathlib import Path

import pytest
from llm_service import Reply, serving
from pydantic import ValidationError

from popalign_core.config import Axis, LLMConfig, PromptsConfig
from popalign_core.errors import ServiceError
from popalign_core.prompts import pacing
from popalign_core.prompts.synthesis import synthesise_prompts

KEY = "sk-never-to-be-seen-0123456789"
AXES = (Axis(name="gender", classes=("male", "female")),)


ERRORS = {
    "an error of the key": (401, json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}})),
    "an error of the server": (500, f"upstream said: Authorization: Bearer {KEY}"),
    "an error of the request": (418, json.dumps({"error": {"message": f"who is {KEY}?", "headers": {"k": KEY}}})),
    "an answer that cannot be read": (200, json.dumps({"choices": [{"message": {"content": f"I am {KEY}"}}]})),
    "no JSON": (200, f"<html>{KEY}</html>"),
}


@pytest.mark.parametrize(("status", "body"), ERRORS.values(), ids=ERRORS)
def test_a_key_that_a_server_sends_back_is_hidden(
    status: int, body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OUR_KEY", KEY)
    monkeypatch.setattr(pacing, "FIRST_WAIT_S", 0.001)
    caplog.set_level(logging.INFO)
    with serving() as service:
        service.answer_with(lambda request: Reply(status, body))
        llm = LLMConfig(base_url=service.url, model="m", themes=("fielda",), max_retries=1, api_key_env="OUR_KEY")
        config = PromptsConfig(source="llm", n_train=1, llm=llm)
        with pytest.raises(ServiceError) as caught:
            synthesise_prompts(config, AXES, tmp_path)
        assert service.authorization[0] == f"Bearer {KEY}"
    printed = capfd.readouterr()
    kept = [path.read_text(encoding="utf-8", errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    for text in (str(caught.value), caplog.text, printed.out, printed.err, *kept):
        assert KEY not in text


@pytest.mark.parametrize("url", ["http://me:secret@127.0.0.1/v1", "https://secret@host/v1", "http://:secret@host:8000"])
def test_an_address_with_a_password_is_refused_without_printing_it(url: str) -> None:
    with pytest.raises(ValidationError, match="put the key into the variable of api_key_env") as caught:
        LLMConfig(base_url=url)
    assert all("secret" not in str(error["msg"]) for error in caught.value.errors())
