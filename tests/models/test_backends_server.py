"""The vLLM server backend against a real HTTP server that answers as vLLM documents, on a tiny model of its own."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from recoup.errors import SourceError
from recoup.models.backends import Setup, vllm_server
from recoup.models.backends.transformers import Generate
from recoup.models.backends.vllm_http import Server
from recoup.models.backends.vllm_server import VllmServer
from recoup.models.load import load
from recoup.models.sample import Sampling, sample

from .test_backends import PROMPTS, check_logp, shifted

PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


class Served:
    """What the server knows: a model, whether it is paused, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.model = load(str(folder))
        self.paused, self.lock = False, threading.Lock()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.logprobs_mode = "processed_logprobs"
        self.dev_mode = True
        self.answers: dict[str, tuple[int, str]] = {}  # overrides, by path
        self.seconds = 0.0  # before each answer

    def answer(self, path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]}
        if path == "/v1/completions":
            return self.complete(payload)
        if not self.dev_mode:
            return 404, {"detail": "Not Found"}
        if path == "/collective_rpc":
            return self.rpc(payload)
        self.paused = {"/pause?mode=wait": True, "/resume": False}.get(path, self.paused)
        return 200, {
            "/server_info?config_format=json": {"vllm_config": {"model_config": {"logprobs_mode": self.logprobs_mode}}},
            "/pause?mode=wait": {"status": "paused"},
            "/resume": {"status": "resumed"},
            "/reset_prefix_cache": {"success": True},
        }[path]

    def rpc(self, payload: dict[str, Any]) -> tuple[int, Any]:
        assert payload["method"] == "reload_weights"
        assert self.paused, "weights changed under requests"
        folder = Path(payload["kwargs"]["weights_path"])
        assert folder.is_absolute()
        self.model = replace(self.model, model=Served.read(folder))
        return 200, {"results": [None]}

    @staticmethod
    def read(folder: Path):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def complete(self, payload: dict[str, Any]) -> tuple[int, Any]:
        assert not self.paused
        assert payload["model"] == "tiny"
        assert payload["return_token_ids"] is True
        assert {key: payload[key] for key in PLAIN} == PLAIN
        assert set(payload["stop_token_ids"]) == {257}
        settings = Sampling(payload["max_tokens"], payload["temperature"], payload["seed"] % 1000, logp=True)
        drawn = Generate(Setup(self.model, torch.float32, Path())).sample([payload["prompt"]], settings)
        assert drawn.logp_BT is not None
        logprobs = None
        if payload["logprobs"] is not None:
            assert payload["logprobs"] == 0
            logprobs = {"token_logprobs": drawn.logp_BT[drawn.completion_BT].tolist(), "tokens": ["?"]}
        choice = {"index": 0, "text": "?", "logprobs": logprobs, "token_ids": drawn.completions()[0]}
        return 200, {"object": "text_completion", "choices": [choice]}


class Crowded(ThreadingHTTPServer):
    """As many may wait for an answer as ask at once; five by default, and the sixth is reset on a busy machine."""

    request_queue_size = 128


