"""The embedded weights, loaded into stock modules of timm and transformers, and nothing else.

Every load is strict, so a wrong file fails here and not as a bad answer. Nothing is unpickled but tensors
(`weights_only=True`). Each loader imports its own library: a process pays only for the model it serves.
It knows no catalog and no expert; paths come in, modules in eval mode come out.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  # to catch
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from multimoe.config import nearest
from multimoe.errors import BadConfig, WeightsError
from multimoe.outputs import Label, Labels

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, WhisperForConditionalGeneration, WhisperProcessor

LiteVariant = Literal["lite0", "lite1", "lite2"]
IMAGENET = "imagenet-1k"  # the label space of `imagenet_labels`


# --- EfficientNet-Lite ---

_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def efficientnet_lite(path: Path, variant: LiteVariant) -> nn.Module:
    """timm's model with the weights of the efficientnet-lite-pytorch packages: same outputs, bit for bit.

    Maps (n, 3, side, side) float32 from `efficientnet_lite_transform` to (n, 1000) logits. Raises WeightsError.
    """
    import timm

    model: nn.Module = timm.create_model(f"tf_efficientnet_{variant}", pretrained=False)
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")  # noqa: TID251  # pinned by hash
        model.load_state_dict(_timm_names(state, model), strict=True)
    except (OSError, RuntimeError, UnpicklingError, AttributeError, KeyError, IndexError, ValueError) as error:
        raise WeightsError(f"{path} does not hold the weights of EfficientNet-{variant}: {error}") from error
    return model.eval()


def efficientnet_lite_transform(variant: LiteVariant) -> "Callable[[Image], torch.Tensor]":
    """An RGB picture to (3, side, side) float32, with timm's own settings for the model (bicubic, mean = std = 0.5)."""
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    settings: Any = timm.get_pretrained_cfg(f"tf_efficientnet_{variant}")
    config = resolve_data_config(pretrained_cfg=settings.to_dict())
    transform: Callable[[Image], torch.Tensor] = create_transform(**config, is_training=False)
    return transform


def imagenet_labels() -> tuple[tuple[str, str], ...]:
    """(WordNet id, synonyms) of the 1,000 classes in the order of the logits: ("n02123045", "tabby, tabby cat")."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return tuple((info.index_to_label_name(i), info.index_to_description(i)) for i in range(1000))


# --- any classifier of timm ---


@dataclass(frozen=True)
class Classifier:
    """`network` maps (n, 3, side, side) float32 from `transform` to (n, classes) logits.

    `labels`, in the order of the logits, and their `space` are empty where the weights do not name them.
    """

    network: nn.Module
    transform: "Callable[[Image], torch.Tensor]"
    classes: int
    labels: tuple[Label, ...] = ()
    space: str = ""


def timm_classifier(path: Path, architecture: str = "", arguments: Mapping[str, Any] | None = None) -> Classifier:
    """From a safetensors file and the name of its `architecture`, or a folder as timm keeps on a hub.

    `arguments` go to the model's constructor. Raises BadConfig for a name that timm does not know, WeightsError for
    weights of another model.
    """
    import timm
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    folder = path.is_dir()
    file = path / "model.safetensors" if folder else path
    name = architecture or f"local-dir:{path}"
    if architecture and not timm.is_model(architecture):
        near = nearest(architecture, timm.list_models())
        raise BadConfig(f"timm has no model {architecture!r}{near if 'mean' in near else ''}")
    try:
        state = safetensors.torch.load_file(file)
        model: Any = timm.create_model(name, pretrained=False, **{**_heads(name, state), **(arguments or {})})
        model.load_state_dict(state, strict=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{path} does not hold the weights of {architecture or 'a model of timm'}: {error}"
        ) from error
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    labels, space = timm_labels(model.pretrained_cfg, model.num_classes)
    return Classifier(model.eval(), transform, model.num_classes, labels, space)


def _heads(name: str, state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """The number of classes, read from the weights where timm's settings name the layer that tells them apart."""
    import timm

    if name.startswith("local-dir:"):
        return {}
    settings: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
    layer = settings.classifier if settings else None
    found = state.get(f"{layer}.weight") if isinstance(layer, str) else None
    return {} if found is None else {"num_classes": found.shape[0]}


