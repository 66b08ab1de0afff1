"""What kind of file a text is: one of some 200 source languages, data formats and prose, by Magika (Google).

It reads the text alone. A few words are prose to it whatever they say.
"""

from collections.abc import Sequence

import onnxruntime  # type: ignore[import-untyped]  # it ships no types
from magika import Magika, PredictionMode

from multimoe.config import ExpertSpec, Settings
from multimoe.expert import Answer, BatchExpert, FindWeights
from multimoe.messages import ChatRequest
from multimoe.outputs import Label, Labels
from multimoe.passage import passage


class ContentType(BatchExpert):
    """It takes no weights and no options: the model is part of the engine."""

    def __init__(self, spec: ExpertSpec, weights: FindWeights) -> None:
        super().__init__(spec, weights)
        self.options(Settings)
        # its best guess with the probability of that guess; by default an unsure guess becomes a sure "text"
        self._engine = OneThread(prediction_mode=PredictionMode.BEST_GUESS)

    def answer_batch(self, requests: Sequence[ChatRequest]) -> list[Answer]:
        return [Answer(self.identify(passage(request.text))) for request in requests]

    def identify(self, text: str) -> Labels:
        """The likeliest content type by its MIME type; all others share the rest."""
        result = self._engine.identify_bytes(text.encode())
        kind, score = result.output, min(max(result.score, 0.0), 1.0)
        return Labels(
            space="content-type", labels=(Label(name=kind.description, id=kind.mime_type, probability=score),)
        )


class OneThread(Magika):
    """By itself it takes a thread a core, which spin for their next task: four times the processor time of the task."""

    def _init_onnx_session(self) -> onnxruntime.InferenceSession:
        onnxruntime.disable_telemetry_events()
        one_thread = onnxruntime.SessionOptions()
        one_thread.intra_op_num_threads = one_thread.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(self._model_path, one_thread, providers=["CPUExecutionProvider"])
