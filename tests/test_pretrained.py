"""The embedded weights: every load is strict, conversions lose nothing, and the models know what they should."""

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from multimoe.config import Catalog
from multimoe.errors import WeightsError
from multimoe.expert import FindWeights
from multimoe.pretrained import (
    LiteVariant,
    efficientnet_lite,
    efficientnet_lite_transform,
    imagenet_labels,
    minilm,
    whisper,
)

pytestmark = pytest.mark.weights

CODES = {np.dtype(np.float32): 0, np.dtype(np.int8): 1, np.dtype(np.int16): 2, np.dtype(np.float16): 4}


@pytest.fixture(scope="module")
def lite0(catalog: Catalog, weights: FindWeights) -> Path:
    return weights(catalog.gate.encoders["image"].weights["model"])


@pytest.fixture(scope="module")
def whisper_folder(catalog: Catalog, weights: FindWeights) -> Path:
    return weights(catalog.gate.encoders["audio"].weights["model"])


def test_lite0_knows_a_cat_and_a_cup(lite0: Path) -> None:
    model, transform, labels = (
        efficientnet_lite(lite0, "lite0"),
        efficientnet_lite_transform("lite0"),
        imagenet_labels(),
    )
    pictures = torch.stack([transform(Image.fromarray(photo())) for photo in (skimage.data.cat, skimage.data.coffee)])
    with torch.inference_mode():
        cat, coffee = (labels[int(i)] for i in model(pictures).argmax(-1))
    assert "cat" in cat[1]
    assert coffee == ("n07920052", "espresso")


@pytest.mark.parametrize(("variant", "side"), [("lite0", 224), ("lite1", 240), ("lite2", 260)])
def test_pictures_enter_at_the_size_the_model_was_trained_for(variant: LiteVariant, side: int) -> None:
    white = efficientnet_lite_transform(variant)(Image.new("RGB", (500, 300), "white"))
    assert white.shape == (3, side, side)
    assert white.unique().tolist() == [1.0]  # (1 - 0.5) / 0.5


def test_labels_are_a_thousand_with_wordnet_ids() -> None:
    labels = imagenet_labels()
    assert labels[281] == ("n02123045", "tabby, tabby cat")
    assert len({wordnet for wordnet, _ in labels}) == 1000


def test_the_weights_of_another_variant_are_refused(lite0: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="EfficientNet-lite2"):
        efficientnet_lite(lite0, "lite2")
    (tmp_path / "short.pth").write_bytes(lite0.read_bytes()[:100_000])
    with pytest.raises(WeightsError, match=r"short\.pth"):
        efficientnet_lite(tmp_path / "short.pth", "lite0")


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"weights": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError):
        efficientnet_lite(tmp_path / "evil.pth", "lite0")
    assert not (tmp_path / "ran").exists()


def test_minilm_is_refused_where_it_is_not(tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        minilm(tmp_path)


def ct2_variables(model: torch.nn.Module) -> Iterator[tuple[str, np.ndarray]]:
    """The inverse of the conversion: CTranslate2's variables of a Whisper of transformers."""
    state = {name: tensor.half().numpy() for name, tensor in model.state_dict().items()}
    parts = {"weight": "weight", "bias": "bias"}
    for stack in ("encoder", "decoder"):
        yield f"{stack}/num_heads", np.int16(2)
        yield f"{stack}/position_encodings/encodings", state[f"model.{stack}.embed_positions.weight"]
        norms = {f"{stack}/layer_norm": f"model.{stack}.layer_norm"}
        for i in range(2):
            at, layer = f"{stack}/layer_{i}", f"model.{stack}.layers.{i}"
            blocks = {"self_attention": "self_attn", **({"attention": "encoder_attn"} if stack == "decoder" else {})}
            for block, module in blocks.items():
                norms[f"{at}/{block}/layer_norm"] = f"{layer}.{module}_layer_norm"
                zero = np.zeros(16, np.float16)
                for part in parts:
                    q, k, v, out = (
                        state.get(f"{layer}.{module}.{p}_proj.{part}", zero) for p in ("q", "k", "v", "out")
                    )
                    fused = (
                        [np.concatenate([q, k, v]), out]
                        if block == "self_attention"
                        else [q, np.concatenate([k, v]), out]
                    )
                    for j, array in enumerate(fused):
                        yield f"{at}/{block}/linear_{j}/{part}", array
            norms[f"{at}/ffn/layer_norm"] = f"{layer}.final_layer_norm"
            for j, module in enumerate(("fc1", "fc2")):
                for part in parts:
                    yield f"{at}/ffn/linear_{j}/{part}", state[f"{layer}.{module}.{part}"]
        for name, module in norms.items():
            yield f"{name}/gamma", state[f"{module}.weight"]
            yield f"{name}/beta", state[f"{module}.bias"]
    for conv in ("conv1", "conv2"):
        for part in parts:
            yield f"encoder/{conv}/{part}", state[f"model.encoder.{conv}.{part}"]
    yield "decoder/embeddings/weight", state["model.decoder.embed_tokens.weight"]


def ct2_file(variables: dict[str, np.ndarray], version: int = 6) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data += text(name) + shape + struct.pack("<BI", CODES[array.dtype], array.nbytes) + array.tobytes()
    return data + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")


@pytest.fixture
def small(whisper_folder: Path, tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A folder of CTranslate2 with a random Whisper, and that Whisper."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    size = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=51864, **size, **heads)).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter).half().float()
    model.tie_weights()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(whisper_folder / name, tmp_path)
    (tmp_path / "model.bin").write_bytes(ct2_file(dict(ct2_variables(model))))
    return tmp_path, model


def test_whisper_conversion_loses_nothing(small: tuple[Path, torch.nn.Module]) -> None:
    folder, original = small
    converted, _ = whisper(folder)
    assert converted.config.decoder_attention_heads == 2
    state = original.state_dict()
    assert converted.state_dict().keys() == state.keys()
    for name, tensor in converted.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_damaged_whisper_files_are_refused(small: tuple[Path, torch.nn.Module]) -> None:
    folder, original = small
    variables, whole = dict(ct2_variables(original)), (folder / "model.bin").read_bytes()
    biased = {**variables, "encoder/layer_0/self_attention/linear_0/bias": np.ones(48, np.float16)}
    fewer = {name: array for name, array in variables.items() if "conv2" not in name}
    for data in (whole[: len(whole) // 2], b"", ct2_file(variables, version=5), ct2_file(biased), ct2_file(fewer)):
        (folder / "model.bin").write_bytes(data)
        with pytest.raises(WeightsError, match="does not hold a Whisper"):
            whisper(folder)
    (folder / "model.bin").write_bytes(whole)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(WeightsError):
        whisper(folder)


def test_whisper_speaks_the_tokens_it_was_trained_on(whisper_folder: Path) -> None:
    model, processor = whisper(whisper_folder)
    settings = model.generation_config
    assert (settings.decoder_start_token_id, settings.eos_token_id) == (50257, 50256)
    assert (settings.no_timestamps_token_id, settings.prev_sot_token_id) == (50362, 50360)
    assert sum(p.numel() for p in model.parameters()) == 37_760_256
    tokens = processor.tokenizer(" hello world").input_ids
    assert processor.decode(tokens, skip_special_tokens=True) == " hello world"
    assert processor.decode([50363, 995, 50413], decode_with_timestamps=True) == "<|0.00|> world<|1.00|>"
