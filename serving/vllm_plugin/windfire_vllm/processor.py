"""From a request's JSON to a prompt and parameters, and from the pooled tensor to the answer's JSON."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from vllm.exceptions import VLLMServerError, VLLMValidationError
from vllm.plugins.io_processors.interface import IOProcessor
from vllm.pooling_params import PoolingParams

from recsys.backends.vllm_format import Answer, Question, Status
from recsys.errors import InputError
from windfire_vllm.export import Export

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm.config import VllmConfig
    from vllm.outputs import PoolingRequestOutput
    from vllm.renderers import BaseRenderer

_FAILURES: Final = {
    Status.TOO_FEW_ROWS: "the states of the placeholders are not all there: part of the prompt was not computed",
    Status.NOT_FINITE: "the model's hidden states are not finite",
    Status.BAD_REQUEST: "the pooler could not read the request's parameters",
}
# vLLM asks for the prompt and for the parameters in two calls that know nothing of each other, within one task.
_asked: ContextVar[Question | None] = ContextVar("windfire_question", default=None)


class NezhaProcessor(IOProcessor[Question, dict[str, Any]]):  # type: ignore[misc] # vLLM is not installed here
    """The interface that `docs/vllm.md` describes.

    Args:
        vllm_config: of the server.
        renderer: of the server; not used, prompts are token ids.
    """

    def __init__(self, vllm_config: VllmConfig, renderer: BaseRenderer) -> None:
        super().__init__(vllm_config, renderer)
        self._export = Export.load(vllm_config.model_config.model)

    def parse_data(self, data: object) -> Question:
        """Read a request's `data`; what is wrong with it becomes a 400 that names the field."""
        manifest = self._export.manifest
        try:
            question = Question.parse(data, items=manifest.items)
        except InputError as error:
            raise VLLMValidationError(str(error), parameter=error.field) from error
        if question.export_id not in (None, manifest.export_id):
            raise VLLMValidationError(
                f"this server runs the export {manifest.export_id} (model {manifest.model_version}, tokenizer "
                f"{manifest.tokenizer_version})",
                parameter="export_id",
                value=question.export_id,
            )
        return question

    def pre_process(self, prompt: Question, request_id: str | None = None, **kwargs: Any) -> Any:
        """The prompt of a question."""
        _asked.set(prompt)
        return {"prompt_token_ids": self._export.prompt(prompt.history)}

    def merge_pooling_params(self, params: PoolingParams | None = None) -> PoolingParams:
        """The parameters of the question whose prompt was asked for just before.

        The prefix cache is not read: a hit would leave out states that the head needs.
        """
        question = _asked.get()
        if question is None:
            raise VLLMValidationError("parameters without a question", parameter="data")
        _asked.set(None)
        wanted = question.wanted.to_kwargs()
        return PoolingParams(task="plugin", skip_reading_prefix_cache=True, extra_kwargs=wanted)

    def post_process(
        self, model_output: Sequence[PoolingRequestOutput], request_id: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The answer's `data`."""
        answer = Answer.decode(model_output[0].outputs.data.float().numpy())
        if answer.status != Status.DONE:
            raise VLLMServerError(_FAILURES[answer.status])
        return {
            "export_id": self._export.manifest.export_id,
            "items": answer.items.tolist(),
            "scores": answer.scores.tolist(),
            "widened": answer.widened,
        }