class Handler(BaseHTTPRequestHandler):
    served: Served

    def do_GET(self) -> None:
        self.reply({})

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

    def reply(self, payload: dict[str, Any]) -> None:
        time.sleep(self.served.seconds)
        with self.served.lock:
            self.served.asked.append((self.path, payload))
            if self.path in self.served.answers:
                status, text = self.served.answers[self.path]
            else:
                try:
                    status, answer = self.served.answer(self.path, payload)
                    text = json.dumps(answer)
                except Exception as error:
                    status, text = 500, repr(error)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tiny_model: Path) -> Iterator[tuple[Served, str]]:
    state = Served(tiny_model)
    handler = type("Bound", (Handler,), {"served": state})
    with Crowded(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield state, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def backend(folder: Path, address: str, run_folder: Path, dtype: torch.dtype = torch.float32) -> VllmServer:
    return VllmServer(Setup(load(str(folder)), dtype, run_folder, server=address))


def test_greedy_completions_are_the_students_once_followed(served, tiny_model: Path, tmp_path: Path) -> None:
    state, address = served
    sampler = backend(tiny_model, address + "/", tmp_path)
    student = sampler._setup.student
    before = sample(student, PROMPTS, Sampling(5))
    assert torch.equal(sampler.sample(PROMPTS, Sampling(5)).tokens_BT, before.tokens_BT)
    shifted(student)
    after = sample(student, PROMPTS, Sampling(5))
    assert before.completions() != after.completions()
    assert sampler.sample(PROMPTS, Sampling(5)).completions() == before.completions()
    sampler.follow()
    found = sampler.sample(PROMPTS, Sampling(5))
    assert torch.equal(found.tokens_BT, after.tokens_BT)
    assert torch.equal(found.completion_BT, after.completion_BT)
    assert found.logp_BT is None
    paths = [path for path, _ in state.asked if "completions" not in path]
    assert paths == ["/v1/models", "/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/resume"]
    assert not list(tmp_path.iterdir()), "the weights are deleted once read"


def test_weights_go_in_the_sampling_type_under_a_new_name_each_time(served, tiny_model: Path, tmp_path: Path) -> None:
    state, address = served
    sampler = backend(tiny_model, address, tmp_path, torch.bfloat16)
    sampler.follow()
    sampler.follow()
    folders = [p["kwargs"]["weights_path"] for path, p in state.asked if path == "/collective_rpc"]
    assert len(set(folders)) == 2
    for mine, theirs in zip(state.model.model.parameters(), sampler._setup.student.model.parameters(), strict=True):
        assert torch.equal(mine, theirs.bfloat16().float())


def test_each_prompt_has_a_seed_of_its_own_and_log_probabilities_are_the_samplers(
    served, tiny_model: Path, tmp_path: Path
) -> None:
    state, address = served
    sampler = backend(tiny_model, address, tmp_path)
    settings = Sampling(5, 0.8, seed=4, logp=True)
    rollouts = sampler.sample(PROMPTS, settings)
    check_logp(sampler._setup.student, rollouts, 0.8)
    seeds = {p["seed"] for path, p in state.asked if path == "/v1/completions"}
    assert len(seeds) == len(PROMPTS)
    assert sampler.sample(PROMPTS, settings).completions() == rollouts.completions()
    part = sampler.sample(PROMPTS[1:], replace(settings, rows=(1, 2, 3)))
    assert part.completions() == rollouts.completions()[1:]
    asked = [path for path, _ in state.asked]
    assert asked.count("/server_info?config_format=json") == 1


def test_log_probabilities_of_raw_logits_are_refused(served, tiny_model: Path, tmp_path: Path) -> None:
    state, address = served
    state.logprobs_mode = "raw_logprobs"
    sampler = backend(tiny_model, address, tmp_path)
    sampler.sample(PROMPTS, Sampling(2, 0.8))
    with pytest.raises(SourceError, match=r"raw_logprobs.*--logprobs-mode processed_logprobs"):
        sampler.sample(PROMPTS, Sampling(2, 0.8, logp=True))


def test_a_server_without_its_development_endpoints(served, tiny_model: Path, tmp_path: Path) -> None:
    state, address = served
    state.dev_mode = False
    with pytest.raises(SourceError, match=r"/pause.*404.*VLLM_SERVER_DEV_MODE=1"):
        backend(tiny_model, address, tmp_path).follow()


def test_a_failed_reload_leaves_no_weights_behind(served, tiny_model: Path, tmp_path: Path) -> None:
    state, address = served
    state.answers["/collective_rpc"] = (500, "weights do not fit")
    with pytest.raises(SourceError, match=r"/collective_rpc: refused with 500 \(weights do not fit\)"):
        backend(tiny_model, address, tmp_path).follow()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        ("/v1/models", '{"data": []}', "serves no model"),
        ("/v1/models", "<html>", "answered no JSON object"),
        ("/v1/models", "[1]", "answered no JSON object"),
        ("/v1/completions", '{"choices": []}', "no token ids"),
        ("/v1/completions", '{"choices": [{"text": "a"}]}', "no token ids"),
        (
            "/v1/completions",
            '{"choices": [{"token_ids": [1, 2], "logprobs": {"token_logprobs": [0.1]}}]}',
            "no log-prob",
        ),
        ("/v1/completions", '{"choices": [{"token_ids": [1, 2], "logprobs": null}]}', "no log-prob"),
    ],
)
def test_answers_that_are_not_vllms(
    served, tiny_model: Path, tmp_path: Path, path: str, answer: str, message: str
) -> None:
    state, address = served
    state.answers[path] = (200, answer)
    with pytest.raises(SourceError, match=message):
        backend(tiny_model, address, tmp_path).sample(PROMPTS, Sampling(2, 0.8, logp=True))


def test_refusals_show_what_the_server_says_on_one_line(served) -> None:
    state, address = served
    state.answers["/v1/completions"] = (400, '{"message":\n "too long' + "x" * 500 + '"}')
    with pytest.raises(SourceError, match=r"refused with 400 .*too long") as caught:
        Server(address).post("/v1/completions", {})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_server_that_does_not_answer_in_time(served, monkeypatch: pytest.MonkeyPatch) -> None:
    state, address = served
    state.seconds = 0.4
    with pytest.raises(SourceError, match=r"/v1/models: no answer in 0.1 s"):
        Server(address).post("/v1/models", {}, seconds=0.1)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(SourceError, match=r"127.0.0.1:9: cannot be reached .*is the vLLM server running"):
        Server("http://127.0.0.1:9").get("/v1/models")


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://host", "http://", ""])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(SourceError, match="write it like http://localhost:8000"):
        Server(address)


def test_many_prompts_are_asked_for_at_once(served, tiny_model: Path, tmp_path: Path) -> None:
    """16 answers of 0.2 s each, one after the other, would take 3.2 s."""
    state, address = served
    sampler = backend(tiny_model, address, tmp_path)
    state.seconds = 0.2
    state.answers["/v1/completions"] = (200, '{"choices": [{"token_ids": [1]}]}')
    began = time.perf_counter()
    sampler.sample([[65]] * 16, Sampling(1))
    assert time.perf_counter() - began < 2.0
    assert vllm_server.MAX_REQUESTS >= 16
