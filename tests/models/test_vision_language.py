"""Models that read a picture and words: one graph where Dynamo can, else the language model's."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.examine import HALF, exact_error, lossy, planned, reference_error
from tests.models.harness import capture_calls, made, relative
from tests.models.zoo.common import TEXT, VISION, Example, pictures, ready
from tokenpass.report import LOG, last_reports

OPTIONS = {"lowering": "eager", "objective": "flops", "on_failure": "raise"}
PICTURE = 60
"""The token in whose places the picture's tokens stand."""

WORDS = {**TEXT, "num_key_value_heads": 2, "num_hidden_layers": 2}


def prompt(tokens: int, start: int, image: int) -> torch.Tensor:
    """Ids of two samples, each with the picture's tokens from `start` on."""
    ids = torch.randint(3, 50, (2, tokens))
    ids[:, start : start + image] = PICTURE
    return ids


def llava() -> Example:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**{**VISION, "num_hidden_layers": 2}),
        text_config=LlamaConfig(**WORDS),
        image_token_id=PICTURE,
        image_seq_length=25,
    )
    model = ready(LlavaForConditionalGeneration(config))
    call = {"input_ids": prompt(36, 4, 25), "pixel_values": pictures()}
    return model, {**call, "use_cache": False, "logits_to_keep": 1}


def qwen2_vl() -> Example:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    sight = {"embed_dim": 32, "mlp_ratio": 2}
    return qwen(Qwen2VLForConditionalGeneration, Qwen2VLConfig, sight)


def qwen2_5_vl() -> Example:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    sight = {"intermediate_size": 48, "out_hidden_size": 32, "window_size": 16}
    sight |= {"fullatt_block_indexes": [1]}
    return qwen(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, sight)


def qwen(model: type, config: type, sight: dict[str, Any]) -> Example:
    """A picture of eight by eight patches in each sample, four patches to a token."""
    eyes = {"depth": 2, "num_heads": 4, "patch_size": 4, "hidden_size": 32, **sight}
    turns = {"type": "mrope", "mrope_section": [2, 1, 1]}
    marks = {"vision_start_token_id": 58, "vision_end_token_id": 57, "video_token_id": 59}
    whole = config(
        text_config={**WORDS, "rope_scaling": turns},
        vision_config=eyes,
        image_token_id=PICTURE,
        **marks,
    )
    ids = prompt(28, 5, 16)
    ids[:, 4], ids[:, 21] = 58, 57
    call: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    call["mm_token_type_ids"] = (ids == PICTURE).long()
    call["pixel_values"] = torch.randn(128, 3 * 2 * 4 * 4, dtype=torch.float64)
    call["image_grid_thw"] = torch.tensor([[1, 8, 8], [1, 8, 8]])
    return ready(model(whole)), {**call, "use_cache": False, "logits_to_keep": 1}


def test_a_picture_in_the_prompt_is_one_graph() -> None:
    """The picture's own stream and the prompt's: both are read apart, and edited."""
    model, call = made(llava)
    with torch.no_grad():
        model(**call)  # transformers installs hooks on the first call, under a lock
    with torch._dynamo.config.patch(
        capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True
    ):
        (graph,) = capture_calls(model, [call], fullgraph=True)
    exact = planned(graph, budget=1.0)
    assert len({edit.site for edit in exact.plan.edits}) == 2  # dead tokens of both streams
    assert exact_error(graph, exact) < 1e-9
    half = planned(graph, **HALF)
    assert lossy(half) and reference_error(graph, half) < 1e-9


def compiled(model: nn.Module, call: dict[str, Any], **options: Any) -> Any:
    LOG.clear()
    torch._dynamo.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dynamo's, of what breaks the graph
        run = torch.compile(model, backend="tokenpass", options={**OPTIONS, **options})
        return run(**call).logits


@pytest.mark.slow  # a minute: dozens of graphs
@pytest.mark.parametrize("make", [qwen2_vl, qwen2_5_vl])
def test_the_language_model_is_a_graph_of_its_own(make: Any) -> None:
    """It hands out all tokens to the graph of the head, so that edits by position alone apply."""
    model, call = made(make)
    with torch.no_grad():
        dense = model(**call).logits
    assert relative([compiled(model, call, budget=1.0)], [dense]) < 1e-9
    assert len(last_reports()) > 1
    assert relative([compiled(model, call, budget=0.5)], [dense]) < 1e-9
    codes = {r.code for report in last_reports() for r in report.rejections if report.layers}
    assert "causal_leak" in codes
    even = [{"token_prune": {"policy": "uniform", "keep_ratio": 0.6}}]
    got = compiled(model, call, passes=even)
    edited = [report for report in last_reports() if report.outcome == "edited"]
    assert edited and all("language_model" in e.site for r in edited for e in r.plan.edits)
    assert 1e-9 < relative([got], [dense]) < 2
