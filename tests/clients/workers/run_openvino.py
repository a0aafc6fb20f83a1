"""OpenVINO: the graph as it lies, compiled for the CPU."""

from pathlib import Path

import numpy as np
import openvino
from greedy import Arrays, greedy
from protocol import Answers, Prompts, Request, serve, usual


def answers(request: Request) -> Answers:
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(Path(request["folder"]) / request["model"]), "CPU")
    caches = [port for port in compiled.inputs if port.any_name.startswith("past_key_values")]

    def empty(batch: int) -> Arrays:
        return {
            port.any_name: np.zeros(
                (batch, port.partial_shape[1].get_length(), 0, port.partial_shape[3].get_length()),
                port.element_type.to_dtype(),
            )
            for port in caches
        }

    def generate(prompts: Prompts, beams: int) -> Prompts:
        if beams > 1:
            raise NotImplementedError("a runtime, whose loop is the user's")
        return greedy(compiled, empty, prompts, request["new_tokens"])

    return usual(request, generate)


if __name__ == "__main__":
    serve(answers)