def timm_labels(settings: Mapping[str, Any], classes: int) -> tuple[tuple[Label, ...], str]:
    """The labels a model's settings bring, else those of the ImageNet that has as many classes, and their space."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    if names := settings.get("label_names"):
        told = settings.get("label_descriptions") or {}
        return tuple(_label(told.get(name, name), name if name in told else None) for name in names), ""
    subset = infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        return (), ""
    info = ImageNetInfo(subset)
    ids = [info.index_to_label_name(at) for at in range(classes)]
    return tuple(_label(info.index_to_description(at), ids[at]) for at in range(classes)), subset


def _label(names: str, id: str | None) -> Label:
    first, *others = names.split(", ")
    return Label(name=first, id=id, synonyms=tuple(others), probability=0.0)


def list_labels(probabilities: torch.Tensor, labels: Sequence[Label], space: str, top: int) -> Labels:
    """The `top` of the mean of (pictures, classes), and, of several pictures, of each."""
    each = [_top(row, labels, space, top) for row in probabilities] if len(probabilities) > 1 else []
    return _top(probabilities.mean(dim=0), labels, space, top).model_copy(update={"each": tuple(each)})


def _top(probabilities: torch.Tensor, labels: Sequence[Label], space: str, top: int) -> Labels:
    best = probabilities.topk(min(top, len(labels)))
    pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    named = tuple(labels[at].model_copy(update={"probability": min(p, 1.0)}) for p, at in pairs)
    return Labels(space=space, labels=named)


def _timm_names(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    stages: Any = model.get_submodule("blocks")
    blocks = [(f"blocks.{s}.{b}", s == 0) for s, stage in enumerate(stages) for b in range(len(stage))]
    return {_timm_name(key, blocks): tensor for key, tensor in state.items()}


def _timm_name(key: str, blocks: list[tuple[str, bool]]) -> str:
    parts = key.split(".")
    if parts[0] != "_blocks":
        return ".".join([_STEM[parts[0]], *parts[1:]])
    prefix, separable = blocks[int(parts[1])]
    return ".".join([prefix, (_SEPARABLE if separable else _INVERTED)[parts[2]], *parts[3:]])


# --- MiniLM ---


def minilm(folder: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The sentence encoder and its tokenizer; mean pooling is the caller's. Raises WeightsError."""
    from transformers import BertConfig, BertModel, BertTokenizer

    try:
        model = BertModel(BertConfig.from_pretrained(folder, local_files_only=True))
        state = safetensors.torch.load_file(folder / "model.safetensors")
        state.pop("embeddings.position_ids", None)  # 0, 1, 2, ...: older versions stored it
        model.load_state_dict(state, strict=True)
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{folder} does not hold the sentence encoder: {error}") from error
    return model.eval(), tokenizer


# --- Whisper ---

_CT2_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_CT2_TO_TORCH = {"gamma": "weight", "beta": "bias", "encodings": "weight"}
_WHISPER_MODULES = {"self_attention": "self_attn", "attention": "encoder_attn"}
_STACKS = ("encoder", "decoder")
_PREVIOUS, _NO_TIMESTAMPS = "<|startofprev|>", "<|notimestamps|>"


def whisper(folder: Path) -> "tuple[WhisperForConditionalGeneration, WhisperProcessor]":
    """Whisper from a CTranslate2 folder (model.bin, config.json, tokenizer.json): the same numbers, as float32.

    The processor turns 16 kHz samples into log-mel input and tokens into text. Raises WeightsError.
    """
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

    try:
        tensors = _read_ct2(folder / "model.bin")
        settings = json.loads((folder / "config.json").read_text())
        tokenizer = _whisper_tokenizer(folder / "tokenizer.json")
        state = dict(_whisper_state(tensors))
        model = WhisperForConditionalGeneration(_whisper_config(tensors, tokenizer))
        model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=True)
    except (OSError, ValueError, KeyError, RuntimeError, struct.error) as error:
        raise WeightsError(f"{folder} does not hold a Whisper model of CTranslate2: {error}") from error
    model.generation_config = _whisper_generation(settings, tokenizer)
    mels = tensors["encoder/conv1/weight"].shape[1]
    return model.eval(), WhisperProcessor(WhisperFeatureExtractor(feature_size=mels), tokenizer)


def _read_ct2(path: Path) -> dict[str, NDArray[Any]]:
    """Variables of a CTranslate2 model file, binary version 6 (ctranslate2/specs/model_spec.py, `_serialize`)."""
    with path.open("rb") as file:
        version, _spec, _revision = _unpack(file, "I")[0], _string(file), _unpack(file, "I")[0]
        if version != 6:
            raise ValueError(f"binary version {version}, not 6")
        tensors = dict(_variable(file) for _ in range(_unpack(file, "I")[0]))
        for _ in range(_unpack(file, "I")[0]):
            alias, name = _string(file), _string(file)
            tensors[alias] = tensors[name]
    return tensors


