"""onnxruntime alone, of any age: ``graphs`` in the request names several files, and all are asked for a batch."""

from pathlib import Path

import numpy as np
import onnxruntime
from greedy import Arrays, greedy
from protocol import Answers, Prompts, Request, serve

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def answers(request: Request) -> Answers:
    onnxruntime.set_default_logger_severity(4)

    def generate(file: str) -> Prompts:
        session = onnxruntime.InferenceSession(str(Path(file)), providers=["CPUExecutionProvider"])
        caches = [value for value in session.get_inputs() if value.name.startswith("past_key_values")]
        names = [value.name for value in session.get_outputs()]

        def empty(batch: int) -> Arrays:
            return {
                value.name: np.zeros((batch, value.shape[1], 0, value.shape[3]), TYPES[value.type]) for value in caches
            }

        return greedy(
            lambda feeds: dict(zip(names, session.run(None, feeds), strict=True)),
            empty,
            request["prompts"]["batch"],
            request["new_tokens"],
        )

    return {name: lambda file=file: generate(file) for name, file in request["graphs"].items()}


if __name__ == "__main__":
    serve(answers)
