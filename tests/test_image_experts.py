"""The experts that look at pictures, with their real weights, on photographs that ship with scikit-image."""

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage import data

from experts import ocr
from experts.faces import FaceFinder
from experts.imagenet import ImageNetClassifier
from experts.ocr import Reader, reading_order
from multimoe.config import Catalog
from multimoe.errors import BadConfig, BadInput, WeightsError
from multimoe.expert import Expert, FindWeights
from multimoe.messages import ChatRequest, ImagePart, Message, TextPart
from multimoe.outputs import Box, Labels, Objects, Output, Words

pytestmark = pytest.mark.weights

Pixels = NDArray[np.uint8]
CATS = {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"}
LINES = ("Opening hours", "Monday to Friday 9:00 - 17:30", "Saturday 10:00 - 14:00", "Closed on Sunday")


@pytest.fixture(scope="module", params=["vision-fast", "vision-careful"])
def classifier(request: pytest.FixtureRequest, catalog: Catalog, weights: FindWeights) -> ImageNetClassifier:
    return ImageNetClassifier(catalog.expert(request.param), weights)


@pytest.fixture(scope="module")
def reader(catalog: Catalog, weights: FindWeights) -> Reader:
    return Reader(catalog.expert("ocr"), weights)


@pytest.fixture(scope="module")
def finder(catalog: Catalog, weights: FindWeights) -> FaceFinder:
    return FaceFinder(catalog.expert("faces"), weights)


def shown(*pictures: Pixels) -> ChatRequest:
    return ChatRequest("r", (Message("user", tuple(ImagePart(pixels) for pixels in pictures)),))


async def answered(expert: Expert, request: ChatRequest) -> Output:
    (delta,) = [delta async for delta in expert.answer(request)]
    assert delta.output is not None
    return delta.output


def page(*lines: str, size: tuple[int, int] = (640, 360)) -> Pixels:
    picture = Image.new("RGB", size, "white")
    for row, line in enumerate(lines):
        ImageDraw.Draw(picture).text((30, 30 + 70 * row), line, fill="black", font=ImageFont.load_default(28))
    return np.asarray(picture)


def enlarged(pixels: Pixels, times: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((pixels.shape[1] * times, pixels.shape[0] * times)))


# what is it


async def test_a_cat_is_called_a_cat(classifier: ImageNetClassifier) -> None:
    output = await answered(classifier, shown(data.chelsea()))
    assert isinstance(output, Labels)
    assert {label.name for label in output.labels[:5]} & CATS


async def test_a_cup_of_coffee_is_called_one(classifier: ImageNetClassifier) -> None:
    output = await answered(classifier, shown(data.coffee()))
    assert isinstance(output, Labels)
    assert {label.name for label in output.labels[:3]} & {"espresso", "cup", "coffee mug"}


async def test_labels_are_the_top_of_one_distribution(classifier: ImageNetClassifier) -> None:
    output = await answered(classifier, shown(data.astronaut()))
    assert isinstance(output, Labels)
    chances = [label.probability for label in output.labels]
    assert (output.space, len(chances)) == ("imagenet-1k", 20)
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) <= 1 + 1e-6
    assert all(label.id and label.id.startswith("n") and len(label.id) == 9 for label in output.labels)


