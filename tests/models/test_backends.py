"""Sampling backends in this process: native, `model.generate`, and vLLM by a stand-in."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import get_args

import pytest
import torch

from recoup.config import Rollout
from recoup.errors import SourceError
from recoup.models.backends import BACKENDS, Backend, Setup
from recoup.models.backends.base import row_seeds
from recoup.models.backends.native import Native, copied
from recoup.models.backends.transformers import Generate
from recoup.models.hidden import completion_hidden, head_of
from recoup.models.load import LanguageModel, load
from recoup.models.logits import completion_tokens
from recoup.models.sample import Rollouts, Sampling, end_ids, sample
from recoup.recover.importance import completion_logp

PROMPTS = [[65, 66, 67, 68, 69], [70], [71, 72], [73, 74, 75]]


def setup_of(folder: Path, dtype: torch.dtype = torch.float32, **changes) -> Setup:
    return Setup(load(str(folder)), dtype, folder, **changes)


def shifted(student: LanguageModel) -> None:
    """Move the student's weights, as a step would."""
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.add_(0.05)


def test_every_backend_of_the_config_is_in_the_table() -> None:
    assert set(BACKENDS) == set(get_args(Rollout.model_fields["backend"].annotation))


@pytest.mark.parametrize("backend", ["native", "transformers"])
def test_weights_are_those_of_the_last_follow(tiny_model: Path, backend: str) -> None:
    setup = setup_of(tiny_model, snapshot=True)
    before = sample(setup.student, PROMPTS, Sampling(4)).completions()
    sampler = BACKENDS[backend](setup)
    shifted(setup.student)
    after = sample(setup.student, PROMPTS, Sampling(4)).completions()
    assert before != after
    assert sampler.sample(PROMPTS, Sampling(4)).completions() == before
    sampler.follow()
    assert sampler.sample(PROMPTS, Sampling(4)).completions() == after


def test_the_student_itself_samples_where_type_and_timing_allow_it(tiny_model: Path) -> None:
    setup = setup_of(tiny_model)
    assert Native(setup).model is setup.student
    assert Native(replace(setup, snapshot=True)).model is not setup.student
    assert Native(replace(setup, dtype=torch.bfloat16)).model.model.dtype == torch.bfloat16


