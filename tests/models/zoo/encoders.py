"""Text encoders of `transformers`."""

from __future__ import annotations

from typing import Any

import torch

from tests.models.zoo.common import (
    HEADS,
    LAYERS,
    TEXT,
    VOCABULARY,
    WIDTH,
    Example,
    ready,
    right_padded,
    words,
)


def bert() -> Example:
    from transformers import BertConfig, BertModel

    return ready(BertModel(BertConfig(**TEXT))), {"input_ids": words()}


def bert_padded() -> Example:
    model, _ = bert()
    return model, {"input_ids": words(), "attention_mask": right_padded()}


def bert_eager_padded() -> Example:
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(**TEXT, attn_implementation="eager"))
    return ready(model), {"input_ids": words(), "attention_mask": right_padded()}


def bert_masked_words() -> Example:
    from transformers import BertConfig, BertForMaskedLM

    return ready(BertForMaskedLM(BertConfig(**TEXT))), {"input_ids": words()}


def bert_classifier() -> Example:
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(BertConfig(**TEXT, num_labels=5))
    return ready(model), {"input_ids": words(), "attention_mask": right_padded()}


def distilbert() -> Example:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(
        dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=48, vocab_size=VOCABULARY
    )
    return ready(DistilBertModel(config)), {"input_ids": words()}


def modernbert() -> Example:
    from transformers import ModernBertConfig, ModernBertModel

    config = ModernBertConfig(**TEXT, pad_token_id=0, local_attention=8)
    return ready(ModernBertModel(config)), {
        "input_ids": words(),
        "attention_mask": torch.ones(2, 20, dtype=torch.long),
    }


def clip_text() -> Example:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(**TEXT, projection_dim=24, eos_token_id=2, bos_token_id=1)
    ids = words()
    ids[0, 12] = ids[1, 17] = 2
    return ready(CLIPTextModelWithProjection(config)), {"input_ids": ids}


def text_model(model: type, config: type, **extra: Any) -> Example:
    """A text encoder in the common sizes, over unpadded words."""
    return ready(model(config(**{**TEXT, **extra}))), {"input_ids": words()}


def roberta() -> Example:
    from transformers import RobertaConfig, RobertaModel

    return text_model(RobertaModel, RobertaConfig, type_vocab_size=1)


def xlm_roberta() -> Example:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    return text_model(XLMRobertaModel, XLMRobertaConfig, type_vocab_size=1)


def camembert() -> Example:
    from transformers import CamembertConfig, CamembertForMaskedLM

    return text_model(CamembertForMaskedLM, CamembertConfig, type_vocab_size=1)


def data2vec_text() -> Example:
    from transformers import Data2VecTextConfig, Data2VecTextModel

    return text_model(Data2VecTextModel, Data2VecTextConfig, type_vocab_size=1)


def electra() -> Example:
    from transformers import ElectraConfig, ElectraModel

    return text_model(ElectraModel, ElectraConfig, embedding_size=16)


def albert() -> Example:
    from transformers import AlbertConfig, AlbertModel

    return text_model(AlbertModel, AlbertConfig, embedding_size=16)


def ernie() -> Example:
    from transformers import ErnieConfig, ErnieModel

    return text_model(ErnieModel, ErnieConfig)


def mpnet() -> Example:
    from transformers import MPNetConfig, MPNetModel

    return text_model(MPNetModel, MPNetConfig)


def deberta_v2() -> Example:
    from transformers import DebertaV2Config, DebertaV2Model

    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
    return text_model(DebertaV2Model, DebertaV2Config, **relative)


def squeezebert() -> Example:
    from transformers import SqueezeBertConfig, SqueezeBertModel

    return text_model(SqueezeBertModel, SqueezeBertConfig, embedding_size=WIDTH)


def mobilebert() -> Example:
    from transformers import MobileBertConfig, MobileBertModel

    extra = {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}
    return text_model(MobileBertModel, MobileBertConfig, **extra)