def test_a_batch_of_photographs_is_classified_as_one_by_one(classifier: ImageNetClassifier) -> None:
    requests = [shown(pixels) for pixels in (data.chelsea(), data.coffee(), data.rocket())]
    together = classifier.answer_batch(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = classifier.answer_batch([request])
        assert isinstance(alone.output, Labels)
        assert isinstance(answer.output, Labels)
        assert [label.id for label in alone.output.labels[:5]] == [label.id for label in answer.output.labels[:5]]
        np.testing.assert_allclose(
            [label.probability for label in alone.output.labels],
            [label.probability for label in answer.output.labels],
            atol=1e-5,
        )


def test_two_pictures_of_one_request_share_the_distribution(classifier: ImageNetClassifier) -> None:
    cat, coffee, both = (
        {label.id: label.probability for label in answer.output.labels}
        for answer in classifier.answer_batch(
            [shown(data.chelsea()), shown(data.coffee()), shown(data.chelsea(), data.coffee())]
        )
        if isinstance(answer.output, Labels)
    )
    surest = max(cat, key=lambda id: cat[id])
    assert both[surest] == pytest.approx((cat[surest] + coffee.get(surest, 0)) / 2, abs=1e-3)


async def test_two_pictures_of_one_request_are_told_apart_as_well(classifier: ImageNetClassifier) -> None:
    cat, coffee, both = [
        await answered(classifier, shown(*pictures))
        for pictures in ([data.chelsea()], [data.coffee()], [data.chelsea(), data.coffee()])
    ]
    assert isinstance(cat, Labels)
    assert isinstance(coffee, Labels)
    assert isinstance(both, Labels)
    assert (cat.each, len(both.each)) == ((), 2)
    for alone, beside in zip((cat, coffee), both.each, strict=True):
        assert [label.id for label in beside.labels[:3]] == [label.id for label in alone.labels[:3]]
        assert beside.labels[0].probability == pytest.approx(alone.labels[0].probability, abs=1e-4)


async def test_labels_have_all_their_names(classifier: ImageNetClassifier) -> None:
    found = await answered(classifier, shown(data.chelsea()))
    assert isinstance(found, Labels)
    (tabby,) = (label for label in found.labels if label.id == "n02123045")
    assert (tabby.name, tabby.synonyms) == ("tabby", ("tabby cat",))


def test_a_lower_temperature_makes_it_surer(catalog: Catalog, weights: FindWeights) -> None:
    spec = catalog.expert("vision-fast")
    surest = []
    for temperature in (1.0, 0.5):
        options = spec.options | {"temperature": temperature}
        expert = ImageNetClassifier(spec.model_copy(update={"options": options}), weights)
        surest.append(expert.classify([Image.fromarray(data.chelsea())]).max().item())
    assert surest[1] > surest[0]


def test_refuses_a_variant_that_does_not_exist(catalog: Catalog, weights: FindWeights) -> None:
    spec = catalog.expert("vision-fast").model_copy(update={"options": {"variant": "lite9"}})
    with pytest.raises(BadConfig, match=r"lite0.*lite9"):
        ImageNetClassifier(spec, weights)


async def test_a_request_without_a_picture_is_refused_and_hurts_no_other(classifier: ImageNetClassifier) -> None:
    text = ChatRequest("t", (Message("user", (TextPart("what is this?"),)),))
    refused, fine = await asyncio.gather(
        answered(classifier, text), answered(classifier, shown(data.chelsea())), return_exceptions=True
    )
    assert isinstance(refused, BadInput)
    assert "image" in str(refused)
    assert isinstance(fine, Labels)


# the words


async def test_printed_lines_are_read_exactly_from_top_to_bottom(reader: Reader) -> None:
    output = await answered(reader, shown(page(*LINES)))
    assert isinstance(output, Words)
    assert tuple(box.text for box in output.boxes) == LINES


def test_boxes_lie_on_the_picture_that_was_sent_however_large(reader: Reader) -> None:
    small, large = reader.read(page(*LINES)), reader.read(enlarged(page(*LINES), 4))
    assert [box.text for box in large] == list(LINES)
    for one, four in zip(small, large, strict=True):
        assert (four.x0 / 4, four.y0 / 4) == pytest.approx((one.x0, one.y0), abs=12)
        assert (four.x1 / 4, four.y1 / 4) == pytest.approx((one.x1, one.y1), abs=12)


def test_words_are_not_seen_in_fur_or_bricks(reader: Reader) -> None:
    assert reader.read(data.chelsea()) == []
    assert reader.read(np.stack([data.brick()] * 3, axis=-1)) == []


def test_pictures_of_one_request_are_read_in_order(reader: Reader) -> None:
    (both,) = reader.answer_batch([shown(page("Second street"), page("First avenue"))])
    assert isinstance(both.output, Words)
    assert [(box.text, box.picture) for box in both.output.boxes] == [("Second street", 1), ("First avenue", 2)]


def test_reading_order_follows_lines_even_where_they_slant() -> None:
    def box(text: str, x: float, y: float) -> Box:
        return Box(x0=x, y0=y, x1=x + 40, y1=y + 20, text=text, score=1)

    boxes = [box("d", 60, 44), box("b", 60, 6), box("c", 0, 40), box("a", 0, 0)]
    assert "".join(box.text for box in reading_order(boxes)) == "abcd"


def test_the_reader_downloads_nothing(catalog: Catalog, weights: FindWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    from rapidocr.utils.download_file import DownloadFile

    def refuse(*_: object) -> None:
        raise AssertionError("asked the network for a model")

    monkeypatch.setattr(DownloadFile, "run", refuse)
    assert Reader(catalog.expert("ocr"), weights).read(page("Hello there"))[0].text == "Hello there"


def test_a_package_without_the_models_is_named(
    catalog: Catalog, weights: FindWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ocr.MODELS, "Det.model_path", "PP-OCRv99.onnx")
    with pytest.raises(WeightsError, match=r"PP-OCRv99\.onnx"):
        Reader(catalog.expert("ocr"), weights)


# the faces


async def test_the_astronaut_has_exactly_one_face_and_it_is_where_it_is(finder: FaceFinder) -> None:
    output = await answered(finder, shown(data.astronaut()))
    assert isinstance(output, Objects)
    (face,) = output.boxes
    assert (face.text, face.score > 0.99) == ("face", True)
    assert 160 < face.x0 < 200 < 250 < face.x1 < 290  # eyes, nose and mouth lie between
    assert 40 < face.y0 < 90 < 150 < face.y1 < 200


@pytest.mark.parametrize("photograph", ["chelsea", "coffee", "rocket"])
def test_no_face_where_nobody_is(finder: FaceFinder, photograph: str) -> None:
    assert finder.find(getattr(data, photograph)()) == []


def test_every_face_of_a_crowd_is_counted(finder: FaceFinder) -> None:
    crowd = np.tile(data.astronaut()[:256, 128:384], (2, 3, 1))
    assert len(finder.find(crowd)) == 6


def test_a_face_is_found_in_a_large_picture_too(finder: FaceFinder) -> None:
    (small,), (large,) = finder.find(data.astronaut()), finder.find(enlarged(data.astronaut(), 4))
    assert large.x0 / 4 == pytest.approx(small.x0, abs=8)
    assert large.y1 / 4 == pytest.approx(small.y1, abs=8)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1, 4000), (4000, 3)])
def test_pictures_too_small_for_a_face_are_no_trouble(finder: FaceFinder, size: tuple[int, int]) -> None:
    assert finder.find(np.zeros((*size, 3), np.uint8)) == []


def test_faces_of_a_batch_are_those_of_each(finder: FaceFinder) -> None:
    requests = [shown(data.astronaut()), shown(data.chelsea()), shown(data.astronaut(), data.astronaut())]
    counts = [
        len(answer.output.boxes) for answer in finder.answer_batch(requests) if isinstance(answer.output, Objects)
    ]
    assert counts == [1, 0, 2]


async def test_a_face_says_which_picture_it_is_in(finder: FaceFinder) -> None:
    output = await answered(finder, shown(data.chelsea(), data.astronaut()))
    assert isinstance(output, Objects)
    assert [face.picture for face in output.boxes] == [2]