def _variable(file: BinaryIO) -> tuple[str, NDArray[Any]]:
    name = _string(file)
    shape = _unpack(file, "I" * _unpack(file, "B")[0])
    code, size = _unpack(file, "BI")
    return name, np.frombuffer(file.read(size), _CT2_DTYPES[code]).reshape(shape)


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))


def _string(file: BinaryIO) -> str:
    return file.read(_unpack(file, "H")[0]).rstrip(b"\0").decode()


def _whisper_state(tensors: dict[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """CTranslate2 fuses q, k, v of self-attention into linear_0 and k, v of cross-attention into linear_1."""
    for name, array in tensors.items():
        if array.ndim == 0:
            continue  # settings, not weights
        *path, kind = name.split("/")
        for part, values in _split(path, array):
            if part.endswith("k_proj") and kind == "bias":
                if values.any():
                    raise ValueError(f"{name} has a bias for the keys, which Whisper has not")
                continue
            yield f"{part}.{_CT2_TO_TORCH.get(kind, kind)}", values.astype(np.float32)


def _split(path: list[str], array: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The transformers module names (and their rows of `array`) of one CTranslate2 module."""
    if path == ["decoder", "projection"]:
        yield "proj_out", array
        return
    stack, *rest = path
    if len(rest) == 1:
        names = {"position_encodings": "embed_positions", "embeddings": "embed_tokens"}
        yield f"model.{stack}.{names.get(rest[0], rest[0])}", array
        return
    layer, block, module = rest
    at = f"model.{stack}.layers.{layer.removeprefix('layer_')}"
    if block == "ffn":
        yield f"{at}.{ {'layer_norm': 'final_layer_norm', 'linear_0': 'fc1', 'linear_1': 'fc2'}[module] }", array
        return
    attention = f"{at}.{_WHISPER_MODULES[block]}"
    if module == "layer_norm":
        yield f"{attention}_layer_norm", array
        return
    fused = (
        ["q_proj k_proj v_proj", "out_proj"] if block == "self_attention" else ["q_proj", "k_proj v_proj", "out_proj"]
    )
    projections = fused[int(module.removeprefix("linear_"))].split()
    yield from zip((f"{attention}.{p}" for p in projections), np.split(array, len(projections)), strict=True)


def _whisper_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    from transformers import WhisperTokenizer

    # named one by one, since timestamps begin after the last token that is known to be special
    special = [token["content"] for token in json.loads(path.read_text())["added_tokens"]]
    tokenizer: PreTrainedTokenizerBase = WhisperTokenizer(tokenizer_file=str(path), extra_special_tokens=special)
    return tokenizer


def _whisper_config(tensors: dict[str, NDArray[Any]], tokenizer: "PreTrainedTokenizerBase") -> Any:
    """Every size is read from the weights."""
    from transformers import WhisperConfig

    vocabulary, width = tensors["decoder/embeddings/weight"].shape
    feed_forward = tensors["encoder/layer_0/ffn/linear_0/weight"].shape[0]
    layers = {stack: sum(f"{stack}/layer_{i}/ffn/linear_0/weight" in tensors for i in range(64)) for stack in _STACKS}
    return WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=tensors["encoder/conv1/weight"].shape[1],
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=int(tensors["encoder/num_heads"]),
        decoder_attention_heads=int(tensors["decoder/num_heads"]),
        encoder_ffn_dim=feed_forward,
        decoder_ffn_dim=feed_forward,
        max_source_positions=len(tensors["encoder/position_encodings/encodings"]),
        max_target_positions=len(tensors["decoder/position_encodings/encodings"]),
        **_special_tokens(tokenizer),
    )


def _whisper_generation(settings: dict[str, Any], tokenizer: "PreTrainedTokenizerBase") -> Any:
    """What openai/whisper-tiny.en ships as its generation settings, rebuilt from the CTranslate2 files."""
    from transformers import GenerationConfig

    return GenerationConfig(
        **_special_tokens(tokenizer),
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids(_NO_TIMESTAMPS),
        prev_sot_token_id=tokenizer.convert_tokens_to_ids(_PREVIOUS),
        max_initial_timestamp_index=50,  # the first timestamp is at most 1 s
        is_multilingual=False,
        max_length=448,
    )


def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    start, end = (tokenizer.convert_tokens_to_ids(t) for t in ("<|startoftranscript|>", "<|endoftext|>"))
    return {"decoder_start_token_id": start, "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
