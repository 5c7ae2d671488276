"""The HTTP API of `gpt serve`: answers, limits, and what is said to requests that cannot be answered."""

import asyncio
import dataclasses
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient
from toy import ROOT, Command, Run, run_python

from gpt.demo import limits, server
from gpt.demo.app import Service, make_app, unless_left
from gpt.demo.prompts import read_prompt
from gpt.demo.server import make_service
from gpt.evaluation.token_scores import token_log_probs
from gpt.generation.settings import Decoding
from gpt.generation.stream import TextStream
from gpt.generation.texts import continue_texts
from gpt.text.pieces import Encoding
from gpt.training.model_dir import load_model

PROMPT = "The cat sleeps"  # 3 tokens of the 16 that the model reads
ASKED = {"prompt": PROMPT, "max_tokens": 6, "temperature": 1.5, "seed": 7}  # the likeliest text is "the the the"


def service_of(run: Path) -> Service:
    return make_service(run, load_model(run), 4, 12, name="toy")


@pytest.fixture(scope="module")
def service(pretrained: Run) -> Service:
    return service_of(pretrained.path)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(make_app(service)) as client:
        yield client


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def events_of(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def expected_text(service: Service, prompt: str, **settings: Any) -> list[str]:
    ids = service.tokenizer.encode(prompt)
    decoding = Decoding(**settings)
    texts = []
    for found in continue_texts(service.engine.config, service.engine.params, [ids], decoding)[0]:
        stream = TextStream(service.tokenizer, ids)
        texts.append(stream.push(found.ids) + stream.finish())
    return texts


# Completions


def test_a_completion_is_the_text_that_the_model_writes_alone(client: TestClient, service: Service) -> None:
    answer = ask(client, model="toy", **ASKED)
    (expected,) = expected_text(service, PROMPT, max_new_tokens=6, temperature=1.5, seed=7)
    assert answer["choices"] == [{"index": 0, "text": expected, "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    assert (answer["object"], answer["model"]) == ("text_completion", "toy")


def test_samples_and_prompts_are_answered_in_order_and_by_the_seed(client: TestClient, service: Service) -> None:
    settings = {"temperature": 1.5, "seed": 5}
    prompts = [PROMPT, "in the garden"]
    answer = ask(client, prompt=prompts, n=2, max_tokens=4, **settings)
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert texts == [
        text
        for prompt in prompts
        for text in expected_text(service, prompt, max_new_tokens=4, num_samples=2, **settings)
    ]
    assert answer["usage"]["completion_tokens"] == 16
    ids = service.tokenizer.encode(PROMPT)
    by_ids = ask(client, prompt=ids, n=2, max_tokens=4, **settings)
    assert [choice["text"] for choice in by_ids["choices"]] == texts[:2]


def test_without_a_seed_every_answer_is_another(client: TestClient) -> None:
    texts = {ask(client, prompt=PROMPT, max_tokens=8, temperature=2.0)["choices"][0]["text"] for _ in range(3)}
    assert len(texts) > 1


def test_a_stream_brings_the_same_text_word_by_word(client: TestClient) -> None:
    whole = ask(client, **ASKED, logprobs=2)
    events = events_of(client, **ASKED, logprobs=2, stream_options={"include_usage": True})
    assert events.pop()["usage"] == whole["usage"]
    pieces = [event["choices"][0] for event in events]
    assert len(pieces) > 3
    assert "".join(piece["text"] for piece in pieces) == whole["choices"][0]["text"]
    assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    logprobs = whole["choices"][0]["logprobs"]
    for name, values in logprobs.items():
        assert [value for piece in pieces for value in piece["logprobs"][name]] == values


def test_a_stop_string_ends_the_text_and_its_tokens(client: TestClient) -> None:
    text = ask(client, **ASKED)["choices"][0]["text"]
    words = text.split()
    count = next(count for count, word in enumerate(words) if word != words[0])
    stop = f" {words[count]}"
    stopped = ask(client, **ASKED, stop=[stop, "never met"], logprobs=0)["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == (text[: text.index(stop)], "stop")
    assert [token.strip() for token in stopped["logprobs"]["tokens"]] == words[:count]
    pieces = [event["choices"][0] for event in events_of(client, **ASKED, stop=stop)]
    assert "".join(piece["text"] for piece in pieces) == stopped["text"]
    unmet = ask(client, **ASKED, stop="never met")["choices"][0]
    assert (unmet["text"], unmet["finish_reason"]) == (text, "length")


def test_log_probabilities_are_those_of_the_model_with_their_places_in_the_text(
    client: TestClient, service: Service
) -> None:
    choice = ask(client, **ASKED, echo=True, logprobs=2)["choices"][0]
    found, text = choice["logprobs"], choice["text"]
    assert text.startswith(PROMPT)
    ids = service.tokenizer.encode(text)
    (expected,) = token_log_probs(service.engine.config, service.engine.params, [ids])
    assert found["token_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(expected[1:], abs=1e-4)
    assert found["tokens"] == [token.replace("</w>", " ") for token in service.tokenizer.tokens(ids)]
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        assert text[offset:].lower().startswith(token.strip())
    for token, score, top in zip(
        *(found[name][3:] for name in ("tokens", "token_logprobs", "top_logprobs")), strict=True
    ):
        assert len(top) == 2
        assert score <= max(top.values()) + 1e-6
        assert token not in top or top[token] == pytest.approx(score)


def test_a_prompt_can_be_scored_without_writing(client: TestClient, service: Service) -> None:
    answer = ask(client, prompt=[PROMPT, "the dog"], max_tokens=0, echo=True, logprobs=0)
    assert [choice["text"] for choice in answer["choices"]] == [PROMPT, "the dog"]
    ids = service.tokenizer.encode("the dog")
    (expected,) = token_log_probs(service.engine.config, service.engine.params, [ids])
    assert answer["choices"][1]["logprobs"]["token_logprobs"] == [None, pytest.approx(expected[1], abs=1e-4)]
    assert answer["usage"]["completion_tokens"] == 0


def test_of_a_long_prompt_the_end_is_read_when_asked_for(client: TestClient) -> None:
    words = " ".join(["the dog runs in the garden"] * 20)
    short = ask(client, prompt=words, max_tokens=4, temperature=0, truncate_prompt_tokens=12)
    same = ask(client, prompt=" ".join(words.split()[-12:]), max_tokens=4, temperature=0)
    assert short["choices"] == same["choices"]
    scored = ask(client, prompt=words, max_tokens=0, echo=True, logprobs=0, truncate_prompt_tokens=16)
    logprobs = scored["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == 16
    assert words[logprobs["text_offset"][1] :].startswith(logprobs["tokens"][1].strip())


def test_tokens_of_the_original_route_have_their_places_in_the_text_as_it_was_given(
    monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    text = "“The cat’s…” said—the dog,  and\nsleeps"
    standardised = '" The cat \'s ... " said - the dog , and \n sleeps'

    parts = ("The", "cat", "'s", "...", "said", "-", "the", "dog", ",", "and", "sleeps")
    encoding = Encoding([1] * len(parts), [(standardised.index(part), 0) for part in parts], standardised)
    monkeypatch.setattr(service.tokenizer, "encode_with_offsets", lambda _: encoding)
    offsets = read_prompt(text, service.tokenizer).offsets
    words = ("The", "cat", "’s", "…", "said", "—", "the", "dog", ",", "and", "sleeps")
    for word, offset in zip(words, offsets, strict=True):
        assert text[offset:].startswith(word), word


# Requests that cannot be answered


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "`prompt` is missing: The text to continue, or its token ids"),
        ({"prompt": ""}, "`prompt` is empty: it needs at least one word"),
        ({"prompt": "  \n"}, "`prompt` is empty"),
        ({"prompt": []}, "`prompt` is an empty list"),
        ({"prompt": "日本"}, "`prompt` is '日本': the vocabulary knows none of its characters"),
        ({"prompt": [10**6]}, r"`prompt`: token id 1000000: the vocabulary has ids from 0 to"),
        ({"prompt": 3}, "`prompt` does not fit: The text to continue"),
        ({"prompt": "the " * 15}, "the prompt has 15 tokens and max_tokens = 16: together more than .* = 16"),
        ({"prompt": "the " * 17, "max_tokens": 0, "echo": True}, "`prompt` has 17 tokens, more than the model's 16"),
        ({"temperature": -0.5}, r"temperature = -0.5: must be 0 \(take the likeliest\) or more"),
        ({"temperature": "hot"}, "`temperature` is 'hot': Input should be a valid number"),
        ({"top_p": 1.5}, "top_p = 1.5: must be above 0 and at most 1"),
        ({"top_p": 0}, "top_p = 0.0: must be above 0"),
        ({"top_k": 0}, "top_k = 0: must be 1 or more"),
        ({"n": 0}, "n = 0: must be 1 or more"),
        ({"n": 3, "temperature": 0}, "n = 3: at temperature 0 all samples would be the same"),
        ({"n": 13}, "1 prompts and `n` = 13: this server takes 12 texts at once"),
        ({"seed": -1}, r"seed = -1: must be from 0 to 2\*\*32 - 1"),
        ({"max_tokens": -1}, "`max_tokens` is -1: Input should be greater than or equal to 0"),
        ({"max_tokens": 0}, "`max_tokens` is 0: without `echo` there would be nothing to answer"),
        ({"logprobs": 6}, "`logprobs` is 6: Input should be less than or equal to 5"),
        ({"stop": ""}, "a stop string is empty"),
        ({"best_of": 2}, "`best_of` is 2: it must be `n`, 1, or left out"),
        ({"presence_penalty": 1}, "`presence_penalty` is 1: Input should be 0. Must be 0; there is"),
        ({"tempereture": 1}, "`tempereture` is no field of this request; did you mean `temperature`?"),
    ],
)  # fmt: skip
def test_a_body_without_meaning_is_refused_with_the_field_and_the_way_out(
    client: TestClient, body: dict[str, Any], message: str
) -> None:
    prompt = {} if body == {} else {"prompt": PROMPT}
    response = client.post(
        "/v1/completions", json={**prompt, **({"max_tokens": 4} if "prompt" not in body else {}), **body}
    )
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert re.search(message, response.json()["error"]["message"]), response.text


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "the body is no JSON object"), (b"[]", "the body is no JSON object"), (b"\xff\x00", "no JSON object"),
     (b'{"prompt": "a", "temperature": NaN}', "temperature"), (b"[" * 100_000, "the body is no JSON object")],
    ids=["cut", "list", "bytes", "nan", "deep"],
)  # fmt: skip
def test_a_malformed_body_is_refused(client: TestClient, content: bytes, message: str) -> None:
    response = client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_an_unknown_model_or_path_or_method_has_its_status(client: TestClient) -> None:
    response = client.post("/v1/completions", json={**ASKED, "model": "gpt-5"})
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "there is no model 'gpt-5' here, only 'toy'"
    assert client.get("/v1/completions").status_code == 405
    missing = client.get("/v1/chat/completions")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")


def test_a_body_of_ten_megabytes_is_refused_before_it_is_read(client: TestClient) -> None:
    body = json.dumps({"prompt": "a" * 10_000_000}).encode()
    for headers in ({}, {"transfer-encoding": "chunked"}):
        response = client.post("/v1/completions", content=body, headers={"content-type": "application/json", **headers})
        assert response.status_code == 413
        assert "the body is larger than 262144 bytes" in response.json()["error"]["message"]


def test_a_body_of_another_type_is_refused(client: TestClient) -> None:
    response = client.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"})
    assert response.status_code == 415
    assert "expected application/json" in response.json()["error"]["message"]


def test_a_body_that_does_not_arrive_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.02)

    class Slow:
        headers = Headers({"content-type": "application/json"})

        async def stream(self) -> Any:
            yield b"{"
            await asyncio.sleep(60)

    with pytest.raises(HTTPException, match=r"the body did not arrive within 0\.02 seconds") as error:
        asyncio.run(limits.read_body(Slow()))  # pyright: ignore[reportArgumentType] - all that it asks of a request
    assert error.value.status_code == 408