def funnel() -> Example:
    from transformers import FunnelBaseModel, FunnelConfig

    config = FunnelConfig(
        d_model=WIDTH,
        n_head=HEADS,
        d_head=8,
        d_inner=48,
        vocab_size=VOCABULARY,
        block_sizes=[1, 2],
    )
    return ready(FunnelBaseModel(config)), {"input_ids": words()}


def rembert() -> Example:
    from transformers import RemBertConfig, RemBertModel

    return text_model(RemBertModel, RemBertConfig, input_embedding_size=16)


def esm() -> Example:
    from transformers import EsmConfig, EsmModel

    rotary = {"position_embedding_type": "rotary", "pad_token_id": 1, "mask_token_id": 2}
    return text_model(EsmModel, EsmConfig, **rotary)


def fnet() -> Example:
    from transformers import FNetConfig, FNetModel

    return text_model(FNetModel, FNetConfig)


def nystromformer() -> Example:
    from transformers import NystromformerConfig, NystromformerModel

    # with fewer landmarks than tokens the library's own mask fails under Dynamo
    sizes = {"num_landmarks": 20, "segment_means_seq_len": 20}
    return text_model(NystromformerModel, NystromformerConfig, **sizes)


def roformer() -> Example:
    from transformers import RoFormerConfig, RoFormerModel

    return text_model(RoFormerModel, RoFormerConfig, embedding_size=16)


def convbert() -> Example:
    from transformers import ConvBertConfig, ConvBertModel

    return text_model(ConvBertModel, ConvBertConfig, embedding_size=16)


def layoutlm() -> Example:
    from transformers import LayoutLMConfig, LayoutLMModel

    model, call = text_model(LayoutLMModel, LayoutLMConfig)
    box = torch.randint(0, 50, (2, 20, 4)).sort(-1).values
    return model, {**call, "bbox": box}


def bert_questions() -> Example:
    from transformers import BertConfig, BertForQuestionAnswering

    model, call = text_model(BertForQuestionAnswering, BertConfig)
    return model, {**call, "attention_mask": right_padded()}


def bert_tags() -> Example:
    from transformers import BertConfig, BertForTokenClassification

    return text_model(BertForTokenClassification, BertConfig, num_labels=5)


def eurobert() -> Example:
    from transformers import EuroBertConfig, EuroBertModel

    return text_model(EuroBertModel, EuroBertConfig, num_key_value_heads=2, pad_token_id=0)


def xlnet() -> Example:
    from transformers import XLNetConfig, XLNetModel

    config = XLNetConfig(
        d_model=WIDTH, n_layer=LAYERS, n_head=HEADS, d_inner=48, vocab_size=VOCABULARY
    )
    return ready(XLNetModel(config)), {"input_ids": words(), "use_mems": False}


def xmod() -> Example:
    from transformers import XmodConfig, XmodModel

    model = XmodModel(XmodConfig(**TEXT, default_language="en_XX"))
    return ready(model), {"input_ids": words(), "attention_mask": right_padded()}


def deberta() -> Example:
    from transformers import DebertaConfig, DebertaModel

    extra = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
    return ready(DebertaModel(DebertaConfig(**TEXT, **extra))), {"input_ids": words()}


FAMILIES = (
    xmod,
    deberta,
    bert,
    bert_padded,
    bert_eager_padded,
    bert_masked_words,
    bert_classifier,
    distilbert,
    modernbert,
    clip_text,
    roberta,
    xlm_roberta,
    camembert,
    data2vec_text,
    electra,
    albert,
    ernie,
    mpnet,
    deberta_v2,
    squeezebert,
    mobilebert,
    funnel,
    rembert,
    esm,
    fnet,
    nystromformer,
    roformer,
    convbert,
    layoutlm,
    bert_questions,
    bert_tags,
    eurobert,
    xlnet,
)
