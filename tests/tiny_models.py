"""Models of the architectures of deploy/gpu.yaml, tiny and random, in folders such as a hub has: weights as
safetensors, tokenizer, processor and chat template beside them. They show that loading and serving work, not that
answers are good.
"""

# ruff: noqa: S106  # marks of a vocabulary are called tokens, and are no passwords

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from multimoe.messages import ImagePart

CORPUS = [
    "What is the capital of France? The capital of France is Paris, a city on the river Seine.",
    "Write a function that adds two numbers: def add(a, b): return a + b",
    "Wie heißt die Hauptstadt? naïve café Ünïcode 12 + 30 = 42, größer als 7.",
    "A cat sat on the mat. What do you see in this picture? A dog, a house and a tree.",
]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# as Mixtral's: no system prompt, strict alternation
INST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]{% else %}{{ message.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)


def picture(seed: int = 0) -> ImagePart:
    return ImagePart(np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8))


LANGUAGE: dict[str, dict[str, Any]] = {  # model_type -> what it needs besides SIZES
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


def language_model(folder: Path, model_type: str) -> Path:
    """A causal language model; Mixtral with its kind of tokenizer and template, all others with Qwen's."""
    torch.manual_seed(0)
    tokenizer = _sentencepiece() if model_type == "mixtral" else _byte_level()
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": None}
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), initializer_range=0.5, **SIZES, **LANGUAGE[model_type], **ids
    )
    return _saved(folder, transformers.AutoModelForCausalLM.from_config(config), tokenizer)


def vision_language_model(folder: Path) -> Path:
    """Qwen2.5-VL: a picture becomes one token for each 28 x 28 pixels."""
    torch.manual_seed(0)
    tokenizer = _byte_level()
    marks = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    marks |= {
        f"vision_{side}_token_id": tokenizer.convert_tokens_to_ids(f"<|vision_{side}|>") for side in ("start", "end")
    }
    seeing = {"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 4, "out_hidden_size": 32}
    rotary = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    config = transformers.Qwen2_5_VLConfig(
        text_config=SIZES | {"vocab_size": len(tokenizer), "rope_parameters": rotary, "initializer_range": 0.5},
        vision_config=seeing | {"window_size": 56, "fullatt_block_indexes": [1]},
        **marks,
    )
    model = transformers.AutoModelForImageTextToText.from_config(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(),
        video_processor=transformers.Qwen2VLVideoProcessor(),
        tokenizer=tokenizer,
        chat_template=CHATML,
    )
    return _saved(folder, model, processor)


def whisper(folder: Path) -> Path:
    """Whisper as it ships: many languages, timestamps every 20 ms."""
    torch.manual_seed(0)
    plain = _byte_level().backend_tokenizer
    start, end, silent = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
    marks = [
        end,
        start,
        "<|en|>",
        "<|de|>",
        "<|translate|>",
        "<|transcribe|>",
        "<|startofprev|>",
        "<|nospeech|>",
        silent,
    ]
    tokenizer = transformers.WhisperTokenizer(
        vocab=plain.get_vocab(), merges=[], pad_token=end, extra_special_tokens=[*marks]
    )
    tokenizer.add_tokens([f"<|{step / 50:.2f}|>" for step in range(1501)])
    id = dict(zip(marks, tokenizer.convert_tokens_to_ids(marks), strict=True))
    known = {
        "decoder_start_token_id": id[start],
        "bos_token_id": id[end],
        "eos_token_id": id[end],
        "pad_token_id": id[end],
    }
    width = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    width |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.5}
    config = transformers.WhisperConfig(vocab_size=len(tokenizer), num_mel_bins=128, **width, **known)
    model = transformers.AutoModelForSpeechSeq2Seq.from_config(config)
    model.generation_config = transformers.GenerationConfig(
        **known,
        is_multilingual=True,
        lang_to_id={"<|en|>": id["<|en|>"], "<|de|>": id["<|de|>"]},
        task_to_id={"transcribe": id["<|transcribe|>"], "translate": id["<|translate|>"]},
        no_timestamps_token_id=id[silent],
        prev_sot_token_id=id["<|startofprev|>"],
        max_initial_timestamp_index=50,
        max_length=24,
    )
    return _saved(folder, model, tokenizer, transformers.WhisperFeatureExtractor(feature_size=128))


def ctc(folder: Path) -> Path:
    """Wav2Vec2, which spells letter by letter: a letter every 20 ms."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVKXJQZ'"]
    (folder / "vocab.json").write_text(json.dumps({letter: at for at, letter in enumerate(letters)}))
    layers = {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    sizes = {
        name: SIZES[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    config = transformers.Wav2Vec2Config(vocab_size=len(letters), pad_token_id=0, **sizes, **layers)
    model = transformers.AutoModelForCTC.from_config(config)
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    return _saved(folder, model, tokenizer, transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False))


def text_classifier(folder: Path, labels: Sequence[str], **settings: Any) -> Path:
    torch.manual_seed(0)
    tokenizer = _byte_level()
    sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 64}
    names = dict(enumerate(labels))
    config = transformers.DistilBertConfig(
        vocab_size=len(tokenizer), id2label=names, pad_token_id=0, **sizes, **settings
    )
    return _saved(folder, transformers.AutoModelForSequenceClassification.from_config(config), tokenizer)


def image_classifier(folder: Path, labels: Sequence[str], **settings: Any) -> Path:
    torch.manual_seed(0)
    sizes = {
        name: SIZES[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    names = dict(enumerate(labels))
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, id2label=names, initializer_range=0.5, **sizes, **settings
    )
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    return _saved(folder, transformers.AutoModelForImageClassification.from_config(config), processor)


def timm_classifier(folder: Path, architecture: str, **sizes: Any) -> Path:
    """As timm keeps its models on a hub; without names of its own, the 1,000 labels are ImageNet's."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, **sizes)
    settings = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    about = {"architecture": architecture, "num_classes": 1000, "model_args": sizes, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(about))
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def audio_classifier(folder: Path, labels: Sequence[str], **settings: Any) -> Path:
    """The audio spectrogram transformer (AST), over 10.24 s."""
    torch.manual_seed(0)
    sizes = {
        name: SIZES[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    names = dict(enumerate(labels))
    config = transformers.ASTConfig(id2label=names, initializer_range=0.5, **sizes, **settings)
    return _saved(
        folder, transformers.AutoModelForAudioClassification.from_config(config), transformers.ASTFeatureExtractor()
    )


def _saved(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


def _byte_level() -> PreTrainedTokenizerFast:
    """A byte-level BPE with ChatML's marks, as GPT-2's and Qwen's."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    marks += ["<|video_pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    plain.train_from_iterator(CORPUS, trainer)
    plain.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


def _sentencepiece() -> PreTrainedTokenizerFast:
    """A BPE over words with ▁ and bytes for the rest, as Llama's and Mixtral's."""
    bytes_too = [f"<0x{byte:02X}>" for byte in range(256)]
    plain = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    plain.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    plain.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    marks = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*marks, *bytes_too], show_progress=False)
    plain.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=INST
    )