def test_a_connection_that_says_nothing_is_closed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.1)
    listener = server.bind("127.0.0.1", 0)
    http = uvicorn.Server(uvicorn.Config(make_app(service), http=server.Protocol, log_level="warning"))
    thread = threading.Thread(target=http.run, args=([listener],))
    thread.start()
    try:
        with socket.create_connection(listener.getsockname(), timeout=30) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: ")
            assert connection.recv(1) == b""
    finally:
        http.should_exit = True
        thread.join()


def test_what_a_client_that_left_asked_for_is_given_up() -> None:
    class Left:
        async def receive(self) -> dict[str, str]:
            return {"type": "http.disconnect"}

    with pytest.raises(HTTPException, match="the client has left"):
        asyncio.run(unless_left(Left(), asyncio.sleep(60)))  # pyright: ignore[reportArgumentType] - all that is asked


def test_more_texts_than_may_wait_are_refused_with_429(client: TestClient, service: Service) -> None:
    service.engine.max_waiting, before = 1, service.engine.max_waiting
    try:
        response = client.post("/v1/completions", json={"prompt": [PROMPT] * 1, "n": 1, "max_tokens": 13})
        assert response.status_code == 200
        jobs = [{"prompt": PROMPT, "max_tokens": 13} for _ in range(40)]
        app = client.app

        async def rush() -> list[int]:
            transport = httpx2.ASGITransport(app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://testserver") as many:
                return [
                    r.status_code for r in await asyncio.gather(*(many.post("/v1/completions", json=j) for j in jobs))
                ]

        assert client.portal is not None
        codes = client.portal.call(rush)
    finally:
        service.engine.max_waiting = before
    assert set(codes) == {200, 429}


def test_a_client_has_so_many_requests_a_minute() -> None:
    now = 100.0
    limit = limits.RateLimit(60, lambda: now)
    for _ in range(60):
        limit.check("a")
    with pytest.raises(HTTPException, match="more than 60 requests a minute from a") as error:
        limit.check("a")
    assert (error.value.status_code, error.value.headers) == (429, {"retry-after": "1"})
    limit.check("b")
    now += 1.0
    limit.check("a")
    with pytest.raises(HTTPException):
        limit.check("a")


def test_the_rate_limit_stands_before_the_api(service: Service) -> None:
    with TestClient(make_app(dataclasses.replace(service, requests_per_minute=2))) as client:
        codes = [client.get("/v1/models").status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        assert client.get("/healthz").status_code == 200


# Who may ask, and what a browser is told


def test_with_a_token_only_those_who_have_it_are_answered(service: Service) -> None:
    with TestClient(make_app(dataclasses.replace(service, token="s3cret"))) as client:
        for value in (b"", b"Bearer wrong", b"Basic s3cret", b"Bearer \xe9"):
            headers = {b"authorization": value}
            for path in ("/v1/models", "/metrics"):
                response = client.get(path, headers=headers)
                assert response.status_code == 401
                assert "Authorization: Bearer TOKEN" in response.json()["error"]["message"]
                assert response.headers["www-authenticate"] == "Bearer"
            assert client.post("/v1/completions", json=ASKED, headers=headers).status_code == 401
        assert client.get("/v1/models", headers={"authorization": "Bearer s3cret"}).status_code == 200
        assert client.get("/").status_code == 200, "the page asks for the token"


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    monkeypatch.setattr(limits.hmac, "compare_digest", lambda *pair: compared.append(pair) or True)
    limits.check_token(Headers({"authorization": "Bearer abc"}), "secret")
    assert compared == [(b"abc", b"secret")]


def test_another_name_that_points_here_is_refused(service: Service) -> None:
    local = dataclasses.replace(service, hosts=("127.0.0.1", "localhost", "[::1]"))
    with TestClient(make_app(local)) as client:
        for host, code in (("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 400)):
            assert client.get("/healthz", headers={"host": host}).status_code == code


def test_no_foreign_page_may_read_or_frame_an_answer(client: TestClient) -> None:
    for response in (
        client.get("/", headers={"origin": "https://evil.example"}),
        client.options("/v1/completions", headers={"origin": "https://evil.example"}),
        client.post("/v1/completions", json=ASKED, headers={"origin": "https://evil.example"}),
        client.get("/nowhere"),
    ):
        assert not any(name.startswith("access-control") for name in response.headers)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"


def test_the_pages_load_nothing_from_elsewhere_and_have_nothing_inline(client: TestClient) -> None:
    for path in ("/", "/docs", "/page/page.js", "/page/page.css", "/page/icon.svg"):
        response = client.get(path)
        assert response.status_code == 200
        text = response.text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        if path in ("/", "/docs"):
            assert not re.search(r"<style|<script>|\son\w+=|\sstyle=", text)
            for target in re.findall(r'(?:src|href)="([^"]+)"', text):
                assert client.get(target).status_code == 200, target


# What else is told


def test_the_model_is_listed_with_its_context(client: TestClient) -> None:
    answer = client.get("/v1/models").json()
    (model,) = answer["data"]
    assert (answer["object"], model["object"], model["id"], model["max_model_len"]) == ("list", "model", "toy", 16)


def test_the_description_names_every_field_that_is_taken(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    post = document["paths"]["/v1/completions"]["post"]
    fields = post["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert {"prompt", "max_tokens", "stream", "logprobs"} < fields.keys()
    assert all(field["description"] for field in fields.values())
    page = client.get("/docs").text
    assert all(f"<td>{name}</td>" in page for name in fields)


def test_metrics_count_requests_and_tokens(service: Service) -> None:
    with TestClient(make_app(service)) as client:
        ask(client, **ASKED)
        events_of(client, **ASKED)
        client.post("/v1/completions", json={"prompt": ""})
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    lines = set(response.text.splitlines())
    assert 'gpt_requests_total{path="/v1/completions",status="200"} 2.0' in lines
    assert 'gpt_requests_total{path="/v1/completions",status="400"} 1.0' in lines
    assert {"gpt_prompt_tokens_total 6.0", "gpt_new_tokens_total 12.0", "gpt_slots 4.0", "gpt_waiting 0.0"} <= lines


def test_health_tells_when_the_engine_has_stopped(service: Service) -> None:
    with TestClient(make_app(service)) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        service.engine.stop()
        assert client.get("/healthz").status_code == 503
        response = client.post("/v1/completions", json=ASKED)
        assert response.status_code == 503
        assert response.json()["error"]["message"] == "the server is shutting down: try again"


# Classification


def test_a_fine_tuned_run_classifies_as_eval_does(finetuned: Run, evaluate: Callable[..., Command]) -> None:
    evaluate(f"--run={finetuned.path}")
    lines = (finetuned.path / "predictions" / "validation.jsonl").read_text().splitlines()
    scores = [json.loads(line)["scores"] for line in lines[:3]]
    config = (finetuned.path / "config.gin").read_text()
    data_dir = Path(config.split("TaskConfig.data_dir")[1].split("'")[1])
    rows = [json.loads(line) for line in (data_dir / "validation.jsonl").read_text().splitlines()[:3]]
    with TestClient(make_app(service_of(finetuned.path))) as client:
        found = client.post(
            "/v1/classify", json={"input": [rows[0]["text"], rows[1], {"sentence": rows[2]["text"]}]}
        ).json()
        assert client.get("/v1/models").json()["data"][0]["task"] == "cola"
        assert ask(client, **ASKED)["choices"][0]["text"], "it is a language model still"
        for body, message in (
            ({"input": ""}, "`input`, number 0: the input: a text is empty"),
            ({"input": ["the cat", {"text_a": "x"}]}, "`input`, number 1: the input: no text; expected columns text"),
            ({"input": "the cat " * 20}, "`input`, number 0: the input is longer than the model's 16 tokens"),
            ({"input": 7}, "`input` does not fit"),
        ):
            response = client.post("/v1/classify", json=body)
            assert response.status_code == 400
            assert message in response.json()["error"]["message"]
    assert [entry["index"] for entry in found["data"]] == [0, 1, 2]
    for entry, expected in zip(found["data"], scores, strict=True):
        probabilities = np.exp(expected) / np.exp(expected).sum()
        np.testing.assert_allclose(entry["probs"], probabilities, atol=1e-4)
        assert entry["label"] == entry["labels"][int(probabilities.argmax())]


def test_a_model_without_a_head_does_not_classify(client: TestClient) -> None:
    response = client.post("/v1/classify", json={"input": "the cat"})
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "the model 'toy' has no classifier: serve a run that was fine-tuned"


# The command


def test_what_cannot_be_served_is_refused(
    pretrained: Run, tmp_path: Path, gpt: Callable[..., Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("two words")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flags, message in (
            (
                ["--model", pretrained.path, "--port", port],
                f"--port {port} cannot be listened on: .*in use; choose another",
            ),
            (["--model", pretrained.path, "--port", 99999], "--port 99999 cannot be listened on"),
            (["--model", pretrained.path, "--port", 0, "--slots", 0], "--slots 0: must be 1 or more"),
            (["--model", tmp_path, "--port", 0], "holds no model: expected a run"),
            (
                ["--model", pretrained.path, "--port", 0, "--token_file", tmp_path / "no"],
                "--token_file .* cannot be read",
            ),
            (
                ["--model", pretrained.path, "--port", 0, "--token_file", tmp_path / "token"],
                "expected one word of ASCII",
            ),
        ):
            code, out, error = gpt("serve", *flags)
            assert (code, out) == (2, "")
            assert re.search(message, error), error
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("gpt.demo.server",):
        monkeypatch.delitem(sys.modules, name, raising=False)
    code, _, error = gpt("serve", "--model", pretrained.path)
    assert (code, error) == (2, "error: gpt serve needs uvicorn, which is not installed: pip install '.[demo]'\n")


def test_the_command_tells_its_address_answers_and_ends_at_sigterm_when_its_texts_are_done(pretrained: Run) -> None:
    command = [sys.executable, "-m", "gpt", "serve", "--model", str(pretrained.path), "--port", "0", "--slots", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["model"] == pretrained.path.name
        host, port = ready["url"].removeprefix("http://").split(":")
        assert host == "127.0.0.1"
        with socket.create_connection((host, int(port))) as connection:
            body = json.dumps({**ASKED, "max_tokens": 13, "stream": True}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            answer = connection.recv(1)
            process.send_signal(signal.SIGTERM)
            connection.settimeout(60)
            while chunk := connection.recv(65536):
                answer += chunk
    finally:
        out, error = process.communicate(timeout=60)
    assert b"data: [DONE]" in answer
    assert (process.returncode, out, error) == (0, "", "")


@pytest.mark.slow
def test_under_load_and_through_a_crash_every_answer_is_that_of_its_prompt_alone() -> None:
    done = run_python("benchmarks/serving.py", "--clients", "50", "--seconds", "20")
    assert done.code == 0, done.err
    alone, many, crashed = done.rows
    assert [row["wrong"] for row in done.rows] == [0, 0, 0]
    assert (alone["unanswered"], many["unanswered"], crashed["exit_code"]) == (0, 0, 0)
    assert crashed["unanswered"] > 0, "the server was away"
    assert crashed["requests"] > 50, "and came back"