def test_a_copy_keeps_ties_and_the_precision_of_buffers_and_shares_nothing(tiny_model: Path) -> None:
    model = load(str(tiny_model)).model.requires_grad_(True)
    model.get_input_embeddings().weight.grad = torch.ones_like(model.get_input_embeddings().weight)
    twin = copied(model, torch.bfloat16)
    assert twin.get_output_embeddings().weight is twin.get_input_embeddings().weight
    for (name, mine), theirs in zip(twin.named_parameters(), model.parameters(), strict=True):
        assert mine.dtype == torch.bfloat16, name
        assert torch.equal(mine, theirs.bfloat16())
        assert mine.grad is None
        assert not mine.requires_grad
        assert theirs.requires_grad
    for (name, buffer), original in zip(twin.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(buffer, original), name
        assert buffer.dtype == original.dtype, name
    same = copied(model, torch.float32)
    assert same.get_input_embeddings().weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()


@pytest.mark.parametrize("layout", ["llama", "qwen2", "gemma3_text", "gpt2"])
def test_generate_is_native_under_greedy_decoding(tiny_models: dict[str, Path], layout: str) -> None:
    setup = setup_of(tiny_models[layout])
    native, generate = Native(setup), Generate(setup)
    longest = native.sample(PROMPTS, Sampling(12))
    # a token that some row writes early and others do not becomes an end of turn: rows end at different times
    setup.student.model.generation_config.eos_token_id = longest.completions()[1][2]
    for settings in (Sampling(12), Sampling(12, batch_size=3), Sampling(1)):
        expected, found = native.sample(PROMPTS, settings), generate.sample(PROMPTS, settings)
        assert torch.equal(expected.tokens_BT, found.tokens_BT)
        assert torch.equal(expected.attention_BT, found.attention_BT)
        assert torch.equal(expected.completion_BT, found.completion_BT)
    lengths = {len(c) for c in generate.sample(PROMPTS, Sampling(12)).completions()}
    assert min(lengths) < 12


def test_generate_draws_what_native_draws(tiny_model: Path) -> None:
    setup = setup_of(tiny_model)
    settings = Sampling(10, 0.8, seed=11, batch_size=3, logp=True)
    expected, found = Native(setup).sample(PROMPTS, settings), Generate(setup).sample(PROMPTS, settings)
    assert torch.equal(expected.tokens_BT, found.tokens_BT)
    assert expected.logp_BT is not None
    assert found.logp_BT is not None
    torch.testing.assert_close(expected.logp_BT, found.logp_BT, atol=1e-4, rtol=1e-4)


def test_a_models_own_generation_config_changes_nothing(tiny_model: Path) -> None:
    setup = setup_of(tiny_model)
    generate = Generate(setup)
    for settings in (Sampling(8), Sampling(8, 0.9, seed=3)):
        expected = generate.sample(PROMPTS, settings).completions()
        config = setup.student.model.generation_config
        assert config is not None
        config.update(
            repetition_penalty=5.0, no_repeat_ngram_size=1, top_k=1, top_p=0.1, temperature=0.3, do_sample=True
        )
        assert generate.sample(PROMPTS, settings).completions() == expected
        config.update(repetition_penalty=1.0, no_repeat_ngram_size=0)


def test_what_a_row_of_generate_draws_depends_on_its_number_alone(tiny_model: Path) -> None:
    generate = Generate(setup_of(tiny_model))
    settings = Sampling(6, 0.9, seed=7)
    whole = generate.sample(PROMPTS, settings).completions()
    assert generate.sample(PROMPTS, replace(settings, batch_size=1)).completions() == whole
    part = generate.sample(PROMPTS[2:], replace(settings, rows=(2, 3))).completions()
    assert part == whole[2:]
    assert generate.sample(PROMPTS, replace(settings, seed=8)).completions() != whole
    twice = generate.sample([PROMPTS[0]] * 4, settings).completions()
    assert len({tuple(c) for c in twice}) > 1, "rows have random numbers of their own"


def test_generate_leaves_the_global_generator_alone(tiny_model: Path) -> None:
    before = torch.get_rng_state()
    Generate(setup_of(tiny_model)).sample(PROMPTS, Sampling(3, 0.9))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_log_probabilities_of_generate_are_the_models_at_the_temperature(
    tiny_models: dict[str, Path], layout: str
) -> None:
    setup = setup_of(tiny_models[layout])
    rollouts = Generate(setup).sample(PROMPTS, Sampling(6, 0.7, seed=1, logp=True))
    check_logp(setup.student, rollouts, 0.7)
    assert Generate(setup).sample(PROMPTS, Sampling(2, 0.7)).logp_BT is None


def check_logp(student: LanguageModel, rollouts: Rollouts, temperature: float) -> None:
    assert rollouts.logp_BT is not None
    with torch.inference_mode():
        hidden = completion_hidden(student.model, rollouts)
    expected = completion_logp(hidden, head_of(student.model), completion_tokens(rollouts), temperature)
    torch.testing.assert_close(rollouts.logp_BT[rollouts.completion_BT], expected, atol=1e-4, rtol=1e-4)
    assert bool((rollouts.logp_BT[~rollouts.completion_BT] == 0).all())


def test_first_tokens_of_generate_have_the_models_distribution(tiny_model: Path) -> None:
    """Chi-square over the likely tokens and all others together; 3.09 standard deviations above its mean is p = 0.001."""
    setup = setup_of(tiny_model)
    count, temperature = 2000, 0.8
    settings = Sampling(1, temperature, seed=5, batch_size=500)
    first = torch.tensor([c[0] for c in Generate(setup).sample([PROMPTS[0]] * count, settings).completions()])
    with torch.inference_mode():
        chances_V = torch.softmax(setup.student.model(torch.tensor([PROMPTS[0]])).logits[0, -1] / temperature, -1)
    likely = chances_V * count >= 10
    counts = torch.bincount(first, minlength=len(chances_V)).float()
    observed = torch.cat([counts[likely], counts[~likely].sum()[None]])
    expected = torch.cat([chances_V[likely], chances_V[~likely].sum()[None]]) * count
    chi = ((observed - expected).square() / expected).sum()
    freedom = len(expected) - 1
    assert freedom >= 5
    assert chi < freedom + 3.09 * (2 * freedom) ** 0.5 + 5  # + 5: chi-square's tail is a little heavier than a normal's


def test_row_seeds_differ_and_are_those_of_the_whole() -> None:
    whole = row_seeds(Sampling(1, seed=3), 100)
    assert len(set(whole)) == 100
    assert all(0 <= seed < 2**63 for seed in whole)
    assert row_seeds(Sampling(1, seed=3, rows=(40, 41)), 2) == whole[40:42]


def test_vllm_that_is_not_installed_is_one_line(tiny_model: Path) -> None:
    if "vllm" in sys.modules:
        pytest.skip("vLLM is installed")
    with pytest.raises(SourceError, match=r"needs vllm .*pip install"):
        BACKENDS["vllm"](setup_of(tiny_model))


class StandIn:
    """A `vllm.LLM` by its documentation, on a model of its own that hears of the student's weights by transfer alone."""

    def __init__(self, model: str, **settings) -> None:
        self.model, self.settings = load(model), settings
        self.calls: list[tuple] = []

    def init_weight_transfer_engine(self, request: dict) -> None:
        self.calls.append(("init", request["init_info"]))

    def start_weight_update(self) -> None:
        self.calls.append(("start",))

    def update_weights(self, request: dict) -> None:
        self.model.model.load_state_dict(request["update_info"]["weights"], strict=False)
        self.calls.append(("update",))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.calls.append(("finish",))

    def reset_prefix_cache(self) -> None:
        self.calls.append(("reset",))

    def generate(self, requests: list[dict], parameters: list, *, use_tqdm: bool) -> list:
        assert not use_tqdm
        outputs = []
        for request, given in zip(requests, parameters, strict=True):
            settings = Sampling(given.max_tokens, given.temperature, given.seed % 1000, logp=given.logprobs is not None)
            drawn = Generate(Setup(self.model, torch.float32, Path())).sample([request["prompt_token_ids"]], settings)
            tokens = drawn.completions()[0]
            values = [] if drawn.logp_BT is None else drawn.logp_BT[drawn.completion_BT].tolist()
            logprobs = [{t: SimpleNamespace(logprob=v), 0: None} for t, v in zip(tokens, values, strict=False)]
            outputs.append(
                SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(tokens), logprobs=logprobs or None)])
            )
        return outputs


