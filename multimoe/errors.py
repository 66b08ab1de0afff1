"""Every error the product raises on purpose. It knows nothing of HTTP: the gateway maps classes to statuses.

    MultimoeError
    ├── BadConfig              the catalog or a setting is wrong
    ├── BadInput               the request cannot be served as it was sent
    │   ├── BadMedia           damaged, empty or unusable picture or sound
    │   ├── UnsupportedMedia   a format that is not on the list
    │   ├── TooLarge           over a limit
    │   ├── UnknownModel       no such model, preset or expert
    │   └── NoExpert           no expert in the catalog reads this kind of input
    ├── NotFound               no such completion, gate version or job
    ├── Conflict               the thing is busy or does not fit what is there
    ├── LoopDetected           a request came back to a gateway that it had left
    ├── ExpertFailed           an expert answered with an error
    │   ├── ExpertTimeout      an expert did not answer in time
    │   ├── ReplicaLost        the process that was answering went away; another can be asked the same
    │   └── NoReplica          no process of the expert is up; one is being started
    ├── Unavailable            try again later: overload, store gone, no replica
    ├── WeightsError           weights are missing or not the pinned ones
    ├── CheckpointError        a gate version is damaged or made for something else
    └── TooLittleData          not enough ratings to say anything

All arguments are positional, so every error survives a pickle across processes.
"""


class MultimoeError(Exception):
    """Root. `message` says what, which value, what is allowed, what to do; `param` is the path of the bad field."""

    code = "internal_error"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param, code)
        self.message = message
        self.param = param
        self.code = code or type(self).code

    def __str__(self) -> str:
        return self.message


class BadConfig(MultimoeError):
    code = "invalid_config"


class BadInput(MultimoeError):
    code = "invalid_value"


class BadMedia(BadInput):
    code = "invalid_media"


class UnsupportedMedia(BadInput):
    code = "unsupported_media"


class TooLarge(BadInput):
    code = "request_too_large"


class UnknownModel(BadInput):
    code = "model_not_found"


class NoExpert(BadInput):
    code = "no_expert_for_modality"


class NotFound(MultimoeError):
    code = "not_found"


class Conflict(MultimoeError):
    code = "conflict"


class LoopDetected(MultimoeError):
    code = "loop_detected"


class ExpertFailed(MultimoeError):
    code = "expert_failed"


class ExpertTimeout(ExpertFailed):
    code = "expert_timeout"


class ReplicaLost(ExpertFailed):
    code = "replica_lost"


class NoReplica(ExpertFailed):
    code = "no_replica"


class Unavailable(MultimoeError):
    code = "overloaded"


class WeightsError(MultimoeError):
    code = "weights_unavailable"


class CheckpointError(MultimoeError):
    code = "checkpoint_refused"


class TooLittleData(MultimoeError):
    code = "too_little_data"