class Engine:
    """vLLM's trainer side of a weight transfer by its documentation: four calls on the client, one round a send."""

    def __init__(self, init_info, client, source) -> None:
        self.init_info, self.client, self.source = init_info, client, source
        client.init_weight_transfer_engine({"packed": init_info.packed})

    def send_weights(self) -> None:
        self.client.start_weight_update()
        self.client.update_weights(
            {"weights": {name: value.detach() for name, value in self.source.named_parameters()}}
        )
        self.client.finish_weight_update()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def module(name: str, **names) -> None:
        made = ModuleType(name)
        made.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, made)

    module("vllm", LLM=StandIn, SamplingParams=SimpleNamespace)
    module("vllm.config", WeightTransferConfig=SimpleNamespace)
    module("vllm.distributed", __path__=[])
    module(
        "vllm.distributed.weight_transfer",
        WeightTransferTrainerFactory=SimpleNamespace(trainer_init=Engine),
        ModuleSource=lambda model: model,
    )
    module("vllm.distributed.weight_transfer.ipc_engine", IPCTrainerInitInfo=SimpleNamespace)
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")


@pytest.mark.usefixtures("stand_in")
def test_colocated_vllm_by_a_stand_in(tiny_model: Path) -> None:
    setup = setup_of(tiny_model)
    sampler = BACKENDS["vllm"](setup)
    llm = sampler._llm  # type: ignore[attr-defined]
    assert llm.settings["dtype"] == "float32"
    assert llm.settings["logprobs_mode"] == "processed_logprobs"
    assert llm.settings["weight_transfer_config"].backend == "ipc"
    shifted(setup.student)
    sampler.follow()
    assert [call[0] for call in llm.calls] == ["init", "start", "update", "finish", "reset"]
    expected = sample(setup.student, PROMPTS, Sampling(5))
    found = sampler.sample(PROMPTS, Sampling(5))
    assert torch.equal(found.tokens_BT, expected.tokens_BT)
    check_logp(setup.student, sampler.sample(PROMPTS, Sampling(5, 0.8, seed=2, logp=True)), 0.8)


@pytest.mark.usefixtures("stand_in")
def test_colocated_vllm_needs_a_folder(tiny_model: Path) -> None:
    setup = setup_of(tiny_model)
    with pytest.raises(SourceError, match="is in no folder"):
        BACKENDS["vllm"](replace(setup, student=replace(setup.student, path=None)))


def test_backends_are_what_the_protocol_says(tiny_model: Path) -> None:
    sampler: Backend = BACKENDS["native"](setup_of(tiny_model))
    rollouts = sampler.sample(PROMPTS, Sampling(2, 0.8))
    assert len(rollouts.completions()) == len(PROMPTS)
    assert end_ids(load(str(tiny_model)))
